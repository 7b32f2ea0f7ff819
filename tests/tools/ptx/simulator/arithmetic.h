// Arithmetic, comparisons and conversions of PTX, on the bits of their operands.
#pragma once

#include "instruction.h"

namespace ptx {

// How far approximate instructions may lie from the value rounded to nearest.
struct Approximation {
  int ulps = 0;
  u32 seed = 0;
};

// The result's bits; those beyond its width are not to be looked at.
u64 arithmetic(const Instruction& i, s64 type, u64 a, u64 b, u64 c, const Approximation& how);
bool compare(s64 type, s64 comparison, u64 a, u64 b, s64 flags);
u64 convert(const Instruction& i, s64 to, s64 from, u64 a);

// Operations on bits alone, undefined ones followed through: AND to BFI, POPC, CLZ, BREV.
Value bit_operation(const Instruction& i, const Value (&in)[4]);

bool is_negative(u64 float_bits);

}  // namespace ptx
