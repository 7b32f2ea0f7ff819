// The interpreter of traced neurons against a scalar loop over random programs: on odd sizes,
// strides and alignments, for every instruction set of this machine, under ASan and UBSan.
#include <cassert>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "buffers.h"
#include "program.h"
#include "snncore.h"

namespace {

using namespace snn;

// --- operations ---------------------------------------------------------------------------------

enum Operation {
#define SNN_NAME(NAME, ARITY) OP_##NAME,
  SNN_OPERATIONS(SNN_NAME)
#undef SNN_NAME
      COPY
};
constexpr int PAIRS = COPY + 1, SELECTS = PAIRS + 18;  // as cpu/interpreter.h orders them
constexpr int EXACT[] = {OP_add, OP_sub,  OP_mul,  OP_div,   OP_min,   OP_max,   OP_ge,
                         OP_gt,  OP_le,   OP_lt,   OP_eq,    OP_ne,    OP_where, OP_neg,
                         OP_abs, OP_sign, OP_sqrt, OP_floor, OP_trunc, OP_round, OP_complement};
constexpr int FUNCTIONS[] = {OP_tanh, OP_sigmoid, OP_sin, OP_cos, OP_add};

float arithmetic(int which, float a, float b) {
  return which == 0 ? a + b : which == 1 ? a - b : a * b;
}

float apply(int operation, float a, float b, float c, float d) {
  if (operation >= SELECTS) {
    const bool holds[] = {a >= b, a > b, a <= b, a < b};
    return holds[operation - SELECTS] ? c : d;
  }
  if (operation >= PAIRS) {
    const int pair = operation - PAIRS;
    const float first = arithmetic(pair / 6, a, b);
    return pair % 2 ? arithmetic(pair / 2 % 3, c, first) : arithmetic(pair / 2 % 3, first, c);
  }
  switch (operation) {
    case OP_add:
      return a + b;
    case OP_sub:
      return a - b;
    case OP_mul:
      return a * b;
    case OP_div:
      return a / b;
    case OP_min:
      return a <= b || std::isnan(a) ? a : b;
    case OP_max:
      return a >= b || std::isnan(a) ? a : b;
    case OP_ge:
      return a >= b;
    case OP_gt:
      return a > b;
    case OP_le:
      return a <= b;
    case OP_lt:
      return a < b;
    case OP_eq:
      return a >= b && a <= b;
    case OP_ne:
      return !(a >= b && a <= b);
    case OP_where:
      return a > 0 ? b : c;
    case OP_neg:
      return -a;
    case OP_abs:
      return std::fabs(a);
    case OP_sign:
      return static_cast<float>((a > 0) - (a < 0));
    case OP_sqrt:
      return std::sqrt(a);
    case OP_floor:
      return std::floor(a);
    case OP_trunc:
      return std::trunc(a);
    case OP_round:
      return std::nearbyint(a);
    case OP_complement:
      return 1 - a;
    case OP_tanh:
      return std::tanh(a);
    case OP_sigmoid:
      return 1 / (1 + std::exp(-a));
    case OP_sin:
      return std::sin(a);
    case OP_cos:
      return std::cos(a);
    case COPY:
      return a;
  }
  assert(false && "no such operation");
  return 0;
}

// --- a random program ---------------------------------------------------------------------------

struct Case {
  int64_t T, O, I, C;
  int gap, offset, constants, inputs, states, outputs, sums, length, threads;
  Dtype dtype;
  bool wide, given, carried, functions, constant_rows;
};

struct Layout {  // the first slot of each kind, as snncore.h orders them
  int x, state, dout, dstate, out, next, dx, before, sum, temporary;
  explicit Layout(const Case& c) {
    x = c.constants + 1;
    state = x + c.inputs;
    dout = state + c.states;
    dstate = dout + c.outputs;
    out = dstate + c.states;
    next = out + c.outputs;
    dx = next + c.states;
    before = dx + c.inputs;
    sum = before + c.states;
    temporary = sum + c.sums;
  }
};

constexpr int TEMPORARIES = 5;

struct Part {
  std::vector<ProgramInstruction> instructions;
  std::vector<int> readable;

