// Matrices of 4-, 5-, 6- and 8-bit codes with a scale for every group of them, multiplied as they are stored.
//
// One layout for all sources, which pack.cpp writes once, at load. It loses nothing: a weight is
//
//   without minimums   scale * (code - 2^(bits - 1))
//   with minimums      scale * code + minimum
//
// of the source's own numbers, so what a row dequantizes to is what the source's does, to the last bit.
//
//   matrix   PackedMatrix, a PackedPart for each part, then the parts' panels. Parts are tensors below each other, each
//            with a packing of its own. Every section begins at a multiple of ALIGNMENT bytes.
//   panel    PANEL rows (the last one of a part filled up with zeros) as a sequence of spans.
//   span     SPAN columns (fewer at the end): first their scales, then their codes, one BLOCK of columns after another.
//   scales   f16 or f32: [group][row]; then minimums alike.
//            nested: f16 [row] for the whole span, then minimums alike; then int8 [group][row], which multiply these,
//            then minimums alike.
//   codes    of a block. Their upper four bits are lines of 64 bytes: byte 4 * row + j of line i holds column 8 i + j
//   in
//            its lower half and column 8 i + 4 + j in its upper half. Bits left over follow in lines of the same kind:
//            5-bit codes have that of column 4 i + j at bit i, 6-bit codes those of column 16 l + 4 i + j at bit 2 i of
//            line l. Codes of 8 bits are whole: byte 4 * row + j of line i is column 4 i + j.
//
// A line has 4 columns of 16 rows, as dot product instructions take them. On the way there, codes are put at the upper
// end of a byte: their zero is then 128 whatever their width, and scales are divided by 2^(8 - bits), which is exact.
//
// Activations become int8 with a scale for each row and block: x = scale * code, |code| <= 127. A product is a sum of
// integers within a block (within half a block for groups of 16) and of float32 from block to block, first to last, one
// fused multiply-add for the scale and one for the minimum. Nothing else rounds, so every instruction set, shape of
// tile, number of rows and number of threads gives the same bits; only a result that is subnormal in bfloat16 may be
// zero on some sets.
#pragma once

#include "octavo.h"

