// Instructions as the decoder hands them over, and the lists of names that both sides share.
#pragma once

#include <cstdint>

namespace ptx {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using s32 = std::int32_t;
using u64 = std::uint64_t;
using s64 = std::int64_t;

// Numbered from 1; library.py asks for the names.
#define PTX_OPERATIONS                                                                            \
  MOV, LD, ST, CVTA, ADD, SUB, MUL, MAD, DIV, REM, MIN, MAX, NEG, ABS, AND, OR, XOR, NOT, SHL,    \
      SHR, SHF, PRMT, BFE, BFI, LOP3, SELP, SLCT, SETP, CVT, FMA, RCP, SQRT, RSQRT, EX2, LG2,     \
      TANH, BRA, RET, BAR, WBAR, SHFL, VOTE, LDMATRIX, CPASYNC, CPCOMMIT, CPWAIT, NOP, POPC, CLZ, \
      BREV, PACK, UNPACK, TRAP, COPYSIGN
#define PTX_TYPES                                                                               \
  PRED, B8, U8, S8, B16, U16, S16, F16, BF16, B32, U32, S32, F32, F16X2, BF16X2, B64, U64, S64, \
      F64, F32X2, B128
#define PTX_COMPARISONS \
  EQ, NE, LT, LE, GT, GE, LO, LS, HI, HS, EQU, NEU, LTU, LEU, GTU, GEU, NUM, NAN_

enum Operation : s64 { NO_OPERATION, PTX_OPERATIONS };
enum Type : s64 { NO_TYPE, PTX_TYPES };
enum Comparison : s64 { NO_COMPARISON, PTX_COMPARISONS };

enum Space : s64 { GLOBAL = 1, SHARED, PARAMETER };
enum Flag : s64 { FTZ = 1, SATURATE = 2, KEEP_NAN = 4, APPROXIMATE = 8 };
enum Rounding : s64 { RN, RZ, RM, RP, RNI, RZI, RMI, RPI };
enum Width : s64 { LOW, HIGH, WIDE };  // the mode of an integer product
enum OperandKind : s64 { REGISTER, IMMEDIATE, SPECIAL, IGNORED };

struct Operand {
  s64 kind, value;
};

// One row of the decoder's table; decoder.py: ROW names the same fields in the same order.
struct Instruction {
  s64 op, type, from_type, flags;
  s64 guard, negated;  // guard: a register, or -1
  s64 target, line;    // of a jump; in the text
  s64 outputs, inputs;
  s64 offset, rounding, mode, extra, space, unused;
  Operand out[8], in[9];
};

inline int bits_of(s64 type) {
  switch (type) {
    case PRED:
      return 1;
    case B8:
    case U8:
    case S8:
      return 8;
    case B16:
    case U16:
    case S16:
    case F16:
    case BF16:
      return 16;
    case B32:
    case U32:
    case S32:
    case F32:
    case F16X2:
    case BF16X2:
      return 32;
    case B128:
      return 128;
    default:
      return 64;
  }
}
inline bool is_signed(s64 type) { return type == S8 || type == S16 || type == S32 || type == S64; }
inline bool is_float(s64 type) {
  return type == F16 || type == BF16 || type == F32 || type == F64 || type == F32X2 ||
         type == F16X2 || type == BF16X2;
}
inline u64 mask_of(int bits) { return bits >= 64 ? ~0ull : (1ull << bits) - 1; }
inline s64 sign_extended(u64 x, int bits) {
  return bits >= 64 ? s64(x) : s64(x << (64 - bits)) >> (64 - bits);
}

// Register contents; a bit that is set in `undefined` holds no value that the program gave it.
struct Value {
  u64 bits = 0xdeadbeefdeadbeefull, undefined = ~0ull;
};

}  // namespace ptx
