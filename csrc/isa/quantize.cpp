// Activations to int8 (quantized.h). W blocks of a row go together, so that reductions and divisions are done for W at
// a time. Compiled without fusing products and sums: every instruction set must round alike.
#include "../quantized.h"
#include "vec.h"

namespace octavo::OCTAVO_ISA {
namespace {

constexpr int VECTORS = BLOCK / W;  // of a block

// Lane i of the result joins the lanes of rows[i].
template <class Join>
inline i32v reduce(i32v (&rows)[W], const Join& join) {
#pragma GCC unroll 4
  for (int n = W / 2; n > 0; n /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i)
      rows[i] = join(interleave_low(rows[i], rows[i + n]), interleave_high(rows[i], rows[i + n]));
  }
  return rows[0];
}
inline i32v add(i32v a, i32v b) { return a + b; }
inline i32v larger(i32v a, i32v b) { return a > b ? a : b; }
inline i32v magnitude(f32v x) { return bit_cast<i32v>(x) & 0x7fffffff; }  // ordered like the numbers, NaN last

// What to multiply by, and the scale that undoes it: NaN where a number is not finite, 0 where all are tiny.
inline f32v inverse_scales(i32v largest, f32v& scales) {
  constexpr int32_t INFINITE = 0x7f800000, TINY = 0x0d800000;  // 2^-100, of which 127 / x is still finite
  f32v size = bit_cast<f32v>(largest);
  f32v inverse = 127.f / size;
  scales = largest < TINY ? f32v{} : size / 127.f;
  scales = largest >= INFINITE ? bit_cast<f32v>(i32v{} + 0x7fc00000) : scales;
  return largest < TINY ? f32v{} : (largest >= INFINITE ? f32v{} : inverse);
}

// A number whose lowest bits as an integer are those of x rounded to one, ties to even.
constexpr float ROUND = 12582912.f;         // 1.5 * 2^23
constexpr int32_t ROUND_BITS = 0x4b400000;  // ends in zeros: the lowest byte is a code's

// The lowest byte of each lane. (Compilers make a long sequence of a plain conversion.)
inline void store_bytes(int8_t* to, i32v x) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8((__m512i)x));
#elif defined(__AVX2__)
  __m128i words = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)(x << 24 >> 24)),
                                  _mm256_extracti128_si256((__m256i)(x << 24 >> 24), 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(words, words));
#else
  for (int i = 0; i < W; ++i) to[i] = int8_t(x[i]);
#endif
}

// Where a block of a row goes.
struct Place {
  int8_t* codes;
  float *scale, *sum;
  int32_t *offset, *lower_offset, *upper_offset;

  Place() = default;
  Place(const QuantizedRows& out, int64_t row, int64_t block) {
    int64_t tile = row / PANEL * PANEL, rows = min(PANEL, out.rows - tile), in_tile = row - tile;
    int64_t at = tile * out.blocks + block * rows + in_tile;
    codes = out.codes + at * BLOCK;
    scale = out.scales + at, sum = out.sums + at, offset = out.offsets + at;
    lower_offset = out.half_offsets + 2 * at - in_tile, upper_offset = lower_offset + rows;
  }
};

