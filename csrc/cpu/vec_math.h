// Functions of `Vec` that only traced neurons use: of the C library lane by lane where there is no
// instruction (log, tanh, sin, cos, pow); all within 2 units in the last place.
#pragma once

#include <math.h>

#include "vec.h"

namespace snn {
namespace SNN_ISA {

template <class Function>
SNN_HD Vec each_lane(Vec a, Function f) {
  alignas(64) float lanes[LANES];
  a.store(lanes);
  for (int k = 0; k < LANES; ++k) lanes[k] = f(lanes[k]);
  return Vec::load(lanes);
}

SNN_HD Vec logarithm(Vec a) { return each_lane(a, ::logf); }
SNN_HD Vec hyperbolic_tangent(Vec a) { return each_lane(a, ::tanhf); }
SNN_HD Vec sine(Vec a) { return each_lane(a, ::sinf); }
SNN_HD Vec cosine(Vec a) { return each_lane(a, ::cosf); }
SNN_HD Vec power(Vec a, Vec b) {
  alignas(64) float lanes[LANES], exponents[LANES];
  a.store(lanes);
  b.store(exponents);
  for (int k = 0; k < LANES; ++k) lanes[k] = ::powf(lanes[k], exponents[k]);
  return Vec::load(lanes);
}

#if defined(__AVX512F__)
SNN_HD Vec square_root(Vec a) { return _mm512_sqrt_ps(a.v); }
SNN_HD Vec round_down(Vec a) { return _mm512_roundscale_ps(a.v, 0x09); }
SNN_HD Vec round_to_zero(Vec a) { return _mm512_roundscale_ps(a.v, 0x0b); }
SNN_HD Vec round_to_even(Vec a) { return _mm512_roundscale_ps(a.v, 0x08); }
#elif defined(__AVX2__)
SNN_HD Vec square_root(Vec a) { return _mm256_sqrt_ps(a.v); }
SNN_HD Vec round_down(Vec a) { return _mm256_round_ps(a.v, 0x09); }
SNN_HD Vec round_to_zero(Vec a) { return _mm256_round_ps(a.v, 0x0b); }
SNN_HD Vec round_to_even(Vec a) { return _mm256_round_ps(a.v, 0x08); }
#else
SNN_HD Vec square_root(Vec a) { return each_lane(a, ::sqrtf); }
SNN_HD Vec round_down(Vec a) { return each_lane(a, ::floorf); }
SNN_HD Vec round_to_zero(Vec a) { return each_lane(a, ::truncf); }
SNN_HD Vec round_to_even(Vec a) { return each_lane(a, ::nearbyintf); }
#endif

}  // namespace SNN_ISA
}  // namespace snn
