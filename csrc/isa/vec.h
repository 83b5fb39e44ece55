// Vectors of the widest kind the translation unit is compiled for, written once for every instruction set.
//
// Sources in csrc/isa/ are compiled once per instruction set, each time with another OCTAVO_ISA; everything they define
// lives in that namespace, so that no function compiled for a newer CPU can be linked into code that runs on every CPU.
// For the same reason they use no standard containers and no inline functions from outside.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "../octavo.h"

namespace octavo::OCTAVO_ISA {

#if defined(__AVX512F__)
inline constexpr int W = 16;  // float32 lanes
#elif defined(__AVX__)
inline constexpr int W = 8;
#else
inline constexpr int W = 4;
#endif

typedef float f32v __attribute__((vector_size(W * 4)));
typedef int32_t i32v __attribute__((vector_size(W * 4)));
typedef uint32_t u32v __attribute__((vector_size(W * 4)));
typedef uint16_t u16v __attribute__((vector_size(W * 2)));
typedef int8_t i8v __attribute__((vector_size(W)));

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class V>
static inline V load_bits(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
static inline void store_bits(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}
template <class To, class From>
static inline To bit_cast(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &v, sizeof to);
  return to;
}
static inline f32v splat(float x) { return x - f32v{}; }  // folds to a broadcast; + 0 would not
// Keeps a vector used several times in a register: compilers like to read it from memory at each use.
static inline void in_register(f32v& x) {
#if defined(__AVX512F__)
  asm("" : "+v"(x));
#elif defined(__x86_64__)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
}
static inline f32v max(f32v a, f32v b) { return a > b ? a : b; }  // b where either is NaN
static inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// Each 16-bit lane in a 32-bit one, and back. Older GCC splits the generic conversion of a 512-bit vector.
static inline u32v words(u16v x) {
#if defined(__AVX512F__)
  return (u32v)_mm512_cvtepu16_epi32((__m256i)x);
#else
  return __builtin_convertvector(x, u32v);
#endif
}
static inline u16v low_halves(u32v x) {
#if defined(__AVX512F__)
  return (u16v)_mm512_cvtepi32_epi16((__m512i)x);
#else
  return __builtin_convertvector(x, u16v);
#endif
}

// 16-bit floats standing in the low half of each 32-bit lane.
static inline f32v widen(u32v bits, bf16) { return bit_cast<f32v>(bits << 16); }
static inline f32v widen(u32v bits, f16) {
#if defined(__AVX512F__)
  return (f32v)_mm512_cvtph_ps((__m256i)low_halves(bits));
#elif defined(__F16C__)
  return (f32v)_mm256_cvtph_ps((__m128i)low_halves(bits));
#else
  u32v sign = (bits & 0x8000u) << 16, rest = (bits & 0x7fffu) << 13;
  f32v finite = bit_cast<f32v>(rest) * 0x1p112f;  // exact, subnormal numbers too
  u32v special = rest | 0x7f800000u;              // infinity and NaN
  return bit_cast<f32v>(sign | (rest >= 0x0f800000u ? special : bit_cast<u32v>(finite)));
#endif
}
// Round to nearest even, into the low half of each lane.
static inline u32v narrow(f32v x, bf16) {
  u32v bits = bit_cast<u32v>(x);
  u32v rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return x == x ? rounded : (bits >> 16) | 0x40u;
}
static inline u32v narrow(f32v x, f16) {
#if defined(__AVX512F__)
  return words((u16v)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  return words((u16v)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
  u32v bits = bit_cast<u32v>(x), sign = (bits >> 16) & 0x8000u, size = bits & 0x7fffffffu;
  u32v normal = (size + 0xc8000fffu + ((size >> 13) & 1u)) >> 13;  // exponent from bias 127 to 15, then round
  u32v subnormal = bit_cast<u32v>(bit_cast<f32v>(size) + 0.5f) - 0x3f000000u;
  u32v special = size > 0x7f800000u ? (u32v{} + 0x7e00u) : (u32v{} + 0x7c00u);
  u32v finite = size < 0x38800000u ? subnormal : normal;
  return sign | (size >= 0x477ff000u ? special : finite);
#endif
}

static inline f32v load(const float* p) { return load_bits<f32v>(p); }
template <class T>
static inline f32v load(const T* p) {
  return widen(words(load_bits<u16v>(p)), T{});
}
static inline void store(float* p, f32v x) { store_bits(p, x); }
template <class T>
static inline void store(T* p, f32v x) {
  store_bits(p, low_halves(narrow(x, T{})));
}
#ifdef __AVX512BF16__
// In one instruction; it takes subnormal numbers for zero.
static inline void store(bf16* p, f32v x) { store_bits(p, (u16v)_mm512_cvtneps_pbh((__m512)x)); }
#endif
// The first n lanes; the others read as zero and are not written.
template <class T>
static inline f32v load_some(const T* p, int64_t n) {
  T lanes[W] = {};
  __builtin_memcpy(lanes, p, n * sizeof(T));
  return load(lanes);
}
template <class T>
static inline void store_some(T* p, f32v x, int64_t n) {
  T lanes[W];
  store(lanes, x);
  __builtin_memcpy(p, lanes, n * sizeof(T));
}
// Calls fn(i, load, store) for every vector of a row of n elements; the last one may be partial.
template <class Fn>
static inline void for_vectors(int64_t n, Fn&& fn) {
  int64_t i = 0;
  for (; i + W <= n; i += W) fn(i, [](const auto* p) { return load(p); }, [](auto* p, f32v x) { store(p, x); });
  if (i < n)
    fn(i, [=](const auto* p) { return load_some(p, n - i); }, [=](auto* p, f32v x) { store_some(p, x, n - i); });
}

// 2W consecutive elements as two vectors, in whatever order is cheapest for the type but always the same.
static inline void load_pair(const float* p, f32v& a, f32v& b) { a = load(p), b = load(p + W); }
static inline void load_pair(const f16* p, f32v& a, f32v& b) { a = load(p), b = load(p + W); }
static inline void load_pair(const bf16* p, f32v& a, f32v& b) {
  u32v both = load_bits<u32v>(p);
  a = bit_cast<f32v>(both << 16), b = bit_cast<f32v>(both & 0xffff0000u);
}

// a0 b0 a1 b1 … of the lower (upper) halves of a and b.
template <int First, class V, size_t... I>
static inline V interleave(V a, V b, std::index_sequence<I...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, int(First + I / 2 + I % 2 * W)...);
#else
  return __builtin_shuffle(a, b, i32v{int32_t(First + I / 2 + I % 2 * W)...});
#endif
}
template <class V>
static inline V interleave_low(V a, V b) {
  return interleave<0>(a, b, std::make_index_sequence<W>());
}
template <class V>
static inline V interleave_high(V a, V b) {
  return interleave<W / 2>(a, b, std::make_index_sequence<W>());
}
// A W×W matrix turned over: log2(W) perfect shuffles.
template <class V>
static inline void transpose(V (&rows)[W]) {
#pragma GCC unroll 4
  for (int step = 1; step < W; step *= 2) {
    V next[W];
#pragma GCC unroll 8
    for (int i = 0; i < W / 2; ++i) {
      next[2 * i] = interleave_low(rows[i], rows[i + W / 2]);
      next[2 * i + 1] = interleave_high(rows[i], rows[i + W / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) rows[i] = next[i];
  }
}
// W rows of 32-bit words, `have` of them valid from `offset` on, turned over.
static inline void turned_words(const char* const* rows, int64_t offset, int64_t have, u32v (&words)[W]) {
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
// Lane i of the result is the sum of the lanes of rows[i].
static inline f32v sums(f32v (&rows)[W]) {
#pragma GCC unroll 4
  for (int n = W / 2; n > 0; n /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) rows[i] = interleave_low(rows[i], rows[i + n]) + interleave_high(rows[i], rows[i + n]);
  }
  return rows[0];
}
// Every lane joined with the one that stands N away in its group of 2 N.
template <int N, class Join, size_t... I>
static inline f32v joined(f32v x, const Join& join, std::index_sequence<I...>) {
#ifdef __clang__
  return join(x, __builtin_shufflevector(x, x, int(I ^ N)...));
#else
  return join(x, __builtin_shuffle(x, i32v{int32_t(I ^ N)...}));
#endif
}
// All lanes joined pair by pair, in every lane.
template <int N = W / 2, class Join>
static inline f32v join_lanes(f32v x, const Join& join) {
  if constexpr (N == 0)
    return x;
  else
    return join_lanes<N / 2>(joined<N>(x, join, std::make_index_sequence<W>()), join);
}
static inline float sum(f32v x) {
  return join_lanes(x, [](f32v a, f32v b) { return a + b; })[0];
}
static inline f32v largest(f32v x) {
  return join_lanes(x, [](f32v a, f32v b) { return max(a, b); });
}

// 2^x to about one unit in the last place for x <= 127; exactly 1 at 0, exactly 0 below -126, NaN for NaN.
static inline f32v exp2(f32v x) {
#if defined(__AVX512F__)
  f32v clamped = (f32v)_mm512_max_ps((__m512)splat(-126.f), (__m512)x);  // in this order NaN stays
#else
  f32v clamped = x < -126.f ? splat(-126.f) : x;
#endif
  f32v whole = (clamped + 12582912.f) - 12582912.f;  // 1.5 * 2^23 rounds to the nearest integer
  f32v f = clamped - whole;
  f32v p = splat(1.54614446986e-4f);  // minimax polynomial of 2^f for |f| <= 1/2
  p = p * f + 1.34004281776e-3f;
  p = p * f + 9.61805667852e-3f;
  p = p * f + 5.55032722667e-2f;
  p = p * f + 2.40226509223e-1f;
  p = p * f + 6.93147206703e-1f;
  p = p * f + 1.f;
#if defined(__AVX512F__)
  p = (f32v)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
  p *= bit_cast<f32v>((__builtin_convertvector(whole, i32v) + 127) << 23);
#endif
  return x < -126.f ? f32v{} : p;
}
inline constexpr float LOG2E = 1.44269504088896341f;

static inline f32v sigmoid(f32v x) {
  f32v t = x * -LOG2E;
  return 1.f / (1.f + exp2(t > 126.f ? splat(126.f) : t));
}
// 1 - erf(z) for z >= 0, to 1.5e-7 (Abramowitz and Stegun 1964, 7.1.26).
static inline f32v erfc(f32v z) {
  f32v t = 1.f / (1.f + 0.3275911f * z);
  f32v p = splat(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  return p * t * exp2(z * z * -LOG2E);
}
static inline f32v tanh(f32v x) { return 2.f * sigmoid(2.f * x) - 1.f; }

}  // namespace octavo::OCTAVO_ISA
