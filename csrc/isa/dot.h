// What quantized products are made of: products of bytes, exact in int32, and the one fused multiply-add in float32.
#pragma once

#include "vec.h"
#ifdef __ARM_NEON
#include <arm_neon.h>
#endif

namespace octavo::OCTAVO_ISA {
namespace {

inline i32v splat(int32_t x) { return i32v{} + x; }

// dot(sum, w, x) adds to each lane the four products of its bytes of w and of x. x is signed, within ±127; w is signed
// or unsigned, as the instruction likes it.
#if defined(__AVX512VNNI__)
constexpr bool UNSIGNED = true;
inline i32v dot(i32v sum, i32v w, i32v x) { return (i32v)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x); }
#elif defined(__AVXVNNI__)
constexpr bool UNSIGNED = true;
inline i32v dot(i32v sum, i32v w, i32v x) {
  return (i32v)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x);
}
#elif defined(__AVX2__)
// Products of unsigned and signed bytes are added in pairs to 16 bits, where 2 * 255 * 127 has no room, 2 * 128 * 127
// has: w gives its sign to x.
constexpr bool UNSIGNED = false;
inline i32v dot(i32v sum, i32v w, i32v x) {
  __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)w), _mm256_sign_epi8((__m256i)x, (__m256i)w));
  return sum + (i32v)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr bool UNSIGNED = false;
inline i32v dot(i32v sum, i32v w, i32v x) { return (i32v)vdotq_s32((int32x4_t)sum, (int8x16_t)w, (int8x16_t)x); }
#elif defined(__SSE2__)
constexpr bool UNSIGNED = false;
inline i32v dot(i32v sum, i32v w, i32v x) {
  typedef int16_t i16v __attribute__((vector_size(16)));
  i16v even = (i16v)_mm_madd_epi16((__m128i)(((i16v)w << 8) >> 8), (__m128i)(((i16v)x << 8) >> 8));
  return sum + (i32v)even + (i32v)_mm_madd_epi16((__m128i)((i16v)w >> 8), (__m128i)((i16v)x >> 8));
}
#else
constexpr bool UNSIGNED = false;
inline i32v dot(i32v sum, i32v w, i32v x) {
  for (int shift = 24; shift >= 0; shift -= 8) sum += ((w << shift) >> 24) * ((x << shift) >> 24);
  return sum;
}
#endif

// a b + c, rounded once.
inline f32v fused(f32v a, f32v b, f32v c) {
#if defined(__AVX512F__)
  return (f32v)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (f32v)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
  return (f32v)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  for (int i = 0; i < W; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#endif
}

}  // namespace
}  // namespace octavo::OCTAVO_ISA
