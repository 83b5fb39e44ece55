// Packed weights times int8 activations, and rows of packed weights as vectors. quantized.h tells the layout and the
// promise of equal bits; this is compiled without fusing products and sums, except where it says so.
//
// A span of a panel is multiplied with one tile of rows after another. For few rows its codes are unpacked on the way
// into dot product instructions; for many, once into bytes in the first-level cache, for AMX tiles where there are any.
#include "../quantized.h"

#include "dot.h"
#include "span.h"
#include "tiles.h"
#include "vec.h"

namespace octavo::OCTAVO_ISA {
namespace {

enum class Kind {
  blocks,    // a scale for each block, or for several
  halves,    // a scale for each half of a block
  minimums,  // a scale and a minimum for each block, or for several
};
constexpr int parts_of_block(Kind kind) { return kind == Kind::halves ? 2 : 1; }

// A tile of activations from some block on.
struct Tile {
  int64_t rows;
  bool first;  // block: sums begin here
  const int8_t* codes;
  const float *scales, *sums;
  const int32_t *offsets, *half_offsets;

  Tile(const QuantizedRows& x, int64_t row, int64_t block) : rows(min(PANEL, x.rows - row)), first(block == 0) {
    int64_t first = row * x.blocks + block * rows;
    codes = x.codes + first * BLOCK;
    scales = x.scales + first, sums = x.sums + first, offsets = x.offsets + first;
    half_offsets = x.half_offsets + 2 * first;
  }
};

// Adds R rows of the tile times a span to sums [row][output], given the integer products: dots(block, half, out).
template <Kind KIND, int R, class Dots>
inline void accumulate(const Span& w, const Tile& x, int64_t row, float* sums, const Dots& dots) {
  constexpr int PARTS = parts_of_block(KIND);
  sums += row * PANEL;
  f32v sum[R][VECTORS];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < VECTORS; ++v) sum[r][v] = x.first ? f32v{} : load(sums + r * PANEL + v * W);
  for (int64_t b = 0; b < w.blocks; ++b) {
    const float *x_scales = x.scales + b * x.rows + row, *x_sums = x.sums + b * x.rows + row;
    for (int p = 0; p < PARTS; ++p) {
      i32v products[R][VECTORS];
      dots(b, p, products);
      for (int v = 0; v < VECTORS; ++v) {
        f32v scale = load(w.scales + (b * PARTS + p) * PANEL + v * W);
        for (int r = 0; r < R; ++r)
          sum[r][v] = fused(__builtin_convertvector(products[r][v], f32v), scale * x_scales[r], sum[r][v]);
      }
    }
    if constexpr (KIND == Kind::minimums)
      for (int v = 0; v < VECTORS; ++v) {
        f32v minimum = load(w.minimums + b * PANEL + v * W);
        for (int r = 0; r < R; ++r) sum[r][v] = fused(minimum, f32v{} + x_sums[r], sum[r][v]);
      }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < VECTORS; ++v) store(sums + r * PANEL + v * W, sum[r][v]);
}

// ---- By dot product instructions ----

// What a sum of products starts from: it makes up for weights not having the sign that the instruction takes them for.
template <Kind KIND>
inline i32v start(const int32_t* offset) {
  if constexpr (UNSIGNED == (KIND == Kind::minimums)) return i32v{};
  return splat(UNSIGNED ? *offset : -*offset);
}

template <int BITS, Kind KIND, int R>
void multiply(const Span& w, const Tile& x, int64_t row, float* sums) {
  constexpr int PARTS = parts_of_block(KIND), LINES = 8 / PARTS;
  constexpr uint32_t flip = UNSIGNED ? 0 : FLIP;
  accumulate<KIND, R>(w, x, row, sums, [&](int64_t b, int p, i32v(&products)[R][VECTORS]) {
    const uint8_t* block = w.codes + b * block_bytes(BITS);
    const int8_t* codes = x.codes + (b * x.rows + row) * BLOCK;
    const int32_t* offsets = PARTS == 2 ? x.half_offsets + (2 * b + p) * x.rows : x.offsets + b * x.rows;
    if (p == 0 && row == 0 && !w.unpacked) prefetch<BITS>(block);
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < VECTORS; ++v) products[r][v] = start<KIND>(offsets + row + r);
#pragma GCC unroll 8
    for (int i = 0; i < LINES; ++i)
      for (int v = 0; v < VECTORS; ++v) {
        i32v weights = (i32v)(line<BITS>(block, p * LINES + i, v) ^ flip);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          int32_t four = load_bits<int32_t>(codes + r * BLOCK + 4 * (p * LINES + i));
          products[r][v] = dot(products[r][v], weights, splat(four));
        }
      }
  });
}

