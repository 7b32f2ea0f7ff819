// Traced neurons on CPU: one pass over a row of a tile per instruction, rows in the L1 cache. As
// tile.h, included once per instruction set.
#pragma once

#include "program_loops.h"
#include "tile.h"

namespace snn {
namespace SNN_ISA {
namespace {

template <int N>
SNN_HD void put_result(Vec r, int64_t j, float* to, bool to_stream, float* also, bool also_stream) {
  put(to + j, r, to_stream);
  if (N) put(also + j, r, also_stream);
}

// One pass over n neurons; f(a, b, c, d) gives the result of a vector.
template <int ARITY, int ALSO, class Function>
SNN_HD void pass(const Slot* s, const ProgramInstruction& i, int n, Function f) {
  const float* p[4] = {s[i.a].p, s[i.b].p, s[i.c].p, s[i.d].p};
  const int64_t step[4] = {s[i.a].step, s[i.b].step, s[i.c].step, s[i.d].step};
  float *to = s[i.to].p, *also = ALSO ? s[i.also].p : nullptr;
  const bool to_stream = s[i.to].stream, also_stream = ALSO && s[i.also].stream;
  int64_t j = 0;
  constexpr int UNROLL = 4;
  for (; j + UNROLL * LANES <= n; j += UNROLL * LANES) {
#pragma GCC unroll 4
    for (int u = 0; u < UNROLL; ++u) {
      Vec v[4];
#pragma GCC unroll 4
      for (int k = 0; k < ARITY; ++k) v[k] = Vec::load(p[k] + u * step[k]);
      put_result<ALSO>(f(v[0], v[1], v[2], v[3]), j + u * LANES, to, to_stream, also, also_stream);
    }
#pragma GCC unroll 4
    for (int k = 0; k < ARITY; ++k) p[k] += UNROLL * step[k];
  }
  for (; j < n; j += LANES) {
    Vec v[4];
#pragma GCC unroll 4
    for (int k = 0; k < ARITY; ++k) {
      v[k] = Vec::load(p[k]);
      p[k] += step[k];
    }
    put_result<ALSO>(f(v[0], v[1], v[2], v[3]), j, to, to_stream, also, also_stream);
  }
}

template <int ARITY, class Function>
SNN_HD void run(const Slot* s, const ProgramInstruction& i, int n, Function f) {
  if (i.also >= 0) {
    pass<ARITY, 1>(s, i, n, f);
  } else {
    pass<ARITY, 0>(s, i, n, f);
  }
}

using Run = void (*)(const Slot*, const ProgramInstruction&, int n);

// One function per operation; where takes a condition.
#define SNN_CALL_1(NAME) number(op_##NAME(a))
#define SNN_CALL_2(NAME) number(op_##NAME(a, b))
#define SNN_CALL_3(NAME) number(op_##NAME(as_condition(a), b, c))
#define SNN_RUN(NAME, ARITY)                                           \
  void run_##NAME(const Slot* s, const ProgramInstruction& i, int n) { \
    run<ARITY>(s, i, n, [](Vec a, Vec b, Vec c, Vec) SNN_IN_PLACE {    \
      (void)b, (void)c;                                                \
      return SNN_CALL_##ARITY(NAME);                                   \
    });                                                                \
  }
SNN_OPERATIONS(SNN_RUN)
#undef SNN_RUN

void run_copy(const Slot* s, const ProgramInstruction& i, int n) {
  run<1>(s, i, n, [](Vec a, Vec, Vec, Vec) SNN_IN_PLACE { return a; });
}

template <int OPERATION>
SNN_HD Vec arithmetic(Vec a, Vec b) {
  return OPERATION == 0 ? a + b : OPERATION == 1 ? a - b : a * b;
}

// FIRST(a, b), then SECOND of it and c, each rounded by itself. FLIPPED: SECOND of c and it.
template <int FIRST, int SECOND, int FLIPPED>
void run_pair(const Slot* s, const ProgramInstruction& i, int n) {
  run<3>(s, i, n, [](Vec a, Vec b, Vec c, Vec) SNN_IN_PLACE {
    const Vec r = arithmetic<FIRST>(a, b);
    return FLIPPED ? arithmetic<SECOND>(c, r) : arithmetic<SECOND>(r, c);
  });
}

template <int COMPARISON>
void run_select(const Slot* s, const ProgramInstruction& i, int n) {
  run<4>(s, i, n, [](Vec a, Vec b, Vec c, Vec d) SNN_IN_PLACE {
    return select(COMPARISON == 0   ? a >= b
                  : COMPARISON == 1 ? a > b
                  : COMPARISON == 2 ? a <= b
                                    : a < b,
                  c, d);
  });
}

#define SNN_ENTRY(NAME, ARITY) run_##NAME,
#define SNN_PAIRS(FIRST)                                                                      \
  run_pair<FIRST, 0, 0>, run_pair<FIRST, 0, 1>, run_pair<FIRST, 1, 0>, run_pair<FIRST, 1, 1>, \
      run_pair<FIRST, 2, 0>, run_pair<FIRST, 2, 1>
// The operations, then copy, pairs of add, sub and mul, and where of ge, gt, le and lt; as
// snnkernels/backends/cpp_program.py numbers them.
constexpr Run RUNS[] = {SNN_OPERATIONS(SNN_ENTRY) run_copy,
                        SNN_PAIRS(0),
                        SNN_PAIRS(1),
                        SNN_PAIRS(2),
                        run_select<0>,
                        run_select<1>,
                        run_select<2>,
                        run_select<3>};
#undef SNN_ENTRY
#undef SNN_PAIRS

SNN_HD void run_part(const ProgramPart& part, Loop compiled, const Slot* slots, int n) {
  if (compiled) return compiled(slots, n);
  for (int k = 0; k < part.count; ++k) {
    const ProgramInstruction& i = part.instructions[k];
    RUNS[i.operation](slots, i, n);
  }
}

}  // namespace
}  // namespace SNN_ISA
}  // namespace snn
