// One step of a program over a row of neurons; program_loops.cpp has those that are compiled ahead
// of time, one namespace per instruction set.
#pragma once

#include "program.h"
#include "vec_math.h"

namespace snn {
namespace SNN_ISA {

// A row of floats, or one vector for all neurons of a tile.
struct Slot {
  float* p;
  int64_t step;        // LANES, or 0 where one vector stands for the row
  bool stream;         // written past the caches
  const float* ahead;  // of an input of floats: a row that is read soon
};

SNN_HD Vec number(Vec a) { return a; }
SNN_HD Vec number(Mask m) { return as_number<Vec>(m); }
SNN_HD Mask condition(Mask m) { return m; }
SNN_HD Mask condition(Vec a) { return as_condition(a); }

// A constant of a compiled loop. UNIFORM: all of them are one vector, which stays in a register.
struct Constant {
  const float* p;
  int64_t mask;
  Vec all;

  SNN_HD explicit Constant(const Slot& s) : p(s.p), mask(s.step ? -1 : 0), all(Vec::load(s.p)) {}
  template <bool UNIFORM>
  SNN_HD Vec at(int64_t j) const {
    return UNIFORM ? all : Vec::load(p + (j & mask));
  }
};

using Loop = void (*)(const Slot* slots, int n);

struct Loops {
  Loop forward, replay, adjoint;
};

// Of a program, by its place among program_texts.
const Loops& compiled_loops(int program);

}  // namespace SNN_ISA
}  // namespace snn
