#include "arithmetic.h"

#include <algorithm>
#include <cfenv>
#include <cmath>

#include "floats.h"

namespace ptx {
namespace {

using s128 = __int128;
using u128 = unsigned __int128;

float perturbed(float x, const Approximation& how) {
  if (!how.ulps || !std::isfinite(x) || x == 0) return x;
  u32 hash = bits_of_float(x) * 2654435761u ^ how.seed;
  hash ^= hash >> 13;
  int steps = int(hash % (2 * how.ulps + 1)) - how.ulps;
  for (; steps > 0; --steps) x = std::nextafterf(x, INFINITY);
  for (; steps < 0; ++steps) x = std::nextafterf(x, -INFINITY);
  return x;
}

// What the CPU computes in one operation, in a rounding mode of PTX's. Volatile: the compiler must
// neither fold the operation nor move it across the change of mode.
template <class F>
__attribute__((noinline)) F rounded(const Instruction& i, F a, F b, F c) {
  static const int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
  volatile F x = a, y = b, z = c, r = 0;
  if (i.rounding) fesetround(modes[i.rounding]);
  switch (i.op) {
    case ADD:
      r = x + y;
      break;
    case SUB:
      r = x - y;
      break;
    case MUL:
      r = x * y;
      break;
    case FMA:
    case MAD:
      r = std::fma(F(x), F(y), F(z));
      break;
    case DIV:
      r = x / y;
      break;
    case RCP:
      r = F(1) / x;
      break;
    case SQRT:
      r = std::sqrt(F(x));
      break;
  }
  if (i.rounding) fesetround(FE_TONEAREST);
  return r;
}

float extremum(bool least, float x, float y) {
  if (x == 0 && y == 0) {
    const bool both = std::signbit(x) && std::signbit(y);
    const bool negative = least ? std::signbit(x) || std::signbit(y) : both;
    return negative ? -0.0f : 0.0f;
  }
  return least ? (x < y ? x : y) : (x > y ? x : y);
}

u64 single(const Instruction& i, u64 a, u64 b, u64 c, const Approximation& how) {
  const bool flush = i.flags & FTZ;
  float x = float_of(a), y = float_of(b), z = float_of(c), r = 0;
  if (flush) x = flushed(x), y = flushed(y), z = flushed(z);
  switch (i.op) {
    case RSQRT:
      r = perturbed(float(1.0 / std::sqrt(double(x))), how);
      break;
    case EX2:
      r = perturbed(float(std::exp2(double(x))), how);
      break;
    case LG2:
      r = perturbed(float(std::log2(double(x))), how);
      break;
    case TANH:
      r = perturbed(float(std::tanh(double(x))), how);
      break;
    case NEG:
      return canonical(flush ? flushed(-x) : -x);
    case ABS:
      return canonical(std::fabs(x));
    case COPYSIGN:
      return bits_of_float(std::copysign(y, x));
    case MIN:
    case MAX:
      if (x != x || y != y) {
        if (i.flags & KEEP_NAN) return NAN_BITS;
        r = x != x ? y : x;
      } else {
        r = extremum(i.op == MIN, x, y);
      }
      break;
    default:
      r = rounded(i, x, y, z);
      if (i.flags & APPROXIMATE) r = perturbed(r, how);
  }
  if (flush) r = flushed(r);
  if (i.flags & SATURATE) r = r != r || r < 0 ? 0.0f : r > 1 ? 1.0f : r;
  return canonical(r);
}

u64 twofold(const Instruction& i, u64 a, u64 b, u64 c) {
  const double x = double_of(a), y = double_of(b), z = double_of(c);
  switch (i.op) {
    case NEG:
      return bits_of_double(-x);
    case ABS:
      return bits_of_double(std::fabs(x));
    case MIN:
      return canonical(x != x ? y : y != y ? x : x < y ? x : y);
    case MAX:
      return canonical(x != x ? y : y != y ? x : x > y ? x : y);
    default:
      return canonical(rounded(i, x, y, z));
  }
}

u64 product(const Instruction& i, int n, bool with_sign, u64 a, u64 b) {
  if (i.mode == WIDE) return with_sign ? u64(sign_extended(a, n) * sign_extended(b, n)) : a * b;
  if (i.mode == HIGH && with_sign) {
    return u64((s128(sign_extended(a, n)) * sign_extended(b, n)) >> n);
  }
  return i.mode == HIGH ? u64((u128(a) * b) >> n) : a * b;
}

u64 quotient(bool remainder, int n, bool with_sign, u64 a, u64 b) {
  if (b == 0) return remainder ? a : ~0ull;
  if (!with_sign) return remainder ? a % b : a / b;
  const s64 x = sign_extended(a, n), y = sign_extended(b, n);
  if (y == -1) return remainder ? 0 : u64(0) - u64(x);
  return u64(remainder ? x % y : x / y);
}

u64 integer(const Instruction& i, s64 type, u64 a, u64 b, u64 c) {
  const int n = bits_of(type);
  const bool with_sign = is_signed(type);
  a &= mask_of(n), b &= mask_of(n);
  const s64 x = sign_extended(a, n), y = sign_extended(b, n);
  switch (i.op) {
    case ADD:
      return a + b;
    case SUB:
      return a - b;
    case MUL:
      return product(i, n, with_sign, a, b);
    case MAD:
      return product(i, n, with_sign, a, b) + c;
    case DIV:
    case REM:
      return quotient(i.op == REM, n, with_sign, a, b);
    case MIN:
      return with_sign ? u64(std::min(x, y)) : std::min(a, b);
    case MAX:
      return with_sign ? u64(std::max(x, y)) : std::max(a, b);
    case NEG:
      return 0 - a;
    case ABS:
      return u64(std::llabs(x));
  }
  return 0;
}

template <class T>
bool ordered(s64 comparison, T x, T y) {
  switch (comparison) {
    case EQ:
    case EQU:
      return x == y;
    case NE:
    case NEU:
      return x != y;
    case LT:
    case LO:
    case LTU:
      return x < y;
    case LE:
    case LS:
    case LEU:
      return x <= y;
    case GT:
    case HI:
    case GTU:
      return x > y;
    default:
      return x >= y;
  }
}

double to_double(s64 type, u64 a, bool flush) {
  if (type == F64) return double_of(a);
  if (type == F16) return half_of(u16(a));
  if (type == BF16) return float_of((a & 0xffff) << 16);
  const float f = float_of(a);
  return flush ? flushed(f) : f;
}

u64 from_double(s64 type, double x, bool flush) {
  if (type == F64) return canonical(x);
  const float f = float(x);  // to nearest; the decoder refuses the other roundings
  if (type == F32) return canonical(flush ? flushed(f) : f);
  return type == F16 ? bits_of_half(f) : bits_of_bfloat(f);
}

double to_whole(s64 rounding, double x) {
  switch (rounding) {
    case RNI:
      return std::nearbyint(x);
    case RMI:
      return std::floor(x);
    case RPI:
      return std::ceil(x);
    default:
      return std::trunc(x);
  }
}

u64 saturated_integer(s64 type, double x) {
  const int n = bits_of(type);
  if (x != x) return 0;
  if (is_signed(type)) {
    const double limit = std::ldexp(1.0, n - 1);
    if (x >= limit) return mask_of(n - 1);
    return x < -limit ? ~mask_of(n - 1) : u64(s64(x));
  }
  return x < 0 ? 0 : x >= std::ldexp(1.0, n) ? mask_of(n) : u64(x);
}

u64 between_integers(const Instruction& i, s64 to, s64 from, u64 a) {
  const int n_from = bits_of(from), n = bits_of(to);
  a &= mask_of(n_from);
  const u64 wide = is_signed(from) ? u64(sign_extended(a, n_from)) : a;
  if (!(i.flags & SATURATE)) return wide;
  const s128 x = is_signed(from) ? s128(s64(wide)) : s128(a);
  const s128 low = is_signed(to) ? -(s128(1) << (n - 1)) : 0;
  const s128 high = (s128(1) << (is_signed(to) ? n - 1 : n)) - 1;
  return u64(s64(std::clamp(x, low, high)));
}

}  // namespace

u64 arithmetic(const Instruction& i, s64 type, u64 a, u64 b, u64 c, const Approximation& how) {
  if (type == F32X2) {
    const u64 low = single(i, u32(a), u32(b), u32(c), how);
    return low | single(i, a >> 32, b >> 32, c >> 32, how) << 32;
  }
  if (type == F32) return single(i, a, b, c, how);
  return type == F64 ? twofold(i, a, b, c) : integer(i, type, a, b, c);
}

bool compare(s64 type, s64 comparison, u64 a, u64 b, s64 flags) {
  const int n = bits_of(type);
  if (!is_float(type)) {
    a &= mask_of(n), b &= mask_of(n);
    if (!is_signed(type)) return ordered(comparison, a, b);
    return ordered(comparison, sign_extended(a, n), sign_extended(b, n));
  }
  const double x = to_double(type, a, flags & FTZ), y = to_double(type, b, flags & FTZ);
  const bool unordered = x != x || y != y;
  if (comparison == NUM || comparison == NAN_) return unordered == (comparison == NAN_);
  return unordered ? comparison >= EQU : ordered(comparison, x, y);
}

u64 convert(const Instruction& i, s64 to, s64 from, u64 a) {
  if (!is_float(from)) {
    if (!is_float(to)) return between_integers(i, to, from, a);
    const int n = bits_of(from);
    a &= mask_of(n);
    if (to == F64) return canonical(is_signed(from) ? double(sign_extended(a, n)) : double(a));
    const float f = is_signed(from) ? float(sign_extended(a, n)) : float(a);
    return from_double(to, f, false);
  }
  double x = to_double(from, a, i.flags & FTZ);
  if (i.rounding >= RNI) x = to_whole(i.rounding, x);
  if (!is_float(to)) return saturated_integer(to, x);
  if (i.flags & SATURATE) x = x != x || x < 0 ? 0 : x > 1 ? 1 : x;
  return from_double(to, x, i.flags & FTZ);
}

bool is_negative(u64 float_bits) { return !(float_of(float_bits) >= 0); }

}  // namespace ptx
