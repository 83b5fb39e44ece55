// A span of a packed panel on its way through the first-level cache: scales become float32, codes become bytes.
#pragma once

#include "../quantized.h"
#include "vec.h"

namespace octavo::OCTAVO_ISA {
namespace {

constexpr int VECTORS = PANEL / W;  // with a lane for each row of a panel
constexpr int64_t LINE = 64;        // bytes: 4 columns of a panel

struct Span {
  int64_t blocks;
  bool unpacked;         // codes are bytes in `room`, else as they are packed
  const uint8_t* codes;  // [block][line][row][4] once unpacked
  alignas(LINE) uint8_t room[SPAN * PANEL];
  alignas(LINE) float scales[SPAN / 16 * PANEL];  // [block][row]; for groups of 16 [block][2][row]
  alignas(LINE) float minimums[SPAN / BLOCK * PANEL];
};

constexpr int64_t block_bytes(int bits) { return PANEL * BLOCK * bits / 8; }

// Asks memory for what lies some way behind a block: panels are too short for the processor to see one stream in them.
template <int BITS>
inline void prefetch(const uint8_t* block) {
  constexpr int64_t AHEAD = 3072;
  for (int64_t i = 0; i <= block_bytes(BITS); i += LINE) __builtin_prefetch(block + AHEAD + i);
}

// A vector of a line: bytes with the codes at their upper ends.
template <int BITS>
inline u32v line(const uint8_t* block, int number, int vector) {
  constexpr uint32_t UPPER = 0xf0f0f0f0, REST = BITS == 5 ? 0x08080808 : 0x0c0c0c0c;
  constexpr int FIELD = BITS - 4;  // bits left over of a code
  block += vector * W * 4;
  if constexpr (BITS == 8) return load_bits<u32v>(block + LINE * number);
  u32v pair = load_bits<u32v>(block + LINE * (number / 2));
  u32v code = (number % 2 ? pair : pair << 4) & UPPER;
  if constexpr (BITS == 5 || BITS == 6) {
    int shift = number * FIELD % 8 + FIELD - 4;  // from where the field ends to the middle of the byte
    u32v rest = load_bits<u32v>(block + LINE * (4 + number * FIELD / 8));
    code |= (shift < 0 ? rest << -shift : rest >> shift) & REST;
  }
  return code;
}

constexpr uint32_t FLIP = 0x80808080;  // xored: unsigned bytes whose zero is 128 become signed ones

template <int BITS>
void unpack_codes(const uint8_t* from, uint32_t flip, Span& to) {
  uint8_t* room = to.room;
  for (int64_t b = 0; b < to.blocks; ++b, from += block_bytes(BITS), room += block_bytes(8)) {
    for (int v = 0; v < VECTORS; ++v) {
      u32v lines[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) lines[i] = line<BITS>(from, i, v) ^ flip;
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) store_bits(room + LINE * i + v * W * 4, lines[i]);
    }
  }
}
void unpack_codes(int bits, const uint8_t* from, uint32_t flip, Span& to) {
  switch (bits) {
    case 4:
      return unpack_codes<4>(from, flip, to);
    case 5:
      return unpack_codes<5>(from, flip, to);
    case 6:
      return unpack_codes<6>(from, flip, to);
    default:
      return unpack_codes<8>(from, flip, to);
  }
}

inline f32v load_number(const float* from) { return load(from); }
inline f32v load_number(const f16* from) { return load(from); }
inline f32v load_number(const int8_t* from) {
  return __builtin_convertvector(__builtin_convertvector(load_bits<i8v>(from), i32v), f32v);
}

// Numbers [group][row] times `unit` [row], or times `factor` where there is none; each group's `repeat` times.
template <class T>
inline void unpack_numbers(const uint8_t* from, const f16* unit, float factor, int64_t groups, int64_t repeat,
                           float* to) {
  const T* numbers = reinterpret_cast<const T*>(from);
  for (int v = 0; v < VECTORS; ++v) {
    f32v times = unit ? load(unit + v * W) * factor : f32v{} + factor;
    for (int64_t g = 0; g < groups; ++g) {
      f32v product = load_number(numbers + g * PANEL + v * W) * times;
      for (int64_t i = 0; i < repeat; ++i) store(to + (g * repeat + i) * PANEL + v * W, product);
    }
  }
}

void unpack_scales(const PackedPart& part, const SpanLayout& layout, const uint8_t* from, Span& to) {
  int64_t groups = layout.groups, repeat = max(part.group / BLOCK, 1);
  float factor = 1.f / float(1 << (8 - part.bits));  // codes stand that much higher in their bytes
  const uint8_t *scales = from + layout.scales, *minimums = from + layout.minimums;
  auto unpack = [&](auto number, const f16* units) {
    using T = decltype(number);
    unpack_numbers<T>(scales, units, factor, groups, repeat, to.scales);
    if (part.minimums) unpack_numbers<T>(minimums, units ? units + PANEL : nullptr, 1.f, groups, repeat, to.minimums);
  };
  switch (part.scales) {
    case Scales::f16:
      return unpack(f16{}, nullptr);
    case Scales::f32:
      return unpack(float{}, nullptr);
    case Scales::nested:
      return unpack(int8_t{}, reinterpret_cast<const f16*>(from));
  }
}

// Scales always, codes if asked for.
void unpack(const PackedPart& part, const uint8_t* from, int64_t columns, bool codes_too, uint32_t flip, Span& to) {
  SpanLayout layout = span_layout(part, columns);
  to.blocks = columns / BLOCK;
  unpack_scales(part, layout, from, to);
  if (codes_too) unpack_codes(part.bits, from + layout.codes, flip, to);
  to.codes = codes_too ? to.room : from + layout.codes;
  to.unpacked = codes_too;
}

}  // namespace
}  // namespace octavo::OCTAVO_ISA
