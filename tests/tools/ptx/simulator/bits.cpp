// Operations on bits; an undefined bit of an operand makes those bits of the result undefined that
// depend on it.
#include <algorithm>

#include "arithmetic.h"

namespace ptx {
namespace {

Value shifted_left(int n, Value a, Value by) {
  const u64 s = by.bits & 0xffffffffu;
  if (by.undefined) return {0, ~0ull};
  return s >= u64(n) ? Value{0, 0} : Value{a.bits << s, a.undefined << s};
}

Value shifted_right(int n, bool with_sign, Value a, Value by) {
  const u64 s = by.bits & 0xffffffffu, mask = mask_of(n);
  if (by.undefined) return {0, ~0ull};
  if (with_sign) {
    const u64 k = std::min<u64>(s, n - 1);
    return {u64(sign_extended(a.bits & mask, n) >> k),
            u64(sign_extended(a.undefined & mask, n) >> k)};
  }
  return s >= u64(n) ? Value{0, 0} : Value{(a.bits & mask) >> s, (a.undefined & mask) >> s};
}

// mode: 0 left, 1 right; extra: the distance is 0 wrapped, 1 clamped.
Value funnel_shifted(const Instruction& i, Value low, Value high, Value by) {
  if (by.undefined) return {0, ~0ull};
  u64 s = by.bits & 0xffffffffu;
  s = i.extra ? std::min<u64>(s, 32) : s & 31;
  const auto join = [](u64 h, u64 l) { return (h << 32) | (l & 0xffffffffu); };
  const auto shift = [&](u64 x) { return i.mode ? x >> s : s == 32 ? x : (x << s) >> 32; };
  return {shift(join(high.bits, low.bits)), shift(join(high.undefined, low.undefined))};
}

Value permuted(Value low, Value high, Value selector) {
  Value to{0, selector.undefined ? ~0ull : 0};
  const auto byte = [](u64 h, u64 l, int k) { return ((h << 32) | (l & 0xffffffffu)) >> 8 * k; };
  for (int k = 0; k < 4; ++k) {
    const int select = selector.bits >> (4 * k) & 15;
    u64 bits = byte(high.bits, low.bits, select & 7) & 255;
    u64 undefined = byte(high.undefined, low.undefined, select & 7) & 255;
    if (select & 8) bits = bits & 128 ? 255 : 0, undefined = undefined & 128 ? 255 : 0;
    to.bits |= bits << (8 * k), to.undefined |= undefined << (8 * k);
  }
  return to;
}

Value extracted(int n, bool with_sign, Value a, Value position, Value length) {
  const u64 at = position.bits & 255, size = length.bits & 255, mask = mask_of(n);
  const u64 x = a.bits & mask;
  const u64 u = position.undefined | length.undefined ? mask : a.undefined & mask;
  const auto field = [&](u64 from) {
    return size == 0 || at >= u64(n) ? 0 : (from >> at) & mask_of(int(std::min<u64>(size, 64)));
  };
  Value to{field(x), field(u)};
  if (with_sign && size && size < u64(n)) {
    const u64 sign = std::min<u64>(at + size - 1, n - 1), above = mask & ~mask_of(int(size));
    if (x >> sign & 1) to.bits |= above;
    if (u >> sign & 1) to.undefined |= above;
  }
  return to;
}

Value inserted(int n, const Value (&in)[4]) {
  const u64 at = in[2].bits & 255, size = in[3].bits & 255;
  if (in[2].undefined | in[3].undefined) return {0, ~0ull};
  const u64 field = at >= u64(n) ? 0 : mask_of(int(std::min<u64>(size, 64))) << at;
  const auto put = [&](u64 from, u64 into) {
    return (into & ~field) | (at >= 64 ? 0 : (from << at) & field);
  };
  return {put(in[0].bits, in[1].bits), put(in[0].undefined, in[1].undefined)};
}

Value by_table(u64 table, const Value (&in)[4]) {
  const u64 a = in[0].bits, b = in[1].bits, c = in[2].bits;
  Value to{0, in[0].undefined | in[1].undefined | in[2].undefined};
  for (int k = 0; k < 8; ++k) {
    if (table >> k & 1) to.bits |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
  }
  return to;
}

Value counted(const Instruction& i, int n, Value a) {
  const u64 x = a.bits & mask_of(n), undefined = a.undefined & mask_of(n) ? ~0ull : 0;
  if (i.op == POPC) return {u64(__builtin_popcountll(x)), undefined};
  if (i.op == CLZ) return {u64(x ? __builtin_clzll(x) - (64 - n) : n), undefined};
  u64 reversed = 0;
  for (int k = 0; k < n; ++k) reversed |= (x >> k & 1) << (n - 1 - k);
  return {reversed, undefined};
}

}  // namespace

Value bit_operation(const Instruction& i, const Value (&in)[4]) {
  const int n = bits_of(i.type);
  const u64 a = in[0].bits, b = in[1].bits, p = in[0].undefined, q = in[1].undefined;
  switch (i.op) {
    case AND:  // a defined 0 decides
      return {a & b, (p | q) & (p | a) & (q | b)};
    case OR:  // a defined 1 decides
      return {a | b, (p | q) & (p | ~a) & (q | ~b)};
    case XOR:
      return {a ^ b, p | q};
    case NOT:
      return {~a, p};
    case LOP3:
      return by_table(u64(i.mode), in);
    case SHL:
      return shifted_left(n, in[0], in[1]);
    case SHR:
      return shifted_right(n, is_signed(i.type), in[0], in[1]);
    case SHF:
      return funnel_shifted(i, in[0], in[1], in[2]);
    case PRMT:
      return permuted(in[0], in[1], in[2]);
    case BFE:
      return extracted(n, is_signed(i.type), in[0], in[1], in[2]);
    case BFI:
      return inserted(n, in);
    default:
      return counted(i, n, in[0]);
  }
}

}  // namespace ptx