namespace octavo {

inline constexpr int64_t PANEL = 16, BLOCK = 32, SPAN = 256, ALIGNMENT = 64;

enum class Scales : int32_t { f16 = 0, f32 = 1, nested = 2 };

struct PackedPart {
  int64_t rows;
  int64_t offset;  // of its panels, in bytes from the matrix
  int32_t bits;    // 4, 5, 6, 8
  int32_t group;   // columns that share a scale: 16 (without minimums only), 32, 64, 128
  Scales scales;
  int32_t minimums;  // 0 or 1
};
struct PackedMatrix {
  int64_t bytes;
  int64_t rows;     // of all parts
  int64_t columns;  // filled up to a multiple of BLOCK
  int64_t count;    // of parts
};
static inline const PackedPart* parts_of(const PackedMatrix* matrix) {
  return reinterpret_cast<const PackedPart*>(matrix + 1);
}

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
static inline int64_t panels_of(int64_t rows) { return ceil_div(rows, PANEL); }

// Where things are in a span of some columns.
struct SpanLayout {
  int64_t groups;
  int64_t scales, minimums, codes;  // offsets; of nested scales and minimums, those of the int8 numbers
  int64_t bytes;
};
static inline SpanLayout span_layout(const PackedPart& part, int64_t columns) {
  bool nested = part.scales == Scales::nested;
  int64_t kinds = part.minimums ? 2 : 1, width = nested ? 1 : part.scales == Scales::f16 ? 2 : 4;
  int64_t groups = ceil_div(columns, part.group), scales = nested ? kinds * PANEL * 2 : 0;
  int64_t codes = round_up(scales + kinds * groups * PANEL * width, ALIGNMENT);
  return {groups, scales, scales + groups * PANEL * width, codes, codes + columns * PANEL * part.bits / 8};
}
static inline int64_t span_bytes(const PackedPart& part) { return span_layout(part, SPAN).bytes; }
static inline int64_t panel_bytes(const PackedPart& part, int64_t columns) {
  int64_t rest = columns % SPAN;
  return columns / SPAN * span_bytes(part) + (rest ? span_layout(part, rest).bytes : 0);
}
static inline const uint8_t* span_at(const PackedMatrix* matrix, const PackedPart& part, int64_t panel, int64_t span) {
  return reinterpret_cast<const uint8_t*>(matrix) + part.offset + panel * panel_bytes(part, matrix->columns) +
         span * span_bytes(part);
}

// Making a matrix: plan_matrix into memory of packed_bytes (the parts' offsets are filled in), then each part.
int64_t packed_bytes(int64_t columns, const PackedPart* parts, int64_t count);
void plan_matrix(PackedMatrix*, int64_t columns, const PackedPart* parts, int64_t count);
// The packing of a ggml type, given by its number in GGUF files, and the bytes of a row there; false: no such type
// here.
bool gguf_packing(int type, PackedPart&);
int64_t gguf_row_bytes(int type, int64_t columns);
// Rows of ggml blocks as they are in the file into a part with that packing. `order`, if not null, says which of them
// comes at each place.
void pack_gguf(PackedMatrix*, int64_t part, int type, const uint8_t* blocks, const int64_t* order);
// codes [rows, columns], unsigned, one a byte; scales and minimums (or null) [rows, columns / group], rounded to f16 if
// that is how the part stores them.
void pack_codes(PackedMatrix*, int64_t part, int64_t columns, const uint8_t* codes, const float* scales,
                const float* minimums);

// Activations in tiles of PANEL rows, the last one lower, so that a tile is read front to back.
struct QuantizedRows {
  int64_t rows, blocks;
  int8_t* codes;          // [tile][block][row of the tile][BLOCK]
  float* scales;          // [tile][block][row]
  float* sums;            // [tile][block][row]: scale * sum of codes, which a minimum is multiplied by
  int32_t* offsets;       // [tile][block][row]: -128 * sum of codes, which turns unsigned weights into signed ones
  int32_t* half_offsets;  // [tile][block][2][row]: the same for each half of a block
};
static inline int64_t quantized_bytes(int64_t rows, int64_t columns) {  // and a tile more, for who reads whole tiles
  return rows * ceil_div(columns, BLOCK) * (BLOCK + 5 * 4) + PANEL * BLOCK;
}
static inline QuantizedRows quantized_rows(void* memory, int64_t rows, int64_t columns) {
  int64_t blocks = ceil_div(columns, BLOCK), count = rows * blocks;
  int8_t* codes = static_cast<int8_t*>(memory);
  float* scales = reinterpret_cast<float*>(codes + count * BLOCK);
  int32_t* offsets = reinterpret_cast<int32_t*>(scales + 2 * count);
  return {rows, blocks, codes, scales, scales + count, offsets, offsets + count};
}
struct Quantize {
  DType dtype;
  const void* x;  // [tokens, columns]
  int64_t x_stride;
  void* out;  // quantized_bytes(tokens, columns)
  int64_t tokens, columns;
};
void quantize(const Quantize&);

struct QuantizedLinear {
  DType out_dtype, bias_dtype;
  void* x;  // as `quantize` left it
  const PackedMatrix* matrix;
  const void* bias;  // [matrix rows] or null
  void* out;         // [tokens, matrix rows]
  int64_t tokens;
};
void quantized_linear(const QuantizedLinear&);

struct QuantizedEmbedding {
  DType out_dtype;
  const PackedMatrix* matrix;
  const int64_t* ids;  // [tokens] rows of the matrix
  void* out;           // [tokens, columns]
  int64_t tokens, columns;
};
void quantized_embedding(const QuantizedEmbedding&);

// Serial kernels of one instruction set; there are more of these than of the others.
inline constexpr int64_t ROWS_AT_ONCE = 512, QUANTIZED_SCRATCH = 64 * 1024;
struct PanelRun {
  const PackedPart* part;
  int64_t panel, count;  // panels of the part
  int64_t output;        // which the first row of the first one makes
};
struct QuantizedKernels {
  const char* isa;
  // For rows [begin, end) of x, at most ROWS_AT_ONCE; begin is a multiple of PANEL. Scratch is aligned to ALIGNMENT.
  void (*linear)(const QuantizedLinear&, const QuantizedRows& x, const PanelRun&, int64_t begin, int64_t end,
                 void* scratch);
  void (*embedding)(const QuantizedEmbedding&, int64_t begin, int64_t end);
};
const QuantizedKernels& quantized_kernels();

}  // namespace octavo
