// Attention of one tile of query rows over paged keys and values: online softmax in float32.
//
// The tile packs the query heads that share a key/value head, so each key is read once for all of them. Keys are taken
// CHUNK at a time, chunks starting at multiples of CHUNK from position 0: every query row sees the same sums in the
// same order whatever else is in the tile. A chunk that is masked for a row leaves that row's bits unchanged.
// (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"; Dao 2023, "FlashAttention-2".)
#include "vec.h"

namespace octavo::OCTAVO_ISA {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int COLUMNS = 4;  // vectors of a register tile: 32 registers
#else
constexpr int COLUMNS = 2;  // 16 registers
#endif
constexpr int ROWS = 6;
constexpr float NOTHING = -__builtin_inff();

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

// W rows of 32-bit words, `have` of them valid from `offset` on, turned over.
inline void turned_words(const char* const* rows, int64_t offset, int64_t have, u32v (&words)[W]) {
  for (int i = 0; i < W; ++i) {
    if (have >= W * 4) {
      words[i] = load_bits<u32v>(rows[i] + offset);
    } else {
      char padded[W * 4] = {};
      __builtin_memcpy(padded, rows[i] + offset, have);
      words[i] = load_bits<u32v>(padded);
    }
  }
  transpose(words);
}

// keys_DC: the chunk's keys widened and turned over, so that scores of W keys are computed side by side.
void turn_keys(const char* const* rows, int64_t keys, int64_t head_size, float* keys_DC, float) {
  u32v words[W];
  for (int64_t j = 0; j < keys; j += W)
    for (int64_t d = 0; d < head_size; d += W) {
      turned_words(rows + j, d * 4, (head_size - d) * 4, words);
      for (int i = 0; i < W; ++i) store_bits(keys_DC + (d + i) * CHUNK + j, words[i]);
    }
}
template <class T>
void turn_keys(const char* const* rows, int64_t keys, int64_t head_size, float* keys_DC, T type) {
  u32v words[W];  // each holds two neighbouring elements
  for (int64_t j = 0; j < keys; j += W)
    for (int64_t d = 0; d < head_size; d += 2 * W) {
      turned_words(rows + j, d * 2, (head_size - d) * 2, words);
      for (int i = 0; i < W; ++i) {
        float* to = keys_DC + (d + 2 * i) * CHUNK + j;
        store(to, widen(words[i] & 0xffffu, type));
        store(to + CHUNK, widen(words[i] >> 16, type));
      }
    }
}

// One query row's scores of a chunk become weights; its running maximum, sum and values follow.
struct Row {
  float* scores;  // [CHUNK]
  float& highest;
  float* lane_sums;  // [W]: kept apart until the end, a fixed order
  float* values;     // [width]
};
inline void weigh(Row row, int64_t width, int64_t first_key, int64_t from, int64_t to, float softcap) {
  constexpr int N = CHUNK / W;
  f32v score[N], top = splat(NOTHING);
  i32v lane;
  for (int i = 0; i < W; ++i) lane[i] = i;
  bool whole = from <= first_key && first_key + CHUNK - 1 <= to;
  for (int j = 0; j < N; ++j) {
    score[j] = load(row.scores + j * W);
    if (softcap > 0.f) score[j] = softcap * LOG2E * tanh(score[j] * (1.f / softcap));
    if (!whole) {
      i32v key = lane + int32_t(first_key + j * W);
      score[j] = ((key < int32_t(from)) | (key > int32_t(to))) ? splat(NOTHING) : score[j];
    }
    top = max(top, score[j]);
  }
  float before = row.highest, now = largest(top);
  now = now > before ? now : before;
  if (now == NOTHING) {
    for (int j = 0; j < N; ++j) store(row.scores + j * W, score[j] == score[j] ? f32v{} : score[j]);
    return;
  }
  f32v sums = load(row.lane_sums);
  if (now != before) {
    f32v shrink = exp2(splat(before - now));
    sums *= shrink;
    for (int64_t d = 0; d < width; d += W) store(row.values + d, load(row.values + d) * shrink);
    row.highest = now;
  }
  for (int j = 0; j < N; ++j) {
    f32v weight = exp2(score[j] - now);
    sums += weight;
    store(row.scores + j * W, weight);
  }
  store(row.lane_sums, sums);
}

template <class T>
void pack_queries(const Attention& a, const AttentionTile& tile, float scale, float* q_MD) {
  int64_t group = a.heads / a.kv_heads, width = padded(a.head_size);
  for (int64_t m = 0; m < tile.tokens * group; ++m) {
    int64_t token = tile.token + m / group, head = tile.kv_head * group + m % group;
    const T* from = static_cast<const T*>(a.q) + token * a.q_stride + head * a.head_size;
    for_vectors(a.head_size, [&](int64_t d, auto get, auto put) { put(q_MD + m * width + d, get(from + d) * scale); });
  }
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
  for (int64_t j = keys; j < CHUNK; ++j) k_rows[j] = k_rows[keys - 1];
}

template <class T>
void attend(const Attention& a, const AttentionTile& tile, int64_t key_begin, int64_t key_end, float* state,
            float* scratch) {
  int64_t group = a.heads / a.kv_heads, rows = tile.tokens * group, size = a.head_size, width = padded(size);
  float *highest = state, *sum_M = state + rows, *o_MD = state + 2 * rows;
  float *q_MD = scratch, *scores_MC = q_MD + rows * width, *lane_sums = scores_MC + rows * CHUNK;
  float *keys_DC = lane_sums + rows * 16, *values_CD = keys_DC + width * CHUNK;
  for (int64_t m = 0; m < rows; ++m) highest[m] = NOTHING;
  for (int64_t i = 0; i < rows * 16; ++i) lane_sums[i] = 0.f;
  for (int64_t i = 0; i < rows * width; ++i) o_MD[i] = 0.f;
  pack_queries<T>(a, tile, a.softcap > 0.f ? a.scale : a.scale * LOG2E, q_MD);

  for (int64_t first = key_begin; first < key_end; first += CHUNK) {
    int64_t keys = min(CHUNK, key_end - first);
    const char *k_rows[CHUNK], *v_rows[CHUNK];
    find_rows<T>(a, tile, first, keys, k_rows, v_rows);
    turn_keys(k_rows, keys, size, keys_DC, T{});
    for (int64_t j = 0; j < keys; ++j)
      for_vectors(size, [&](int64_t d, auto get, auto) {
        store(values_CD + j * width + d, get(reinterpret_cast<const T*>(v_rows[j]) + d));
      });
    multiply(q_MD, width, keys_DC, scores_MC, rows, CHUNK, size, false);
    for (int64_t m = 0; m < rows; ++m) {
      int64_t to = tile.position + m / group, from = a.window > 0 ? max(0, to - a.window + 1) : 0;
      weigh({scores_MC + m * CHUNK, highest[m], lane_sums + m * 16, o_MD + m * width}, width, first, from, to,
            a.softcap);
    }
    multiply(scores_MC, CHUNK, values_CD, o_MD, rows, width, keys, true);
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

}  // namespace

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
void merge_any(float* state, const float* part, int64_t rows, int64_t width) { merge(state, part, rows, width); }
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

}  // namespace octavo::OCTAVO_ISA
