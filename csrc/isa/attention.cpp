// Attention of one tile of query rows over paged keys and values: online softmax in float32.
//
// The tile packs the query heads that share a key/value head, so each key is read once for all of them. Keys are taken
// CHUNK at a time, chunks starting at multiples of CHUNK from position 0: every query row sees the same sums in the
// same order whatever else is in the tile. A chunk that is masked for a row leaves that row's bits unchanged.
// (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"; Dao 2023, "FlashAttention-2".)
//
// What multiplies is a `Products`: keys and values of a chunk are made ready for it once, then all rows use them.
#include "attention_tiles.h"
#include "vec.h"

namespace octavo::OCTAVO_ISA {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int COLUMNS = 4;  // vectors of a register tile: 32 registers
#else
constexpr int COLUMNS = 2;  // 16 registers
#endif
constexpr int ROWS = 6;
#ifdef __AMX_BF16__
constexpr int64_t TILE_ROWS = 64;  // four tiles
#else
constexpr int64_t TILE_ROWS = 5 * ROWS;
#endif
constexpr float NOTHING = -__builtin_inff();
// How far scores may rise above the one that weights are relative to, as a power of two, before that one follows: what
// was summed up need rarely be scaled.
constexpr float MARGIN = 8.f;

// c[R][C*W] (+)= a[R][depth] * b[depth][C*W]; each element is one chain of sums along depth.
template <int R, int C>
inline void panel(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t depth,
                  bool add) {
  f32v sum[R][C];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) sum[r][j] = add ? load(c + r * ldc + j * W) : f32v{};
  for (int64_t k = 0; k < depth; ++k, b += ldb) {
    f32v row[C];
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) {
      row[j] = load(b + j * W);
      in_register(row[j]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      f32v x = splat(a[r * lda + k]);
#pragma GCC unroll 4
      for (int j = 0; j < C; ++j) sum[r][j] += x * row[j];
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) store(c + r * ldc + j * W, sum[r][j]);
}

template <int C>
void column(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t rows,
            int64_t depth, bool add) {
  for (; rows >= ROWS; rows -= ROWS, a += ROWS * lda, c += ROWS * ldc)
    panel<ROWS, C>(a, lda, b, ldb, c, ldc, depth, add);
  static_assert(ROWS == 6);
  switch (rows) {
    case 5:
      return panel<5, C>(a, lda, b, ldb, c, ldc, depth, add);
    case 4:
      return panel<4, C>(a, lda, b, ldb, c, ldc, depth, add);
    case 3:
      return panel<3, C>(a, lda, b, ldb, c, ldc, depth, add);
    case 2:
      return panel<2, C>(a, lda, b, ldb, c, ldc, depth, add);
    case 1:
      return panel<1, C>(a, lda, b, ldb, c, ldc, depth, add);
  }
}

// c[rows][width] (+)= a[rows][depth] * b[depth][width], width a multiple of W; b and c have rows of `width` floats.
void multiply(const float* a, int64_t lda, const float* b, float* c, int64_t rows, int64_t width, int64_t depth,
              bool add) {
  int64_t j = 0;
  for (; j + COLUMNS * W <= width; j += COLUMNS * W)
    column<COLUMNS>(a, lda, b + j, width, c + j, width, rows, depth, add);
  for (; j < width; j += W) column<1>(a, lda, b + j, width, c + j, width, rows, depth, add);
}

// Products in float32. Weights take the place of the scores they come from.
template <class T>
class Products {
 public:
  using Weight = float;

  Products(int64_t rows, int64_t head_size, float* room)
      : rows_(rows),
        size_(head_size),
        width_(padded(head_size)),
        q_MD_(room),
        scores_MC_(q_MD_ + rows * width_),
        keys_DC_(scores_MC_ + rows * CHUNK),
        values_CD_(keys_DC_ + width_ * CHUNK) {}
  void take_query(int64_t m, const T* q) {
    for_vectors(size_, [&](int64_t d, auto get, auto put) { put(q_MD_ + m * width_ + d, get(q + d)); });
  }
  void take_keys(const char* const* k_rows, const char* const* v_rows, int64_t keys) {
    turn(k_rows, keys, T{});
    for (int64_t j = 0; j < keys; ++j)
      for_vectors(size_, [&](int64_t d, auto get, auto) {
        store(values_CD_ + j * width_ + d, get(reinterpret_cast<const T*>(v_rows[j]) + d));
      });
    keys_ = keys;
  }
  void score() { multiply(q_MD_, width_, keys_DC_, scores_MC_, rows_, CHUNK, size_, false); }
  const float* scores(int64_t m) const { return scores_MC_ + m * CHUNK; }
  Weight* weights(int64_t m) { return scores_MC_ + m * CHUNK; }
  static void put(Weight* to, f32v weight) { store(to, weight); }
  void add_values(float* o_MD) { multiply(scores_MC_, CHUNK, values_CD_, o_MD, rows_, width_, keys_, true); }

