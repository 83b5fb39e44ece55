// Other formats' codes and scales into the packed layout, straight from the mapped file, panels shared out between
// threads. Runs once for each matrix.
#include <algorithm>
#include <bit>
#include <cstring>

#include "parallel.h"
#include "quantized.h"

namespace octavo {
namespace {

// One row's columns of a span, on their way.
struct Row {
  uint8_t codes[SPAN];                                        // unsigned, at the lower end of the byte
  uint16_t half_scales[SPAN / 16], half_minimums[SPAN / 32];  // f16
  float scales[SPAN / 16], minimums[SPAN / 32];
  uint16_t span_scale, span_minimum;  // f16, multiplied by the following
  int8_t scale_factors[SPAN / 16], minimum_factors[SPAN / 32];
};

// ---- Blocks of ggml ----

uint16_t half_at(const uint8_t* p) { return uint16_t(p[0] | p[1] << 8); }

// Lower halves of n bytes, then their upper halves.
void read_nibbles(const uint8_t* from, int n, uint8_t* to) {
  for (int i = 0; i < n; ++i) to[i] = from[i] & 15, to[n + i] = from[i] >> 4;
}

// 32 columns: an f16 scale, an f16 minimum (or none), a word of fifth bits (or none), nibbles.
template <bool MINIMUM, bool FIFTH>
void read_32(const uint8_t* p, int group, Row& row) {
  row.half_scales[group] = half_at(p), p += 2;
  if (MINIMUM) row.half_minimums[group] = half_at(p), p += 2;
  uint32_t fifth = 0;
  if (FIFTH) std::memcpy(&fifth, p, 4), p += 4;
  uint8_t* codes = row.codes + 32 * group;
  read_nibbles(p, 16, codes);
  if (FIFTH)
    for (int i = 0; i < 32; ++i) codes[i] |= (fifth >> i & 1) << 4;
}
void read_q8_0(const uint8_t* p, int group, Row& row) {
  row.half_scales[group] = half_at(p);
  for (int i = 0; i < 32; ++i) row.codes[32 * group + i] = p[2 + i] ^ 0x80;
}

// 256 columns in groups of 32, whose scales and minimums are 6 bits each: 12 bytes hold 8 of both.
template <bool FIFTH>
void read_k(const uint8_t* p, int, Row& row) {
  row.span_scale = half_at(p);
  row.span_minimum = half_at(p + 2) ^ 0x8000;  // the file's is subtracted
  const uint8_t *packed = p + 4, *fifth = p + 16, *low = FIFTH ? p + 48 : p + 16;
  for (int j = 0; j < 4; ++j) {
    uint8_t a = packed[j], b = packed[j + 4], c = packed[j + 8];
    row.scale_factors[j] = a & 63, row.scale_factors[j + 4] = (c & 15) | (a >> 6) << 4;
    row.minimum_factors[j] = b & 63, row.minimum_factors[j + 4] = c >> 4 | (b >> 6) << 4;
    read_nibbles(low + 32 * j, 32, row.codes + 64 * j);
  }
  if (FIFTH)
    for (int j = 0; j < 8; ++j)
      for (int i = 0; i < 32; ++i) row.codes[32 * j + i] |= (fifth[i] >> j & 1) << 4;
}
// 256 columns in groups of 16 with int8 scales.
void read_q6_k(const uint8_t* p, int, Row& row) {
  for (int half = 0; half < 2; ++half) {
    uint8_t* codes = row.codes + 128 * half;
    const uint8_t* high = p + 128 + 32 * half;
    read_nibbles(p + 64 * half, 64, codes);
    for (int j = 0; j < 4; ++j)
      for (int i = 0; i < 32; ++i) codes[32 * j + i] |= (high[i] >> 2 * j & 3) << 4;
  }
  std::memcpy(row.scale_factors, p + 192, 16);
  row.span_scale = half_at(p + 208);
}

struct Type {
  int id;  // in GGUF files
  int columns, bytes;
  PackedPart packing;
  void (*read)(const uint8_t* block, int place_in_span, Row&);
};
constexpr Type TYPES[] = {
    {2, 32, 18, {0, 0, 4, 32, Scales::f16, 0}, read_32<false, false>},  // Q4_0
    {3, 32, 20, {0, 0, 4, 32, Scales::f16, 1}, read_32<true, false>},   // Q4_1
    {6, 32, 22, {0, 0, 5, 32, Scales::f16, 0}, read_32<false, true>},   // Q5_0
    {7, 32, 24, {0, 0, 5, 32, Scales::f16, 1}, read_32<true, true>},    // Q5_1
    {8, 32, 34, {0, 0, 8, 32, Scales::f16, 0}, read_q8_0},              // Q8_0
    {12, 256, 144, {0, 0, 4, 32, Scales::nested, 1}, read_k<false>},    // Q4_K
    {13, 256, 176, {0, 0, 5, 32, Scales::nested, 1}, read_k<true>},     // Q5_K
    {14, 256, 210, {0, 0, 6, 16, Scales::nested, 0}, read_q6_k},        // Q6_K
};
const Type* find(int id) {
  for (const Type& type : TYPES)
    if (type.id == id) return &type;
  return nullptr;
}

// ---- The packed layout ----

uint32_t four(const uint8_t* codes) {
  uint32_t word;
  std::memcpy(&word, codes, 4);
  return word;
}

// A row's codes of a block to their places, four columns at a time.
void put_codes(const uint8_t* codes, int bits, int64_t row, uint8_t* block) {
  constexpr int64_t LINE = 16;  // words
  uint32_t* words = reinterpret_cast<uint32_t*>(block) + row;
  if (bits == 8) {
    for (int i = 0; i < 8; ++i) words[LINE * i] = four(codes + 4 * i);
    return;
  }
  int rest = bits - 4;
  for (int i = 0; i < 4; ++i) {
    uint32_t low = four(codes + 8 * i) >> rest, high = four(codes + 8 * i + 4) >> rest;
    words[LINE * i] = (low & 0x0f0f0f0f) | (high & 0x0f0f0f0f) << 4;
  }
  if (rest == 0) return;
  uint32_t mask = rest == 1 ? 0x01010101 : 0x03030303;
  for (int i = 0, fields = 8 / rest; i < 8; i += fields) {
    uint32_t word = 0;
    for (int f = 0; f < fields; ++f) word |= (four(codes + 4 * (i + f)) & mask) << (rest * f);
    words[LINE * (4 + i / fields)] = word;
  }
}

template <class T>
void put_numbers(const T* from, int64_t groups, int64_t row, uint8_t* to) {
  for (int64_t g = 0; g < groups; ++g) reinterpret_cast<T*>(to)[g * PANEL + row] = from[g];
}

void put_row(const PackedPart& part, const SpanLayout& layout, int64_t columns, const Row& from, int64_t row,
             uint8_t* span) {
  auto put = [&](const auto* scales, const auto* minimums, int64_t groups, int64_t at, int64_t minimums_at) {
    put_numbers(scales, groups, row, span + at);
    if (part.minimums) put_numbers(minimums, groups, row, span + minimums_at);
  };
  if (part.scales == Scales::f16) put(from.half_scales, from.half_minimums, layout.groups, 0, layout.minimums);
  if (part.scales == Scales::f32) put(from.scales, from.minimums, layout.groups, 0, layout.minimums);
  if (part.scales == Scales::nested) {
    put(&from.span_scale, &from.span_minimum, 1, 0, PANEL * sizeof(uint16_t));
    put(from.scale_factors, from.minimum_factors, layout.groups, layout.scales, layout.minimums);
  }
  uint8_t* block = span + layout.codes;
  for (int64_t k = 0; k < columns; k += BLOCK, block += PANEL * BLOCK * part.bits / 8)
    put_codes(from.codes + k, part.bits, row, block);
}

// read(row, first column, columns, Row&) for every row and span of a part.
template <class Read>
void pack(PackedMatrix* matrix, const PackedPart& part, const Read& read) {
  int64_t each = panel_bytes(part, matrix->columns);
  uint8_t* panels = reinterpret_cast<uint8_t*>(matrix) + part.offset;
  parallel_for(panels_of(part.rows), 1, [&](int64_t begin, int64_t end) {
    std::memset(panels + begin * each, 0, (end - begin) * each);
    Row row = {};
    for (int64_t panel = begin; panel < end; ++panel) {
      uint8_t* span = panels + panel * each;
      int64_t first = panel * PANEL, rows = std::min(PANEL, part.rows - first);
      for (int64_t k = 0; k < matrix->columns; k += SPAN) {
        int64_t columns = std::min(SPAN, matrix->columns - k);
        SpanLayout layout = span_layout(part, columns);
        for (int64_t r = 0; r < rows; ++r) {
          read(first + r, k, columns, row);
          put_row(part, layout, columns, row, r, span);
        }
        span += layout.bytes;
      }
    }
  });
}

int64_t header_bytes(int64_t parts) { return round_up(sizeof(PackedMatrix) + parts * sizeof(PackedPart), ALIGNMENT); }

// The nearest f16, ties to even.
uint16_t to_half(float x) {
  uint32_t bits = std::bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (size >= 0x477ff000) return uint16_t(sign | 0x7c00);
  if (size < 0x38800000)  // a sum whose last bit is worth that of a small f16
    return uint16_t(sign | (std::bit_cast<uint32_t>(std::bit_cast<float>(size) + 0.5f) - 0x3f000000));
  return uint16_t(sign | (size + 0xc8000fff + (size >> 13 & 1)) >> 13);
}

}  // namespace

int64_t packed_bytes(int64_t columns, const PackedPart* parts, int64_t count) {
  int64_t bytes = header_bytes(count);
  for (int64_t i = 0; i < count; ++i)
    bytes += panels_of(parts[i].rows) * panel_bytes(parts[i], round_up(columns, BLOCK));
  return bytes;
}

void plan_matrix(PackedMatrix* matrix, int64_t columns, const PackedPart* parts, int64_t count) {
  *matrix = {packed_bytes(columns, parts, count), 0, round_up(columns, BLOCK), count};
  int64_t offset = header_bytes(count);
  PackedPart* placed = reinterpret_cast<PackedPart*>(matrix + 1);
  for (int64_t i = 0; i < count; ++i) {
    placed[i] = parts[i];
    placed[i].offset = offset;
    matrix->rows += parts[i].rows;
    offset += panels_of(parts[i].rows) * panel_bytes(parts[i], matrix->columns);
  }
}

bool gguf_packing(int type, PackedPart& part) {
  const Type* found = find(type);
  if (found) part = found->packing;
  return found;
}

int64_t gguf_row_bytes(int id, int64_t columns) {
  const Type& type = *find(id);
  return columns / type.columns * type.bytes;
}

void pack_gguf(PackedMatrix* matrix, int64_t index, int id, const uint8_t* blocks, const int64_t* order) {
  const Type& type = *find(id);
  int64_t row_bytes = gguf_row_bytes(id, matrix->columns);
  pack(matrix, parts_of(matrix)[index], [&](int64_t r, int64_t first, int64_t columns, Row& row) {
    const uint8_t* block = blocks + (order ? order[r] : r) * row_bytes + first / type.columns * type.bytes;
    for (int i = 0; i < columns / type.columns; ++i, block += type.bytes) type.read(block, i, row);
  });
}

void pack_codes(PackedMatrix* matrix, int64_t index, int64_t width, const uint8_t* codes, const float* scales,
                const float* minimums) {
  const PackedPart& part = parts_of(matrix)[index];
  int64_t row_groups = width / part.group;
  pack(matrix, part, [&](int64_t r, int64_t first, int64_t columns, Row& row) {
    int64_t present = std::min(width - first, columns), groups = ceil_div(columns, part.group);
    std::memcpy(row.codes, codes + r * width + first, present);
    std::memset(row.codes + present, 0, columns - present);
    for (int64_t g = 0; g < groups; ++g) {
      int64_t at = first / part.group + g;
      row.scales[g] = at < row_groups ? scales[r * row_groups + at] : 0.f;
      row.half_scales[g] = to_half(row.scales[g]);
      if (!part.minimums) continue;
      row.minimums[g] = at < row_groups ? minimums[r * row_groups + at] : 0.f;
      row.half_minimums[g] = to_half(row.minimums[g]);
    }
  });
}

}  // namespace octavo
