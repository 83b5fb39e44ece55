// x W^T for a few rows of x, bound by the reading of W: each weight is loaded and widened once per ROWS rows.
//
// Every output is a sum of products over W lanes, then over lanes, in an order that depends on the inner size alone:
// a row's result is the same however many rows come with it.
#include "vec.h"

namespace octavo::OCTAVO_ISA {
namespace {

constexpr int ROWS = 4;                   // of x
constexpr int OUTPUTS = W == 16 ? 4 : 2;  // rows of W at a time: ROWS * OUTPUTS sums stay in registers
constexpr int64_t PAIR = 2 * W;
// Weights asked from memory before they are needed: rows are too short for the CPU to see one long stream.
constexpr int64_t AHEAD = 4096;

template <class T>
int64_t pack_rows(const Linear& a, float* packed) {
  int64_t width = (a.in_features + PAIR - 1) / PAIR * PAIR;
  for (int64_t m = 0; m < a.tokens; ++m) {
    const T* x = static_cast<const T*>(a.x) + m * a.x_stride;
    for (int64_t k = 0; k < width; k += PAIR) {
      T some[PAIR] = {};
      __builtin_memcpy(some, x + k, min(PAIR, a.in_features - k) * sizeof(T));
      f32v first, second;
      load_pair(some, first, second);
      store(packed + m * width + k, first);
      store(packed + m * width + k + W, second);
    }
  }
  return width;
}

// sums[r][o]: lane sums of x[r] * w[o].
template <class T, int R>
inline void dots(const float* packed, int64_t width, const T* const* w, int64_t in_features, f32v (&sums)[R][OUTPUTS]) {
  auto step = [&](int64_t k, const T* const* from, int64_t at) {
    f32v first[OUTPUTS], second[OUTPUTS];
    for (int o = 0; o < OUTPUTS; ++o) load_pair(from[o] + at, first[o], second[o]);
    for (int r = 0; r < R; ++r) {
      f32v x = load(packed + r * width + k), y = load(packed + r * width + k + W);
      for (int o = 0; o < OUTPUTS; ++o) sums[r][o] += x * first[o];
      for (int o = 0; o < OUTPUTS; ++o) sums[r][o] += y * second[o];
    }
  };
  int64_t k = 0;
  for (; k + PAIR <= in_features; k += PAIR) {
    for (int o = 0; o < OUTPUTS; ++o) __builtin_prefetch(w[o] + k + AHEAD);
    step(k, w, k);
  }
  if (k < in_features) {
    T some[OUTPUTS][PAIR] = {};
    const T* rest[OUTPUTS];
    for (int o = 0; o < OUTPUTS; ++o) {
      __builtin_memcpy(some[o], w[o] + k, (in_features - k) * sizeof(T));
      rest[o] = some[o];
    }
    step(k, rest, 0);
  }
}

// R rows of x times W rows of the weight, from output n on.
template <class T, class Out, int R>
void tile(const Linear& a, const float* packed, int64_t width, int64_t row, int64_t n) {
  f32v sums_RW[R][W];
  const T* weight = static_cast<const T*>(a.weight);
  int64_t last = a.out_features - 1;
  for (int o = 0; o < W; o += OUTPUTS) {
    const T* w[OUTPUTS];
    for (int i = 0; i < OUTPUTS; ++i) w[i] = weight + min(n + o + i, last) * a.in_features;
    f32v some[R][OUTPUTS] = {};
    dots<T, R>(packed + row * width, width, w, a.in_features, some);
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < OUTPUTS; ++i) sums_RW[r][o + i] = some[r][i];
  }
  int64_t valid = min(W, a.out_features - n);
  for (int r = 0; r < R; ++r) {
    f32v y = sums(sums_RW[r]);
    if (a.bias) y += load_some(static_cast<const T*>(a.bias) + n, valid);
    store_some(static_cast<Out*>(a.out) + (row + r) * a.out_features + n, y, valid);
  }
}

template <class T, class Out>
void linear(const Linear& a, const float* packed, int64_t width, int64_t begin, int64_t end) {
  for (int64_t n = begin * W; n < min(end * W, a.out_features); n += W) {
    int64_t row = 0;
    for (; row + ROWS <= a.tokens; row += ROWS) tile<T, Out, ROWS>(a, packed, width, row, n);
    static_assert(ROWS == 4);
    switch (a.tokens - row) {
      case 3:
        tile<T, Out, 3>(a, packed, width, row, n);
        break;
      case 2:
        tile<T, Out, 2>(a, packed, width, row, n);
        break;
      case 1:
        tile<T, Out, 1>(a, packed, width, row, n);
        break;
    }
  }
}
template <class T>
void linear_to(const Linear& a, const float* packed, int64_t width, int64_t begin, int64_t end) {
  if (a.out_dtype == DType::f32)
    linear<T, float>(a, packed, width, begin, end);
  else
    linear<T, T>(a, packed, width, begin, end);
}

}  // namespace

int64_t pack_rows_any(const Linear& a, float* packed) {
  switch (a.dtype) {
    case DType::f32:
      return pack_rows<float>(a, packed);
    case DType::bf16:
      return pack_rows<bf16>(a, packed);
    case DType::f16:
      return pack_rows<f16>(a, packed);
  }
  return 0;
}
void linear_any(const Linear& a, const float* packed, int64_t width, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::f32:
      return linear_to<float>(a, packed, width, begin, end);
    case DType::bf16:
      return linear_to<bf16>(a, packed, width, begin, end);
    case DType::f16:
      return linear_to<f16>(a, packed, width, begin, end);
  }
}

}  // namespace octavo::OCTAVO_ISA
