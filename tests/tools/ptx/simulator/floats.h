// Floating-point numbers from and to their bits.
#pragma once

#include <cmath>
#include <cstring>

#include "instruction.h"

namespace ptx {

constexpr u64 NAN_BITS = 0x7fffffffu;  // of every float32 result that is not a number

template <class To, class From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "as many bits");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline u32 bits_of_float(float f) { return same_bits<u32>(f); }
inline u64 bits_of_double(double f) { return same_bits<u64>(f); }
inline float float_of(u64 bits) { return same_bits<float>(u32(bits)); }
inline double double_of(u64 bits) { return same_bits<double>(bits); }
inline float half_of(u16 bits) { return float(same_bits<_Float16>(bits)); }
inline u16 bits_of_half(float f) { return f != f ? 0x7fff : same_bits<u16>(_Float16(f)); }
inline u16 bits_of_bfloat(float f) {
  if (f != f) return 0x7fff;
  const u32 bits = bits_of_float(f);
  return u16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline float flushed(float f) {
  return std::fpclassify(f) == FP_SUBNORMAL ? std::copysign(0.0f, f) : f;
}
inline u64 canonical(float f) { return f != f ? NAN_BITS : bits_of_float(f); }
inline u64 canonical(double f) { return f != f ? 0x7fffffffffffffffull : bits_of_double(f); }

}  // namespace ptx
