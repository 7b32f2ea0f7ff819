// bfloat16 and float16 in plain C++, by the definition of the formats: slow, and independent of
// vec.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "snncore.h"

namespace snn {

inline uint32_t bits_of(float a) {
  uint32_t b;
  std::memcpy(&b, &a, 4);
  return b;
}

inline float from_bits(uint32_t b) {
  float a;
  std::memcpy(&a, &b, 4);
  return a;
}

inline float widen(uint16_t a, Dtype dtype) {
  if (dtype == Dtype::bfloat16) return from_bits(static_cast<uint32_t>(a) << 16);
  const int exponent = a >> 10 & 31, mantissa = a & 1023;
  float b = exponent ? std::ldexp(1024.0f + static_cast<float>(mantissa), exponent - 25)
                     : std::ldexp(static_cast<float>(mantissa), -24);
  if (exponent == 31) b = mantissa ? NAN : INFINITY;
  return a & 0x8000 ? -b : b;
}

inline uint16_t narrow(float a, Dtype dtype) {
  const uint32_t b = bits_of(a);
  if (dtype == Dtype::bfloat16) {
    return static_cast<uint16_t>(std::isnan(a) ? 0x7fc0 : (b + 0x7fff + (b >> 16 & 1)) >> 16);
  }
  const uint16_t sign = b >> 16 & 0x8000;
  const double size = std::fabs(static_cast<double>(a));
  if (std::isnan(a)) return sign | 0x7e00;
  if (size >= 65520) return sign | 0x7c00;
  if (size < 0x1p-14) return static_cast<uint16_t>(sign | std::lrint(size * 0x1p24));
  int exponent;
  const double fraction = std::frexp(size, &exponent);  // in [1/2, 1)
  const long rounded = std::lrint(fraction * 2048);  // 1024 ... 2048: a carry raises the exponent
  return static_cast<uint16_t>(sign | (((exponent + 13) << 10) + rounded));
}

}  // namespace snn