// Calls fn(row, std::integral_constant<int, R>) for runs of R rows.
template <class Fn>
inline void for_rows(int64_t rows, const Fn& fn) {
  constexpr int MOST = W == 16 ? 8 : 4;  // whose sums stay in registers
  int64_t row = 0;
  for (; row + MOST <= rows; row += MOST) fn(row, std::integral_constant<int, MOST>());
  if (MOST > 4 && row + 4 <= rows) fn(row, std::integral_constant<int, 4>()), row += 4;
  if (row + 2 <= rows) fn(row, std::integral_constant<int, 2>()), row += 2;
  if (row < rows) fn(row, std::integral_constant<int, 1>());
}

template <Kind KIND>
void multiply_tile(int bits, const Span& w, const Tile& x, float* sums) {
  for_rows(x.rows, [&](int64_t row, auto count) {
    switch (bits) {
      case 4:
        return multiply<4, KIND, count>(w, x, row, sums);
      case 5:
        return multiply<5, KIND, count>(w, x, row, sums);
      case 6:
        return multiply<6, KIND, count>(w, x, row, sums);
      default:
        return multiply<8, KIND, count>(w, x, row, sums);
    }
  });
}

// ---- By tile instructions ----

template <Kind KIND>
void multiply_by_tiles(const Span& w, const Tile& x, float* sums, int32_t* room) {
  constexpr int PARTS = parts_of_block(KIND);
  constexpr bool SIGNED = KIND != Kind::minimums;
  if constexpr (PARTS == 2)
    tile_half_dots<SIGNED>(x.codes, x.rows, w.codes, w.blocks, room);
  else
    tile_dots<SIGNED>(x.codes, x.rows, w.codes, w.blocks, room);
  for_rows(x.rows, [&](int64_t row, auto count) {
    constexpr int R = count;
    accumulate<KIND, R>(w, x, row, sums, [&](int64_t b, int p, i32v(&products)[R][VECTORS]) {
      const int32_t* from = room + (b * PARTS + p) * DOTS + row * PANEL;
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < VECTORS; ++v) products[r][v] = load_bits<i32v>(from + r * PANEL + v * W);
    });
  });
}

// ---- A run of panels times a range of rows ----

// Calls fn with some value of the type.
template <class Fn>
void with_type(DType dtype, const Fn& fn) {
  switch (dtype) {
    case DType::f32:
      return fn(float{});
    case DType::bf16:
      return fn(bf16{});
    case DType::f16:
      return fn(f16{});
  }
}

// Sums of some rows and a panel's outputs to where they belong.
void put(const QuantizedLinear& a, const float* sums, int64_t begin, int64_t end, int64_t output, int64_t outputs) {
  float bias[PANEL] = {};
  if (a.bias)
    with_type(a.bias_dtype, [&](auto type) {
      auto* from = static_cast<const decltype(type)*>(a.bias) + output;
      for_vectors(outputs, [&](int64_t i, auto get, auto put) { put(bias + i, get(from + i)); });
    });
  with_type(a.out_dtype, [&](auto type) {
    auto* out = static_cast<decltype(type)*>(a.out) + begin * a.matrix->rows + output;
    for (int64_t row = begin; row < end; ++row, sums += PANEL, out += a.matrix->rows)
      for_vectors(outputs, [&](int64_t i, auto get, auto put) { put(out + i, get(sums + i) + get(bias + i)); });
  });
}

struct Scratch {
  Span span;
  alignas(LINE) float sums[ROWS_AT_ONCE * PANEL];  // [row][output]
  alignas(LINE) int32_t dots[SPAN / 16 * DOTS];
};
static_assert(sizeof(Scratch) <= QUANTIZED_SCRATCH);

// How rows are multiplied: many of them pay for unpacking codes once, and for tiles.
struct Way {
  bool tiles, unpacked;
  uint32_t flip;
  int bits;

  Way(const PackedPart& part, int64_t rows) {
    bool many = rows > PANEL;
    tiles = HAS_TILES && many;
    unpacked = tiles || (many && part.bits != 8);
    flip = tiles && !part.minimums ? FLIP : 0;
    bits = unpacked ? 8 : part.bits;
  }
};

