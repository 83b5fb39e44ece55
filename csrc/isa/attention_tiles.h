// Products of attention by AMX tiles: bfloat16 in, as the cache holds them, sums in float32.
#pragma once

#include "vec.h"

#ifdef __AMX_BF16__
namespace octavo::OCTAVO_ISA {
namespace {

// Registers 0 to 3 are sums, 4 and 6 queries or weights, 5 and 7 keys or values. Few rows take less time.
struct alignas(64) AttentionTiles {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16];
  constexpr explicit AttentionTiles(uint8_t m) : rows{m, m, m, m, m, 16, m, 16} {}
};
// Constants: GCC does not see that the instruction reads all of one.
constexpr AttentionTiles ATTENTION_TILES[] = {AttentionTiles(1), AttentionTiles(2), AttentionTiles(4),
                                              AttentionTiles(8), AttentionTiles(16)};

// A product sums pairs of neighbouring elements, of a head for scores and of keys for values, so those stand together
// in a word. Rows are filled up to whole tiles; what the added ones hold is never looked at.
class TileProducts {
 public:
  using Weight = bf16;

  TileProducts(int64_t rows, int64_t head_size, float* room)
      : rows_(rows), size_(head_size), width_(padded(head_size)) {
    int64_t all = (rows + 15) / 16 * 16;
    scores_MC_ = room;
    keys_ = reinterpret_cast<uint32_t*>(scores_MC_ + all * CHUNK);
    values_ = keys_ + width_ / 2 * CHUNK;
    q_MD_ = reinterpret_cast<bf16*>(values_ + CHUNK / 2 * width_);
    weights_MC_ = q_MD_ + all * width_;
    _tile_loadconfig(&ATTENTION_TILES[(rows > 1) + (rows > 2) + (rows > 4) + (rows > 8)]);
    if (size_ % 32)  // what is added to a head must be zeros
      for (int64_t i = 0; i < width_ / 2 * CHUNK; i += W) store_bits(keys_ + i, u32v{});
  }
  TileProducts(const TileProducts&) = delete;
  ~TileProducts() { _tile_release(); }

  void take_query(int64_t m, const bf16* q) {
    bf16* to = q_MD_ + m * width_;
    __builtin_memcpy(to, q, size_ * sizeof(bf16));
    __builtin_memset(to + size_, 0, (width_ - size_) * sizeof(bf16));
  }
  void take_keys(const char* const* k_rows, const char* const* v_rows, int64_t keys) {
    u32v words[W];
    for (int64_t j = 0; j < keys; j += W)
      for (int64_t d = 0; d < size_; d += 2 * W) {
        turned_words(k_rows + j, d * 2, (size_ - d) * 2, words);
        for (int i = 0; i < W; ++i) store_bits(keys_ + (d / 2 + i) * CHUNK + j, words[i]);
      }
    for (int64_t j = 0; j < CHUNK; j += 2) {
      uint32_t* to = values_ + j / 2 * width_;
      const bf16 *even = reinterpret_cast<const bf16*>(v_rows[j]), *odd = reinterpret_cast<const bf16*>(v_rows[j + 1]);
      // Past the end values are those of the last key, and their weights zero.
      for_vectors(size_, [&](int64_t d, auto get, auto) {
        store_bits(to + d, bit_cast<u32v>(get(even + d)) >> 16 | bit_cast<u32v>(get(odd + d)));
      });
    }
  }
  void score() {
    for (int64_t m = 0; m < rows_; m += 16) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t d = 0; d < width_; d += 32) {
        const uint32_t* keys = keys_ + d / 2 * CHUNK;
        _tile_loadd(4, q_MD_ + m * width_ + d, width_ * 2);
        _tile_loadd(5, keys, CHUNK * 4);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(5, keys + 16, CHUNK * 4);
        _tile_dpbf16ps(1, 4, 5);
        _tile_loadd(5, keys + 32, CHUNK * 4);
        _tile_dpbf16ps(2, 4, 5);
        _tile_loadd(5, keys + 48, CHUNK * 4);
        _tile_dpbf16ps(3, 4, 5);
      }
      float* to = scores_MC_ + m * CHUNK;
      _tile_stored(0, to, CHUNK * 4);
      _tile_stored(1, to + 16, CHUNK * 4);
      _tile_stored(2, to + 32, CHUNK * 4);
      _tile_stored(3, to + 48, CHUNK * 4);
    }
  }
  const float* scores(int64_t m) const { return scores_MC_ + m * CHUNK; }
  Weight* weights(int64_t m) { return weights_MC_ + m * CHUNK; }
  static void put(Weight* to, f32v weight) { store(to, weight); }
  void add_values(float* o_MD) {
    static_assert(CHUNK == 64);
    for (int64_t m = 0; m < rows_; m += 16) {
      _tile_loadd(4, weights_MC_ + m * CHUNK, CHUNK * 2);
      _tile_loadd(6, weights_MC_ + m * CHUNK + 32, CHUNK * 2);
      int64_t d = 0;
      for (; d + 64 <= width_; d += 64) add_some<4>(o_MD + m * width_ + d, values_ + d);
      if (d < width_) add_some<2>(o_MD + m * width_ + d, values_ + d);
    }
  }

 private:
  // 16 rows times COUNT times 16 elements of the values.
  template <int COUNT>
  void add_some(float* o, const uint32_t* values) {
    const uint32_t* later = values + CHUNK / 4 * width_;
    _tile_loadd(0, o, width_ * 4);
    _tile_loadd(1, o + 16, width_ * 4);
    if constexpr (COUNT > 2) {
      _tile_loadd(2, o + 32, width_ * 4);
      _tile_loadd(3, o + 48, width_ * 4);
    }
    _tile_loadd(5, values, width_ * 4);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(5, values + 16, width_ * 4);
    _tile_dpbf16ps(1, 4, 5);
    if constexpr (COUNT > 2) {
      _tile_loadd(5, values + 32, width_ * 4);
      _tile_dpbf16ps(2, 4, 5);
      _tile_loadd(5, values + 48, width_ * 4);
      _tile_dpbf16ps(3, 4, 5);
    }
    _tile_loadd(5, later, width_ * 4);
    _tile_dpbf16ps(0, 6, 5);
    _tile_loadd(5, later + 16, width_ * 4);
    _tile_dpbf16ps(1, 6, 5);
    if constexpr (COUNT > 2) {
      _tile_loadd(5, later + 32, width_ * 4);
      _tile_dpbf16ps(2, 6, 5);
      _tile_loadd(5, later + 48, width_ * 4);
      _tile_dpbf16ps(3, 6, 5);
    }
    _tile_stored(0, o, width_ * 4);
    _tile_stored(1, o + 16, width_ * 4);
    if constexpr (COUNT > 2) {
      _tile_stored(2, o + 32, width_ * 4);
      _tile_stored(3, o + 48, width_ * 4);
    }
  }

  int64_t rows_, size_, width_;
  float* scores_MC_;
  uint32_t *keys_, *values_;  // [pair of elements][key], [pair of keys][element]
  bf16 *q_MD_, *weights_MC_;
};

}  // namespace
}  // namespace octavo::OCTAVO_ISA
#endif
