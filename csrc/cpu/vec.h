// One small vector of floats, `Vec`, for the ISA that this file is compiled for: AVX-512, AVX2, or
// the 16 bytes that every x86-64 and aarch64 has. neuron.h is instantiated with it.
#pragma once

#include <cstdint>
#include <cstring>

#include "neuron.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace snn {
namespace SNN_ISA {  // the three builds of the kernels must not share one inline function

#if defined(__AVX512F__)
using Floats = __m512;
using Words = __m512i;
#elif defined(__AVX2__)
using Floats = __m256;
using Words = __m256i;
#else
typedef float Floats __attribute__((vector_size(16)));
#endif
typedef int32_t Ints __attribute__((vector_size(sizeof(Floats))));
typedef uint16_t Shorts __attribute__((vector_size(sizeof(Floats) / 2)));
constexpr int LANES = sizeof(Floats) / sizeof(float);

#if defined(__AVX512F__)
struct Mask {
  __mmask16 m;
};
SNN_HD Mask operator&(Mask a, Mask b) { return {static_cast<__mmask16>(a.m & b.m)}; }
#else
struct Mask {
  Ints m;  // all bits set where true
};
SNN_HD Mask operator&(Mask a, Mask b) { return {a.m & b.m}; }
#endif

struct Vec {
  Floats v;
  Vec() = default;
  SNN_HD Vec(Floats a) : v(a) {}
  SNN_HD explicit Vec(float a) : v(a - Floats{}) {}  // x - 0 keeps every x, -0 too
  static SNN_HD Vec load(const float* p) {
    Vec a;
    std::memcpy(&a.v, p, sizeof(Floats));
    return a;
  }
  SNN_HD void store(float* p) const { std::memcpy(p, &v, sizeof(Floats)); }
};

SNN_HD Vec operator+(Vec a, Vec b) { return a.v + b.v; }
SNN_HD Vec operator-(Vec a, Vec b) { return a.v - b.v; }
SNN_HD Vec operator*(Vec a, Vec b) { return a.v * b.v; }
SNN_HD Vec operator/(Vec a, Vec b) { return a.v / b.v; }

#if defined(__AVX512F__)
SNN_HD Mask operator>=(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
SNN_HD Mask operator>(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
SNN_HD Mask operator<(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
SNN_HD Mask operator<=(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
SNN_HD Vec select(Mask m, Vec a, Vec b) { return _mm512_mask_blend_ps(m.m, b.v, a.v); }
#else
SNN_HD Mask operator>=(Vec a, Vec b) { return {a.v >= b.v}; }
SNN_HD Mask operator>(Vec a, Vec b) { return {a.v > b.v}; }
SNN_HD Mask operator<(Vec a, Vec b) { return {a.v < b.v}; }
SNN_HD Mask operator<=(Vec a, Vec b) { return {a.v <= b.v}; }
SNN_HD Vec select(Mask m, Vec a, Vec b) { return m.m ? a.v : b.v; }
#endif

SNN_HD Ints bits(Vec a) { return reinterpret_cast<Ints>(a.v); }
SNN_HD Vec from_bits(Ints a) { return reinterpret_cast<Floats>(a); }
SNN_HD Vec absolute(Vec a) { return from_bits(bits(a) & 0x7fffffff); }

// exp to about 1 ulp: 2^n times a polynomial on |r| <= ln(2)/2 (Cody-Waite reduction). Results
// below the smallest normal number become 0.
SNN_HD Vec exponential(Vec x) {
  const Vec low(-87.33654f), high(88.72283f), magic(12582912.0f);  // 1.5 * 2^23: rounds to nearest
  const Vec y = select(x < low, low, select(x > high, high, x));
  const Vec z = y * Vec(1.44269504f) + magic;
  const Vec n = z - magic;
  const Vec r = (y - n * Vec(0.693359375f)) - n * Vec(-2.12194440e-4f);
  Vec p(1.9875691500e-4f);
  p = p * r + Vec(1.3981999507e-3f);
  p = p * r + Vec(8.3334519073e-3f);
  p = p * r + Vec(4.1665795894e-2f);
  p = p * r + Vec(1.6666665459e-1f);
  p = p * r + Vec(5.0000001201e-1f);
  p = ((p * (r * r)) + r) + Vec(1.0f);
  // Two steps of 2^(n/2): n reaches 128, whose power is not a float.
  const Ints e = bits(z) - bits(magic), half = e >> 1;
  p = p * from_bits((half + 127) << 23) * from_bits((e - half + 127) << 23);
  p = select(x < low, Vec(0.0f), p);
  return select(x > high, Vec(__builtin_inff()), select(x <= high, p, x));  // NaN stays NaN
}

// --- element types in memory ---------------------------------------------------------------------

struct bf16 {
  static constexpr uint16_t ONE = 0x3f80;
  uint16_t bits;
};
struct f16 {
  static constexpr uint16_t ONE = 0x3c00;
  uint16_t bits;
};

SNN_HD Vec widen(const float* p) { return Vec::load(p); }

SNN_HD Vec widen(const bf16* p) {
#if defined(__AVX512F__)
  const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16));
#elif defined(__AVX2__)
  const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16));
#else
  Shorts a;
  std::memcpy(&a, p, sizeof(a));
  return from_bits(__builtin_convertvector(a, Ints) << 16);
#endif
}

// Round to nearest even on the integer side: the conversion instructions flush denormals.
SNN_HD Shorts narrow(Vec a, bf16) {
  const Ints b = bits(a);
  const Ints rounded = b + 0x7fff + ((b >> 16) & 1);
#if defined(__AVX512F__)
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const Words quiet = _mm512_set1_epi32(0x7fc00000);
  const Words w = _mm512_mask_blend_epi32(nan, reinterpret_cast<Words>(rounded), quiet);
  return reinterpret_cast<Shorts>(_mm512_cvtepi32_epi16(_mm512_srli_epi32(w, 16)));
#else
  const Ints w = (a.v == a.v) ? rounded : Ints{} + 0x7fc00000;
  typedef uint32_t Unsigned __attribute__((vector_size(sizeof(Floats))));
  return __builtin_convertvector(reinterpret_cast<Unsigned>(w) >> 16, Shorts);
#endif
}

#if defined(__AVX512F__)
SNN_HD Vec widen(const f16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
SNN_HD Shorts narrow(Vec a, f16) {
  return reinterpret_cast<Shorts>(_mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__)
SNN_HD Vec widen(const f16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
SNN_HD Shorts narrow(Vec a, f16) {
  return reinterpret_cast<Shorts>(_mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
#else
// Half precision by hand, for machines without F16C.
SNN_HD float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, rest = h & 0x7fff;
  float a;
  uint32_t b;
  if (rest >= 0x7c00) {  // inf, NaN
    b = sign | 0x7f800000 | (rest << 13);
    std::memcpy(&a, &b, 4);
    return a;
  }
  b = rest << 13;  // exponent too small by 112; denormals come out right as well
  std::memcpy(&a, &b, 4);
  a *= 5.192296858534828e33f;  // 2^112
  std::memcpy(&b, &a, 4);
  b |= sign;
  std::memcpy(&a, &b, 4);
  return a;
}
SNN_HD uint16_t float_to_half(float a) {
  uint32_t b;
  std::memcpy(&b, &a, 4);
  const uint16_t sign = static_cast<uint16_t>((b >> 16) & 0x8000);
  b &= 0x7fffffff;
  if (b > 0x7f800000) return sign | 0x7e00;
  if (b >= 0x477ff000) return sign | 0x7c00;  // rounds beyond 65504
  if (b < 0x38800000) {                       // below 2^-14: a denormal, in units of 2^-24
    std::memcpy(&a, &b, 4);
    a += 0.5f;  // the unit in the last place of 0.5 is 2^-24
    std::memcpy(&b, &a, 4);
    return static_cast<uint16_t>(sign | (b - 0x3f000000));
  }
  b += 0xfff + ((b >> 13) & 1);
  return static_cast<uint16_t>(sign | ((b - 0x38000000) >> 13));
}
SNN_HD Vec widen(const f16* p) {
  Vec a;
  for (int k = 0; k < LANES; ++k) a.v[k] = half_to_float(p[k].bits);
  return a;
}
SNN_HD Shorts narrow(Vec a, f16) {
  Shorts out;
  for (int k = 0; k < LANES; ++k) out[k] = float_to_half(a.v[k]);
  return out;
}
#endif

// --- stores --------------------------------------------------------------------------------------

// stream: past the caches, where the instruction exists; p must then be aligned to the vector.
SNN_HD void put(float* p, Vec a, bool stream) {
#if defined(__AVX512F__)
  if (stream) return _mm512_stream_ps(p, a.v);
#elif defined(__AVX2__)
  if (stream) return _mm256_stream_ps(p, a.v);
#elif defined(__SSE2__)
  if (stream) return _mm_stream_ps(p, a.v);
#endif
  (void)stream;
  a.store(p);
}

SNN_HD void put_shorts(void* p, Shorts a, bool stream) {
#if defined(__AVX512F__)
  if (stream) return _mm256_stream_si256(static_cast<__m256i*>(p), reinterpret_cast<__m256i>(a));
#elif defined(__AVX2__)
  if (stream) return _mm_stream_si128(static_cast<__m128i*>(p), reinterpret_cast<__m128i>(a));
#endif
  (void)stream;
  std::memcpy(p, &a, sizeof(a));
}

template <class Half>
SNN_HD void put(Half* p, Vec a, bool stream) {
  put_shorts(p, narrow(a, Half()), stream);
}

// 1 where the mask is set, else 0.
SNN_HD void put_spikes(float* p, Mask m, bool stream) {
  put(p, select(m, Vec(1.0f), Vec(0.0f)), stream);
}

template <class Half>
SNN_HD void put_spikes(Half* p, Mask m, bool stream) {
#if defined(__AVX512F__)
  const __m256i one = _mm256_maskz_set1_epi16(m.m, Half::ONE);
  put_shorts(p, reinterpret_cast<Shorts>(one), stream);
#else
  put_shorts(p, __builtin_convertvector(m.m, Shorts) & Half::ONE, stream);
#endif
}

SNN_HD void fence_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

SNN_HD void prefetch(const void* p) { __builtin_prefetch(p); }

}  // namespace SNN_ISA
}  // namespace snn
