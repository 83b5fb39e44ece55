// Activations to int8 (quantized.h). W blocks of a row go together, so that reductions and divisions are done for W at
// a time. Compiled without fusing products and sums: every instruction set must round alike.
#include "../quantized.h"
#include "vec.h"

namespace octavo::OCTAVO_ISA {
namespace {

constexpr int VECTORS = BLOCK / W;  // of a block

// Lane i of the result joins the lanes of rows[i].
template <class V, class Join>
inline V reduce(V (&rows)[W], const Join& join) {
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

// W blocks of a row as float32, missing columns as zeros.
template <class T>
inline void load_blocks(const T* x, int64_t columns, f32v (&values)[W][VECTORS]) {
  for (int b = 0; b < W; ++b)
    for (int v = 0; v < VECTORS; ++v) {
      int64_t at = b * BLOCK + v * W;
      values[b][v] = at + W <= columns ? load(x + at) : at < columns ? load_some(x + at, columns - at) : f32v{};
    }
}

// What to multiply by, and the scale that undoes it: NaN where a number is not finite, 0 where all are tiny.
inline f32v inverse_scales(i32v largest, f32v& scales) {
  constexpr int32_t INFINITE = 0x7f800000, TINY = 0x0d800000;  // 2^-100, of which 127 / x is still finite
  f32v size = bit_cast<f32v>(largest);
  f32v inverse = 127.f / size;
  scales = largest < TINY ? f32v{} : size / 127.f;
  scales = largest >= INFINITE ? bit_cast<f32v>(i32v{} + 0x7fc00000) : scales;
  return largest < TINY ? f32v{} : (largest >= INFINITE ? f32v{} : inverse);
}

// To the nearest integer, ties to even, |x| < 2^22; 0 for what is not a number.
inline i32v round(f32v x) {
  i32v integer = bit_cast<i32v>(x + 12582912.f) - 0x4b400000;
  return x == x ? integer : i32v{};
}

struct Destination {
  int8_t* codes;
  float *scales, *sums;
  int32_t *offsets, *half_offsets;
  int64_t rows;  // of the tile: the distance between blocks

  Destination(const QuantizedRows& out, int64_t row) {
    int64_t tile = row / PANEL * PANEL, first = tile * out.blocks + row % PANEL;
    rows = min(PANEL, out.rows - tile);
    codes = out.codes + first * BLOCK;
    scales = out.scales + first, sums = out.sums + first, offsets = out.offsets + first;
    half_offsets = out.half_offsets + 2 * tile * out.blocks + row % PANEL;
  }
};

// W blocks from block `first` on, of which `count` exist.
inline void quantize_blocks(const f32v (&values)[W][VECTORS], int64_t first, int64_t count, const Destination& to) {
  i32v work[W];
  for (int b = 0; b < W; ++b) {
    work[b] = magnitude(values[b][0]);
    for (int v = 1; v < VECTORS; ++v) work[b] = larger(work[b], magnitude(values[b][v]));
  }
  f32v scales;
  float inverse[W];
  store(inverse, inverse_scales(reduce(work, larger), scales));
  i32v upper[W];
  for (int b = 0; b < W; ++b) {
    i32v codes[VECTORS];
    int8_t bytes[BLOCK];
    for (int v = 0; v < VECTORS; ++v) {
      codes[v] = round(values[b][v] * inverse[b]);
      store_bits(bytes + v * W, __builtin_convertvector(codes[v], i8v));
    }
    if (b < count) __builtin_memcpy(to.codes + (first + b) * to.rows * BLOCK, bytes, BLOCK);
    work[b] = codes[0], upper[b] = codes[VECTORS / 2];
    for (int v = 1; v < VECTORS / 2; ++v) work[b] += codes[v], upper[b] += codes[VECTORS / 2 + v];
  }
  i32v halves[2] = {reduce(work, add), reduce(upper, add)};
  f32v sums = scales * __builtin_convertvector(halves[0] + halves[1], f32v);
  for (int b = 0; b < count; ++b) {
    int64_t at = (first + b) * to.rows;
    to.scales[at] = scales[b];
    to.sums[at] = sums[b];
    to.offsets[at] = -128 * (halves[0][b] + halves[1][b]);
    for (int h = 0; h < 2; ++h) to.half_offsets[2 * at + h * to.rows] = -128 * halves[h][b];
  }
}

template <class T>
void quantize_row(const T* x, int64_t columns, const QuantizedRows& out, int64_t row) {
  Destination to(out, row);
  for (int64_t b = 0; b < out.blocks; b += W) {
    f32v values[W][VECTORS];
    load_blocks(x + b * BLOCK, columns - b * BLOCK, values);
    quantize_blocks(values, b, min(W, out.blocks - b), to);
  }
}

template <class T>
void quantize(const Quantize& a, int64_t begin, int64_t end) {
  QuantizedRows out = quantized_rows(a.out, a.tokens, a.columns);
  for (int64_t row = begin; row < end; ++row)
    quantize_row(static_cast<const T*>(a.x) + row * a.x_stride, a.columns, out, row);
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