  int any(Random& random) const {
    return readable[static_cast<size_t>(random.below(static_cast<int>(readable.size())))];
  }
  void add(Random& random, int operation, int to, int also = -1) {
    instructions.push_back(
        {operation, to, also, any(random), any(random), any(random), any(random)});
  }
  int operation(Random& random, bool functions) const {
    if (functions) return FUNCTIONS[random.below(5)];
    const int kind = random.below(4);
    if (kind == 0) return PAIRS + random.below(18);
    if (kind == 1) return SELECTS + random.below(4);
    return EXACT[random.below(sizeof EXACT / sizeof *EXACT)];
  }
  void body(const Case& c, Random& random, int temporary) {
    for (int k = 0; k < c.length; ++k) {
      const int to = temporary + k % TEMPORARIES;
      add(random, operation(random, c.functions), to);
      if (k < TEMPORARIES) readable.push_back(to);
    }
  }
  ProgramPart part() const {
    return {instructions.data(), static_cast<int>(instructions.size()), TEMPORARIES};
  }
};

struct Parts {
  Part forward, replay, adjoint;

  Parts(const Case& c, const Layout& at, Random& random) {
    for (int slot = 0; slot < at.dout; ++slot) forward.readable.push_back(slot);
    adjoint.readable = forward.readable;
    for (int slot = at.dout; slot < at.out; ++slot) adjoint.readable.push_back(slot);
    forward.body(c, random, at.temporary);
    adjoint.body(c, random, at.temporary);
    replay.instructions = forward.instructions;
    for (int k = 0; k < c.states; ++k) {  // the first of them goes to an output as well
      const int operation = EXACT[random.below(3)], also = k < c.outputs ? at.out + k : -1;
      forward.add(random, operation, at.next + k, also);
      replay.instructions.push_back(forward.instructions.back());
      replay.instructions.back().also = -1;
    }
    for (int k = c.states; k < c.outputs; ++k) forward.add(random, COPY, at.out + k);
    for (int k = 0; k < c.inputs; ++k) adjoint.add(random, OP_add, at.dx + k);
    for (int k = 0; k < c.sums; ++k) {
      const int sum = at.sum + k;
      adjoint.instructions.push_back({OP_add, sum, -1, sum, adjoint.any(random), sum, sum});
    }
    for (int k = 0; k < c.states; ++k) adjoint.add(random, OP_mul, at.before + k);
  }
};

void run_scalar(const Part& part, std::vector<float>& values) {
  for (const ProgramInstruction& i : part.instructions) {
    const float r = apply(i.operation, values[i.a], values[i.b], values[i.c], values[i.d]);
    values[i.to] = r;
    if (i.also >= 0) values[i.also] = r;
  }
}

// --- one call -----------------------------------------------------------------------------------

void check(const Case& c, Random random) {
  const int64_t M = c.O * c.I, K = 16, kept = (c.T - 1) / K;
  const Layout at(c);
  const Parts parts(c, at, random);
  const float poison = from_bits(0x7fa57fa5);
  const Dtype out_dtype = c.wide ? Dtype::float32 : c.dtype;
  const auto equal = c.functions ? close : same;

  std::vector<Memory> x, out, dout, dx;
  for (int k = 0; k < c.inputs; ++k) {
    x.emplace_back(c.dtype, c.T, c.O, c.I, c.gap, c.offset);
    dx.push_back(x.back());
    if (c.constant_rows) x.back().inner = 0;
    x.back().fill(random, -2, 2);
  }
  for (int k = 0; k < c.outputs; ++k) {
    out.emplace_back(out_dtype, c.T, c.O, c.I, c.gap, c.offset);
    dout.push_back(out.back());
    dout.back().fill(random, -1, 1);
  }
  std::vector<std::vector<float>> constants, v0, dv, after, dv0, sums;
  std::vector<Coefficient> coefficients;
  for (int k = 0; k < c.constants; ++k) {
    const int64_t counts[] = {1, c.C, M};
    constants.emplace_back(static_cast<size_t>(counts[random.below(3)]));
    for (float& a : constants.back()) a = random.uniform(-1.5f, 1.5f);
  }
  for (const auto& a : constants) coefficients.push_back({a.data(), int64_t(a.size()), 0.0f});
  const std::vector<float> empty(static_cast<size_t>(M), poison);
  std::vector<ProgramState> starts;
  std::vector<const float*> arriving;
  std::vector<float*> to_after, to_dv0, to_sums;
  v0.assign(c.states, empty), dv = after = dv0 = v0, sums.assign(c.sums, empty);
  for (int k = 0; k < c.states; ++k) {
    for (float& a : v0[k]) a = c.given ? random.uniform(-1, 1) : 0.25f;
    for (float& a : dv[k]) a = c.carried ? random.uniform(-1, 1) : 0.0f;
    starts.push_back({c.given ? v0[k].data() : nullptr, 0.25f});
    arriving.push_back(c.carried ? dv[k].data() : nullptr);
    to_after.push_back(after[k].data());
    to_dv0.push_back(dv0[k].data());
  }
  for (auto& sum : sums) to_sums.push_back(sum.data());

  ProgramCode code{c.constants,
                   c.inputs,
                   c.states,
                   c.outputs,
                   c.sums,
                   parts.forward.part(),
                   parts.replay.part(),
                   parts.adjoint.part()};
  std::vector<Input> inputs;
  std::vector<Output> gradients;
  std::vector<ProgramSequence<Output>> outputs;
  std::vector<ProgramSequence<Input>> from_outputs;
  for (Memory& memory : x) inputs.push_back(memory.input());
  for (Memory& memory : dx) gradients.push_back(memory.output());
  for (Memory& memory : out) outputs.push_back({memory.output(), c.wide});
  for (Memory& memory : dout) from_outputs.push_back({memory.input(), c.wide});
  std::vector<float> checkpoints(static_cast<size_t>(kept * c.states * M), poison);
  const ProgramCall call{{c.T, c.O, c.I, c.C, 3, c.dtype, c.threads},
                         &code,
                         coefficients.data(),
                         inputs.data(),
                         starts.data(),
                         K};
  program_forward({call, outputs.data(), to_after.data(), checkpoints.data()});
  program_backward({call, checkpoints.data(), from_outputs.data(), arriving.data(),
                    gradients.data(), to_dv0.data(), to_sums.data()});

  std::vector<std::vector<float>> tape(static_cast<size_t>(c.T));
  for (int64_t m = 0; m < M; ++m) {
    std::vector<float> values(static_cast<size_t>(at.temporary + TEMPORARIES), 0.0f);
    for (int k = 0; k < c.constants; ++k) {
      const int64_t count = coefficients[k].count;
      values[k] = constants[k][count == M ? m : count == 1 ? 0 : m / 3 % c.C];
    }
    for (int k = 0; k < c.states; ++k) values[at.state + k] = v0[k][m];
    for (int64_t t = 0; t < c.T; ++t) {
      for (int k = 0; k < c.inputs; ++k) values[at.x + k] = x[k].get(t, m);
      for (int k = 0; k < c.states && t && t % K == 0; ++k) {
        const float got = checkpoints[((t / K - 1) * c.states + k) * M + m];
        equal(got, values[at.state + k], "checkpoint", t, m);
      }
      tape[t] = values;
      run_scalar(parts.forward, values);
      for (int k = 0; k < c.outputs; ++k) {
        float want = values[at.out + k];
        if (out_dtype != Dtype::float32) want = widen(narrow(want, out_dtype), out_dtype);
        if (!c.functions) same(out[k].get(t, m), want, "output", t, m);
      }
      for (int k = 0; k < c.states; ++k) values[at.state + k] = values[at.next + k];
    }
    for (int k = 0; k < c.states; ++k) equal(after[k][m], values[at.next + k], "state", c.T, m);
    if (c.functions) continue;  // the adjoint may compare what is an ulp off

    std::vector<float> carried;
    for (int k = 0; k < c.states; ++k) carried.push_back(dv[k][m]);
    std::vector<double> totals(c.sums);
    std::vector<float> chunk(c.sums);
    for (int64_t t = c.T - 1; t >= 0; --t) {
      values = tape[t];
      for (int k = 0; k < c.outputs; ++k) values[at.dout + k] = dout[k].get(t, m);
      for (int k = 0; k < c.states; ++k) values[at.dstate + k] = carried[k];
      for (int k = 0; k < c.sums; ++k) values[at.sum + k] = chunk[k];
      run_scalar(parts.adjoint, values);
      for (int k = 0; k < c.inputs; ++k) {
        float want = values[at.dx + k];
        if (c.dtype != Dtype::float32) want = widen(narrow(want, c.dtype), c.dtype);
        same(dx[k].get(t, m), want, "dx", t, m);
      }
      for (int k = 0; k < c.states; ++k) carried[k] = values[at.before + k];
      for (int k = 0; k < c.sums; ++k) {
        chunk[k] = values[at.sum + k];
        if (t % K == 0) totals[k] += static_cast<double>(chunk[k]), chunk[k] = 0;
      }
    }
    for (int k = 0; k < c.states; ++k) same(dv0[k][m], carried[k], "dstate0", 0, m);
    for (int k = 0; k < c.sums; ++k) same(sums[k][m], static_cast<float>(totals[k]), "sum", 0, m);
  }

  for (auto* all : {&out, &dx}) {
    for (Memory& memory : *all) {
      memory.erase();
      for (uint16_t word : memory.words) assert(word == POISON && "it wrote beyond a row");
    }
  }
}

Case draw(Random& random) {
  const int64_t steps[] = {1, 2, 15, 16, 17, 33}, lengths[] = {1, 3, 15, 16, 17, 31, 67, 130};
  Case c{};
  c.T = steps[random.below(6)];
  c.O = 1 + random.below(3);
  c.I = lengths[random.below(8)];
  c.C = 1 + random.below(4);
  c.gap = random.below(3);
  c.offset = random.below(3);
  c.constants = random.below(4);
  c.inputs = 1 + random.below(2);
  c.states = 1 + random.below(3);
  c.outputs = 1 + random.below(3);
  c.sums = random.below(3);
  c.length = TEMPORARIES + random.below(12);
  c.threads = 1 + random.below(3);
  c.dtype = static_cast<Dtype>(random.below(3));
  c.wide = random.below(2);
  c.given = random.below(2);
  c.carried = random.below(2);
  c.constant_rows = random.below(4) == 0;
  return c;
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 150;
  std::string names = available_isas();
  while (!names.empty()) {
    const std::string name = names.substr(0, names.find(' '));
    names = names.size() > name.size() ? names.substr(name.size() + 1) : "";
    assert(use_isa(name.c_str()));
    Random random{1};
    for (int k = 0; k < cases; ++k) {
      const Case c = draw(random);
      check(c, random);
    }
    for (Dtype dtype : {Dtype::float32, Dtype::bfloat16, Dtype::float16}) {
      Case c = draw(random);  // larger than the caches: several tiles, written past them
      c.T = 17, c.O = 1, c.I = dtype == Dtype::float32 ? 16003 : 32003, c.dtype = dtype;
      check(c, random);
    }
    Case c = draw(random);
    c.functions = true, c.T = 1;
    check(c, random);
    std::printf("%s: %d random programs equal the scalar loop\n", name.c_str(), cases);
  }
  return 0;
}
