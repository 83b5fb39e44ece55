// Integer products by AMX: 16 rows of activations times 16 outputs of a panel at a time.
#pragma once

#include "span.h"

namespace octavo::OCTAVO_ISA {
namespace {

constexpr int64_t DOTS = PANEL * PANEL;  // int32 [row][output] of a block, or of half a block

#ifdef __AMX_INT8__
constexpr bool HAS_TILES = true;

// Registers 0 and 1 are sums. Of a block, 2 and 3 are activations, 4 and 5 weights; of half a block, 6 and 7.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 32, 32, 64, 64, 16, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 8, 8, 16, 4};
};
inline void configure_tiles() {
  static constexpr TileConfig config;  // a constant: GCC does not see that the instruction reads all of it
  _tile_loadconfig(&config);
}
inline void release_tiles() { _tile_release(); }

// The numbers of registers must be literals.
#define OCTAVO_TILE_DOTS(sum, x, w, activations, weights, to) \
  _tile_zero(sum);                                            \
  _tile_loadd(x, activations, BLOCK);                         \
  _tile_loadd(w, weights, LINE);                              \
  if constexpr (SIGNED)                                       \
    _tile_dpbssd(sum, x, w);                                  \
  else                                                        \
    _tile_dpbsud(sum, x, w);                                  \
  _tile_stored(sum, to, PANEL * sizeof(int32_t))

// For `blocks` blocks: activations [block][row][BLOCK] with `rows` of 16 rows present (what is read as the others does
// not matter), weights [block][line][row][4], signed or not.
template <bool SIGNED>
inline void tile_dots(const int8_t* x, int64_t rows, const uint8_t* w, int64_t blocks, int32_t* to) {
  int64_t next = rows * BLOCK, b = 0;
  for (; b + 2 <= blocks; b += 2, x += 2 * next, w += 2 * block_bytes(8), to += 2 * DOTS) {
    OCTAVO_TILE_DOTS(0, 2, 4, x, w, to);
    OCTAVO_TILE_DOTS(1, 3, 5, x + next, w + block_bytes(8), to + DOTS);
  }
  if (b < blocks) {
    OCTAVO_TILE_DOTS(0, 2, 4, x, w, to);
  }
}
// The same for each half of a block.
template <bool SIGNED>
inline void tile_half_dots(const int8_t* x, int64_t rows, const uint8_t* w, int64_t blocks, int32_t* to) {
  for (int64_t b = 0; b < blocks; ++b, x += rows * BLOCK, w += block_bytes(8), to += 2 * DOTS) {
    OCTAVO_TILE_DOTS(0, 6, 7, x, w, to);
    OCTAVO_TILE_DOTS(1, 6, 7, x + BLOCK / 2, w + block_bytes(8) / 2, to + DOTS);
  }
}
#undef OCTAVO_TILE_DOTS

#else
constexpr bool HAS_TILES = false;
inline void configure_tiles() {}
inline void release_tiles() {}
template <bool>
inline void tile_dots(const int8_t*, int64_t, const uint8_t*, int64_t, int32_t*) {}
template <bool>
inline void tile_half_dots(const int8_t*, int64_t, const uint8_t*, int64_t, int32_t*) {}
#endif

}  // namespace
}  // namespace octavo::OCTAVO_ISA