// Any W blocks, of which `count` exist; the others need a place for codes as well. NEIGHBOURS: the same block of W
// rows of a tile, whose numbers stand side by side.
template <bool NEIGHBOURS>
inline void quantize_blocks(const f32v (&values)[W][VECTORS], int64_t count, const Place (&places)[W]) {
  i32v work[W];
  for (int b = 0; b < W; ++b) {
    work[b] = magnitude(values[b][0]);
    for (int v = 1; v < VECTORS; ++v) work[b] = larger(work[b], magnitude(values[b][v]));
  }
  f32v scales;
  float inverse[W];
  store(inverse, inverse_scales(reduce(work, larger), scales));
  for (int b = 0; b < W; ++b) {
    i32v halves[2] = {};
    int8_t* codes = places[b].codes;
    for (int v = 0; v < VECTORS; ++v) {
      i32v bits = bit_cast<i32v>(values[b][v] * inverse[b] + ROUND);
      store_bytes(codes + v * W, bits);
      halves[v / (VECTORS / 2)] += bits - ROUND_BITS;
    }
    work[b] = halves[0] + (halves[1] << 16);  // a sum of 16 codes has 12 bits: both are added up at once
  }
  i32v both = reduce(work, add), lower = (both << 16) >> 16, upper = (both - lower) >> 16;
  f32v sums = scales * __builtin_convertvector(lower + upper, f32v);
  if constexpr (NEIGHBOURS) {
    const Place& to = places[0];
    store(to.scale, scales);
    store(to.sum, sums);
    store_bits(to.offset, (lower + upper) * -128);
    store_bits(to.lower_offset, lower * -128);
    store_bits(to.upper_offset, upper * -128);
    return;
  }
  float scale[W], sum[W];
  int32_t offset[W], lower_offset[W], upper_offset[W];
  store(scale, scales);
  store(sum, sums);
  store_bits(offset, (lower + upper) * -128);
  store_bits(lower_offset, lower * -128);
  store_bits(upper_offset, upper * -128);
  for (int b = 0; b < count; ++b) {
    const Place& to = places[b];
    *to.scale = scale[b], *to.sum = sum[b];
    *to.offset = offset[b], *to.lower_offset = lower_offset[b], *to.upper_offset = upper_offset[b];
  }
}

template <class T>
inline void load_block(const T* x, int64_t columns, f32v (&values)[VECTORS]) {
  T block[BLOCK] = {};
  if (columns < BLOCK) __builtin_memcpy(block, x, columns * sizeof(T));
  for (int v = 0; v < VECTORS; ++v) values[v] = load((columns < BLOCK ? block : x) + v * W);
}

// W rows of a tile, a block of each at a time.
template <class T>
void quantize_rows(const Quantize& a, const QuantizedRows& out, int64_t row) {
  const T* x = static_cast<const T*>(a.x) + row * a.x_stride;
  for (int64_t block = 0; block < out.blocks; ++block) {
    f32v values[W][VECTORS];
    Place places[W];
    for (int i = 0; i < W; ++i) {
      load_block(x + i * a.x_stride + block * BLOCK, a.columns - block * BLOCK, values[i]);
    }
    places[0] = Place(out, row, block);
    for (int i = 1; i < W; ++i) places[i].codes = places[0].codes + i * BLOCK;
    quantize_blocks<true>(values, W, places);
  }
}

// Rows that fill no vector, one after another.
template <class T>
void quantize_rest(const Quantize& a, const QuantizedRows& out, int64_t begin, int64_t end) {
  int64_t row = begin, block = 0;
  while (row < end) {
    f32v values[W][VECTORS];
    Place places[W];
    int64_t count = 0;
    for (; count < W && row < end; ++count) {
      const T* x = static_cast<const T*>(a.x) + row * a.x_stride + block * BLOCK;
      load_block(x, a.columns - block * BLOCK, values[count]);
      places[count] = Place(out, row, block);
      if (++block == out.blocks) block = 0, ++row;
    }
    int8_t nowhere[BLOCK];
    for (int64_t b = count; b < W; ++b) {
      for (int v = 0; v < VECTORS; ++v) values[b][v] = f32v{};
      places[b].codes = nowhere;
    }
    quantize_blocks<false>(values, count, places);
  }
}

// begin: a multiple of PANEL.
template <class T>
void quantize(const Quantize& a, int64_t begin, int64_t end) {
  QuantizedRows out = quantized_rows(a.out, a.tokens, a.columns);
  for (; begin + W <= end; begin += W) quantize_rows<T>(a, out, begin);
  quantize_rest<T>(a, out, begin, end);
}

}  // namespace

void quantize_any(const Quantize& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::f32:
      return quantize<float>(a, begin, end);
    case DType::bf16:
      return quantize<bf16>(a, begin, end);
    case DType::f16:
      return quantize<f16>(a, begin, end);
  }
}

}  // namespace octavo::OCTAVO_ISA
