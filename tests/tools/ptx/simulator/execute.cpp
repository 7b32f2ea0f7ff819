// One thread up to its next synchronisation.
#include <algorithm>
#include <cstring>

#include "simulator.h"

namespace ptx {

u64 Simulator::special(s64 which, u32 t) const {
  const u32 *size = grid_.size, x = size[0], y = size[1];
  switch (which) {  // as decoder.py: SPECIAL
    case 0:
      return t;
    case 3:
      return grid_.threads;
    case 4:
    case 5:
      return 1;
    case 6:
      return block_ % x;
    case 7:
      return block_ / x % y;
    case 8:
      return block_ / x / y;
    case 9:
    case 10:
    case 11:
      return size[which - 9];
    case 12:
      return t % 32;
    case 13:
      return t / 32;
    case 14:
      return (1u << (t % 32)) - 1;
    default:
      return 0;  // %tid.y, %tid.z
  }
}

Value Simulator::value(const Operand& operand, u32 t) const {
  switch (operand.kind) {
    case REGISTER:
      return threads_[t].registers[operand.value];
    case IMMEDIATE:
      return {u64(operand.value), 0};
    case SPECIAL:
      return {special(operand.value, t), 0};
    default:
      return {0, 0};
  }
}

void Simulator::set(const Operand& operand, u32 t, Value value, int bits) {
  if (operand.kind != REGISTER) return;
  const u64 mask = mask_of(bits);
  threads_[t].registers[operand.value] = {value.bits & mask, value.undefined & mask};
}

void Simulator::run_thread(u32 t) {
  Thread& thread = threads_[t];
  while (thread.waits == Waits::NOT) {
    if (thread.pc >= code.size()) {
      thread.waits = Waits::ENDED;
      return;
    }
    const Instruction& i = code[thread.pc];
    if (++thread.executed > limit_) {
      report(i, t, "too many instructions: an endless loop?");
      thread.waits = Waits::ENDED;
      return;
    }
    if (!guard_holds(i, t)) {
      ++thread.pc;
      continue;
    }
    ++hits[thread.pc];
    ++counts.instructions;
    if (control(i, t)) continue;
    execute(i, t);
    ++thread.pc;
  }
}

bool Simulator::guard_holds(const Instruction& i, u32 t) {
  if (i.guard < 0) return true;
  const Value guard = threads_[t].registers[i.guard];
  if (guard.undefined & 1) report(i, t, "the guard of an instruction is undefined");
  return (guard.bits & 1) != u64(i.negated);
}

// True where the instruction itself says what comes next.
bool Simulator::control(const Instruction& i, u32 t) {
  Thread& thread = threads_[t];
  switch (i.op) {
    case BRA:
      thread.pc = i.target;
      return true;
    case TRAP:
      report(i, t, "trap");
      [[fallthrough]];
    case RET:
      thread.waits = Waits::ENDED;
      return true;
    case BAR:
      thread.barrier = value(i.in[0], t).bits;
      thread.waits = Waits::FOR_BLOCK;
      return true;
    case WBAR:
    case SHFL:
    case VOTE:
    case LDMATRIX:
      thread.waits = Waits::FOR_WARP;
      return true;
    default:
      return false;
  }
}

void Simulator::execute(const Instruction& i, u32 t) {
  switch (i.op) {
    case NOP:
      return;
    case MOV:
    case CVTA:
    case PACK:
    case UNPACK:
      return move(i, t);
    case LD:
      return load(i, t);
    case ST:
      return store(i, t);
    case CPASYNC: {
      const Value to = value(i.in[0], t), from = value(i.in[1], t);
      if (to.undefined | from.undefined) report(i, t, "an address of cp.async is undefined");
      return copy_async(i, t, to.bits, from.bits, int(i.offset));
    }
    case CPCOMMIT:
      threads_[t].copies.emplace_back();
      return;
    case CPWAIT:
      return complete_copies(i, t, i.offset);
    case SELP:
    case SLCT:
      return select(i, t);
    case SETP:
      return set_predicate(i, t);
    case CVT:
      return convert_value(i, t);
    case AND:
    case OR:
    case XOR:
    case NOT:
    case LOP3:
    case SHL:
    case SHR:
    case SHF:
    case PRMT:
    case BFE:
    case BFI:
    case POPC:
    case CLZ:
    case BREV: {
      Value in[4];
      for (int k = 0; k < i.inputs; ++k) in[k] = value(i.in[k], t);
      const bool count = i.op == POPC || i.op == CLZ;
      return set(i.out[0], t, bit_operation(i, in), count ? 32 : bits_of(i.type));
    }
    default:
      return compute(i, t);
  }
}

void Simulator::move(const Instruction& i, u32 t) {
  const int n = bits_of(i.type);
  if (i.op == PACK) {
    const int part = n / int(i.inputs);
    Value all{0, 0};
    for (int k = 0; k < i.inputs; ++k) {
      const Value in = value(i.in[k], t);
      all.bits |= (in.bits & mask_of(part)) << (k * part);
      all.undefined |= (in.undefined & mask_of(part)) << (k * part);
    }
    return set(i.out[0], t, all, n);
  }
  const Value in = value(i.in[0], t);
  if (i.op != UNPACK) return set(i.out[0], t, in, i.op == CVTA ? 64 : n);
  const int part = n / int(i.outputs);
  for (int k = 0; k < i.outputs; ++k) {
    set(i.out[k], t, {in.bits >> (k * part), in.undefined >> (k * part)}, part);
  }
}

void Simulator::load(const Instruction& i, u32 t) {
  const Value address = value(i.in[0], t);
  const u64 a = address.bits + i.offset;
  const int n = bits_of(i.type), bytes = n / 8, all = bytes * int(i.outputs);
  if (address.undefined) report(i, t, "the address of a load is undefined", a);
  u8 data[64]{}, undefined[64];
  std::memset(undefined, 0xff, sizeof undefined);
  if (i.space == PARAMETER) {
    load_parameter(i, t, a, all, data, undefined);
  } else if (i.space == SHARED) {
    if (a % all) report(i, t, "misaligned shared load", a, all);
    load_shared(i, t, a, all, data, undefined);
  } else {
    if (a % all) report(i, t, "misaligned global load", a, all);
    load_global(i, t, a, all, data, undefined);
  }
  for (int k = 0; k < i.outputs; ++k) {
    Value to{0, 0};
    std::memcpy(&to.bits, data + k * bytes, bytes);
    std::memcpy(&to.undefined, undefined + k * bytes, bytes);
    // A register may be wider than what is loaded into it.
    if (is_signed(i.type)) to.bits = u64(sign_extended(to.bits, n));
    set(i.out[k], t, to, 64);
  }
}

void Simulator::store(const Instruction& i, u32 t) {
  const Value address = value(i.in[0], t);
  const u64 a = address.bits + i.offset;
  const int bytes = bits_of(i.type) / 8, all = bytes * int(i.inputs - 1);
  if (address.undefined) report(i, t, "the address of a store is undefined", a);
  u8 data[64], undefined[64];
  for (int k = 1; k < i.inputs; ++k) {
    const Value in = value(i.in[k], t);
    std::memcpy(data + (k - 1) * bytes, &in.bits, bytes);
    std::memcpy(undefined + (k - 1) * bytes, &in.undefined, bytes);
  }
  if (i.space == SHARED) {
    if (a % all) report(i, t, "misaligned shared store", a, all);
    store_shared(i, t, a, all, data, undefined);
  } else {
    if (a % all) report(i, t, "misaligned global store", a, all);
    store_global(i, t, a, all, data, undefined);
  }
}

void Simulator::compute(const Instruction& i, u32 t) {
  Value in[3] = {{0, 0}, {0, 0}, {0, 0}};
  for (int k = 0; k < i.inputs; ++k) in[k] = value(i.in[k], t);
  const int n = bits_of(i.type);
  const bool whole = !is_float(i.type), sum = i.op == ADD || i.op == SUB;
  if (whole && (i.op == DIV || i.op == REM) && (in[1].bits & mask_of(n)) == 0) {
    report(i, t, "integer division by zero");
  }
  const u64 u = in[0].undefined | in[1].undefined | in[2].undefined;
  u64 undefined = u ? ~0ull : 0;
  if (u && sum && whole) undefined = ~0ull << __builtin_ctzll(u);  // carries go up
  if (i.type == F32X2) {
    undefined = (u & 0xffffffffu ? 0xffffffffull : 0) | (u >> 32 ? 0xffffffffull << 32 : 0);
  }
  const bool wide = whole && (i.op == MUL || i.op == MAD) && i.mode == WIDE;
  const u64 bits = arithmetic(i, i.type, in[0].bits, in[1].bits, in[2].bits, approximation);
  set(i.out[0], t, {bits, undefined}, wide ? 2 * n : n);
}

void Simulator::select(const Instruction& i, u32 t) {
  const Value a = value(i.in[0], t), b = value(i.in[1], t), by = value(i.in[2], t);
  bool first = by.bits & 1, undefined = by.undefined & 1;
  if (i.op == SLCT) {
    first = i.from_type == F32 ? !is_negative(by.bits) : s32(by.bits) >= 0;
    undefined = by.undefined != 0;
  }
  Value chosen = first ? a : b;
  if (undefined) chosen.undefined |= (a.bits ^ b.bits) | a.undefined | b.undefined;
  set(i.out[0], t, chosen, bits_of(i.type));
}

// extra: joined with a third operand by 1 and, 2 or, 3 xor; rounding: that one is negated.
void Simulator::set_predicate(const Instruction& i, u32 t) {
  const Value a = value(i.in[0], t), b = value(i.in[1], t);
  const u64 mask = mask_of(bits_of(i.type)), either = a.undefined | b.undefined;
  bool holds = compare(i.type, i.mode, a.bits, b.bits, i.flags), undefined = either & mask;
  const bool equality = !is_float(i.type) && (i.mode == EQ || i.mode == NE);
  if (equality && ((a.bits ^ b.bits) & ~either & mask)) undefined = false;  // decided
  bool other = !holds;
  if (i.extra) {
    const Value third = value(i.in[2], t);
    const bool c = (third.bits & 1) != u64(i.rounding), c_undefined = third.undefined & 1;
    const auto join = [&](bool x) {
      return i.extra == 1 ? x && c : i.extra == 2 ? x || c : x != c;
    };
    const bool deciding = i.extra == 2;  // what makes the result, whatever the other one is
    const bool decided =
        i.extra != 3 && ((!undefined && holds == deciding) || (!c_undefined && c == deciding));
    other = join(other);
    holds = join(holds);
    undefined = (undefined || c_undefined) && !decided;
  }
  set(i.out[0], t, {holds, undefined}, 1);
  if (i.outputs > 1) set(i.out[1], t, {other, undefined}, 1);
}

void Simulator::convert_value(const Instruction& i, u32 t) {
  const Value a = value(i.in[0], t);
  if (i.type == F16X2 || i.type == BF16X2) {  // the first operand goes to the high half
    const Value b = value(i.in[1], t);
    const s64 half = i.type == F16X2 ? F16 : BF16;
    const u64 bits = convert(i, half, F32, a.bits) << 16 | convert(i, half, F32, b.bits);
    const u64 undefined = (a.undefined ? 0xffff0000u : 0) | (b.undefined ? 0xffffu : 0);
    return set(i.out[0], t, {bits, undefined}, 32);
  }
  const int n = bits_of(i.type), n_from = bits_of(i.from_type);
  const u64 bits = convert(i, i.type, i.from_type, a.bits) & mask_of(n);
  u64 undefined = a.undefined & mask_of(n_from);
  if (is_float(i.type) || is_float(i.from_type)) {
    undefined = undefined ? ~0ull : 0;
  } else if (is_signed(i.from_type)) {
    undefined = u64(sign_extended(undefined, n_from));
  }
  // The destination may be wider (extra bits) than the type.
  const bool extend = is_signed(i.type) && !is_float(i.type);
  set(i.out[0], t, {extend ? u64(sign_extended(bits, n)) : bits, undefined}, int(i.extra));
}

}  // namespace ptx