 private:
  // Keys widened and turned over, so that scores of W keys are computed side by side.
  void turn(const char* const* rows, int64_t keys, float) {
    u32v words[W];
    for (int64_t j = 0; j < keys; j += W)
      for (int64_t d = 0; d < size_; d += W) {
        turned_words(rows + j, d * 4, (size_ - d) * 4, words);
        for (int i = 0; i < W; ++i) store_bits(keys_DC_ + (d + i) * CHUNK + j, words[i]);
      }
  }
  template <class U>
  void turn(const char* const* rows, int64_t keys, U type) {
    u32v words[W];  // each holds two neighbouring elements
    for (int64_t j = 0; j < keys; j += W)
      for (int64_t d = 0; d < size_; d += 2 * W) {
        turned_words(rows + j, d * 2, (size_ - d) * 2, words);
        for (int i = 0; i < W; ++i) {
          float* to = keys_DC_ + (d + 2 * i) * CHUNK + j;
          store(to, widen(words[i] & 0xffffu, type));
          store(to + CHUNK, widen(words[i] >> 16, type));
        }
      }
  }

  int64_t rows_, size_, width_, keys_ = 0;
  float *q_MD_, *scores_MC_, *keys_DC_, *values_CD_;
};

template <class T>
auto products_for(int64_t rows, int64_t head_size, float* room, T) {
  return Products<T>(rows, head_size, room);
}
#ifdef __AMX_BF16__
inline TileProducts products_for(int64_t rows, int64_t head_size, float* room, bf16) {
  return TileProducts(rows, head_size, room);
}
#endif

// What a query row is to the softmax.
struct Row {
  int64_t from, to;  // positions of the keys it sees
  float& highest;
  float* lane_sums;  // [W]: kept apart until the end, a fixed order
  float* values;     // [width]
};
// Scores of a chunk become weights; the row's largest score, sum and values follow.
template <class Products>
inline void weigh(Products& products, int64_t m, const Row& row, int64_t width, int64_t first_key, float scale,
                  float softcap) {
  constexpr int N = CHUNK / W;
  f32v score[N], top = splat(NOTHING);
  i32v lane;
  for (int i = 0; i < W; ++i) lane[i] = i;
  const float* scores = products.scores(m);
  auto* weights = products.weights(m);
  bool whole = row.from <= first_key && first_key + CHUNK - 1 <= row.to;
  for (int j = 0; j < N; ++j) {
    score[j] = load(scores + j * W) * scale;
    if (softcap > 0.f) score[j] = softcap * LOG2E * tanh(score[j] * (1.f / softcap));
    if (!whole) {
      i32v key = lane + int32_t(first_key + j * W);
      score[j] = ((key < int32_t(row.from)) | (key > int32_t(row.to))) ? splat(NOTHING) : score[j];
    }
    top = max(top, score[j]);
  }
  float before = row.highest, found = largest(top)[0], now = before;
  f32v sums = load(row.lane_sums);
  if (found > before + MARGIN) {
    f32v shrink = exp2(splat(before - found));
    sums *= shrink;
    for (int64_t d = 0; d < width; d += W) store(row.values + d, load(row.values + d) * shrink);
    row.highest = now = found;
  } else if (before == NOTHING) {  // no key is seen; NaN among them stays one
    for (int j = 0; j < N; ++j) {
      f32v weight = score[j] == score[j] ? f32v{} : score[j];
      sums += weight;
      Products::put(weights + j * W, weight);
    }
    store(row.lane_sums, sums);
    return;
  }
  for (int j = 0; j < N; ++j) {
    f32v weight = exp2(score[j] - now);
    sums += weight;
    Products::put(weights + j * W, weight);
  }
  store(row.lane_sums, sums);
}

// Where the chunk's keys and values lie; the last ones again past their end.
template <class T>
void find_rows(const Attention& a, const AttentionTile& tile, int64_t first, int64_t keys, const char** k_rows,
               const char** v_rows) {
  const int32_t* table = a.block_tables + tile.row * a.table_stride;
  int64_t bytes = a.head_size * sizeof(T), block = first / a.block_size, offset = first - block * a.block_size;
  for (int64_t j = 0; j < keys; ++block, offset = 0) {
    int64_t at = ((table[block] * a.kv_heads + tile.kv_head) * a.block_size + offset) * bytes;
    for (; j < keys && offset < a.block_size; ++j, ++offset, at += bytes) {
      k_rows[j] = static_cast<const char*>(a.k) + at;
      v_rows[j] = static_cast<const char*>(a.v) + at;
    }
  }
  for (int64_t j = keys; j < CHUNK; ++j) k_rows[j] = k_rows[keys - 1], v_rows[j] = v_rows[keys - 1];
}

void fetch(const Attention& a, const AttentionTile& tile, int64_t key_begin, int64_t key_end) {
  const int32_t* table = a.block_tables + tile.row * a.table_stride;
  int64_t token = a.head_size * (a.dtype == DType::f32 ? 4 : 2);
  for (int64_t key = key_begin, end = min(key_end, key_begin + CHUNK), keys; key < end; key += keys) {
    int64_t block = key / a.block_size, offset = key - block * a.block_size;
    int64_t at = ((table[block] * a.kv_heads + tile.kv_head) * a.block_size + offset) * token;
    keys = min(a.block_size - offset, end - key);
    for (int64_t i = 0; i < keys * token; i += 64) {
      __builtin_prefetch(static_cast<const char*>(a.k) + at + i, 0, 2);
      __builtin_prefetch(static_cast<const char*>(a.v) + at + i, 0, 2);
    }
  }
}

template <class T>
void attend(const Attention& a, const AttentionTile& tile, int64_t key_begin, int64_t key_end, float* state,
            float* scratch) {
  int64_t group = a.heads / a.kv_heads, rows = tile.tokens * group, width = padded(a.head_size);
  float *highest = state, *sum_M = state + rows, *o_MD = state + 2 * rows, *lane_sums = scratch;
  auto products = products_for(rows, a.head_size, scratch + rows * 16, T{});
  for (int64_t m = 0; m < rows; ++m) {
    int64_t token = tile.token + m / group, head = tile.kv_head * group + m % group;
    products.take_query(m, static_cast<const T*>(a.q) + token * a.q_stride + head * a.head_size);
    highest[m] = NOTHING;
  }
  for (int64_t i = 0; i < rows * 16; ++i) lane_sums[i] = 0.f;
  for (int64_t i = 0; i < rows * width; ++i) o_MD[i] = 0.f;
  float scale = a.softcap > 0.f ? a.scale : a.scale * LOG2E;

  for (int64_t first = key_begin; first < key_end; first += CHUNK) {
    int64_t keys = min(CHUNK, key_end - first);
    if (tile.tokens == 1 && first + CHUNK < key_end) fetch(a, tile, first + CHUNK, key_end);
    const char *k_rows[CHUNK], *v_rows[CHUNK];
    find_rows<T>(a, tile, first, keys, k_rows, v_rows);
    products.take_keys(k_rows, v_rows, keys);
    products.score();
    for (int64_t m = 0; m < rows; ++m) {
      int64_t to = a.window < 0 ? a.seq_lens[tile.row] - 1 : tile.position + m / group;
      int64_t from = a.window > 0 ? max(0, to - a.window + 1) : 0;
      weigh(products, m, {from, to, highest[m], lane_sums + m * 16, o_MD + m * width}, width, first, scale, a.softcap);
    }
    products.add_values(o_MD);
  }
  for (int64_t m = 0; m < rows; ++m) sum_M[m] = sum(load(lane_sums + m * 16));
}

// Takes in the keys that follow those of `state`.
void merge(float* state, const float* part, int64_t rows, int64_t width) {
  for (int64_t m = 0; m < rows; ++m) {
    float before = state[m], other = part[m], now = other > before ? other : before;
    if (other == NOTHING && part[rows + m] == 0.f) continue;
    f32v keep = exp2(splat(before - now)), take = exp2(splat(other - now));
    state[m] = now;
    state[rows + m] = state[rows + m] * keep[0] + part[rows + m] * take[0];
    float* o = state + 2 * rows + m * width;
    const float* p = part + 2 * rows + m * width;
    for (int64_t d = 0; d < width; d += W) store(o + d, load(o + d) * keep + load(p + d) * take);
  }
}

template <class T>
void finish(const Attention& a, const AttentionTile& tile, const float* state) {
  int64_t group = a.heads / a.kv_heads, rows = tile.tokens * group, width = padded(a.head_size);
  for (int64_t m = 0; m < rows; ++m) {
    float scale = 1.f / state[rows + m];
    const float* o = state + 2 * rows + m * width;
    int64_t token = tile.token + m / group, head = tile.kv_head * group + m % group;
    T* to = static_cast<T*>(a.out) + (token * a.heads + head) * a.head_size;
    for_vectors(a.head_size, [&](int64_t d, auto, auto put) { put(to + d, load(o + d) * scale); });
  }
}

void attend_any(const Attention& a, const AttentionTile& tile, int64_t begin, int64_t end, float* state,
                float* scratch) {
  switch (a.dtype) {
    case DType::f32:
      return attend<float>(a, tile, begin, end, state, scratch);
    case DType::bf16:
      return attend<bf16>(a, tile, begin, end, state, scratch);
    case DType::f16:
      return attend<f16>(a, tile, begin, end, state, scratch);
  }
}
void finish_any(const Attention& a, const AttentionTile& tile, const float* state) {
  switch (a.dtype) {
    case DType::f32:
      return finish<float>(a, tile, state);
    case DType::bf16:
      return finish<bf16>(a, tile, state);
    case DType::f16:
      return finish<f16>(a, tile, state);
  }
}

}  // namespace

extern const AttentionKernels attention_table;
const AttentionKernels attention_table = {TILE_ROWS, fetch, attend_any, merge, finish_any};

}  // namespace octavo::OCTAVO_ISA