// One panel. While a tile is multiplied, its share of the span to come is fetched from memory.
template <Kind KIND>
void multiply_panel(const QuantizedLinear& a, const QuantizedRows& rows, const PackedPart& part, int64_t panel,
                    int64_t output, int64_t begin, int64_t end, const Way& way, Scratch& scratch) {
  int64_t tiles = ceil_div(end - begin, PANEL), bytes = span_bytes(part), columns = a.matrix->columns;
  int64_t outputs = min(PANEL, part.rows - panel * PANEL);
  for (int64_t k = 0; k < columns; k += SPAN) {
    const uint8_t* span = span_at(a.matrix, part, panel, k / SPAN);
    unpack(part, span, min(SPAN, columns - k), way.unpacked, way.flip, scratch.span);
    for (int64_t tile = 0, ahead = 0; tile < tiles; ++tile) {
      if (way.unpacked)
        for (; ahead < bytes * (tile + 1) / tiles; ahead += LINE) __builtin_prefetch(span + bytes + ahead, 0, 2);
      int64_t row = begin + tile * PANEL;
      Tile x(rows, row, k / BLOCK);
      float* sums = scratch.sums + tile * PANEL * PANEL;
      if (way.tiles)
        multiply_by_tiles<KIND>(scratch.span, x, sums, scratch.dots);
      else
        multiply_tile<KIND>(way.bits, scratch.span, x, sums);
      if (k + SPAN >= columns) put(a, sums, row, row + x.rows, output, outputs);
    }
  }
}

template <Kind KIND>
void linear(const QuantizedLinear& a, const QuantizedRows& x, const PanelRun& run, int64_t begin, int64_t end,
            Scratch& scratch) {
  Way way(*run.part, end - begin);
  if (way.tiles) configure_tiles();
  for (int64_t p = 0; p < run.count; ++p)
    multiply_panel<KIND>(a, x, *run.part, run.panel + p, run.output + p * PANEL, begin, end, way, scratch);
  if (way.tiles) release_tiles();
}

void linear_any(const QuantizedLinear& a, const QuantizedRows& x, const PanelRun& run, int64_t begin, int64_t end,
                void* memory) {
  Scratch& scratch = *static_cast<Scratch*>(memory);
  if (run.part->minimums) return linear<Kind::minimums>(a, x, run, begin, end, scratch);
  if (run.part->group < BLOCK) return linear<Kind::halves>(a, x, run, begin, end, scratch);
  return linear<Kind::blocks>(a, x, run, begin, end, scratch);
}

// ---- Rows of the matrix itself ----

// Some columns of a row: what they dequantize to.
void row_values(const Span& span, const PackedPart& part, int64_t lane, int64_t columns, float* values) {
  int64_t group = min(part.group, BLOCK);
  for (int64_t c = 0; c < columns; ++c) {
    float code = span.codes[c / 4 * LINE + lane * 4 + c % 4];
    float scale = span.scales[c / group * PANEL + lane];
    values[c] = part.minimums ? scale * code + span.minimums[c / group * PANEL + lane] : scale * (code - 128.f);
  }
}

void embedding(const QuantizedEmbedding& a, int64_t begin, int64_t end) {
  Span span;
  float values[SPAN];
  for (int64_t token = begin; token < end; ++token) {
    int64_t row = a.ids[token];
    const PackedPart* part = parts_of(a.matrix);
    for (; row >= part->rows; ++part) row -= part->rows;
    for (int64_t k = 0; k < a.columns; k += SPAN) {
      unpack(*part, span_at(a.matrix, *part, row / PANEL, k / SPAN), min(SPAN, a.matrix->columns - k), true, 0, span);
      int64_t columns = min(SPAN, a.columns - k);
      row_values(span, *part, row % PANEL, columns, values);
      with_type(a.out_dtype, [&](auto type) {
        auto* out = static_cast<decltype(type)*>(a.out) + token * a.columns + k;
        for_vectors(columns, [&](int64_t c, auto get, auto put) { put(out + c, get(values + c)); });
      });
    }
  }
}

}  // namespace

#define TEXT(x) #x
#define NAME(x) TEXT(x)
extern const QuantizedKernels quantized_table;
const QuantizedKernels quantized_table = {NAME(OCTAVO_ISA), linear_any, embedding};

}  // namespace octavo::OCTAVO_ISA
