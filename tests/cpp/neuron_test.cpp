// The CPU kernels against a scalar loop over neuron.h, on odd sizes, strides and alignments, for
// every instruction set of this machine. Run under ASan and UBSan: every buffer is exactly as large
// as it must be, and what no kernel may write is checked to be as it was.
#include <cassert>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "buffers.h"
#include "cpu/dispatch.h"
#include "snncore.h"

namespace {

using namespace snn;

// --- one call -----------------------------------------------------------------------------------

struct Case {
  int64_t T, O, I, C;
  int gap, offset;
  Dtype dtype;
  Reset reset;
  Surrogate surrogate;
  bool detach, record, carried, constant_rows, given;
  float refractory;
  int coefficients;  // 0: values, 1: one in memory, 2: one per channel
  int threads;
};

// Of one step, for adjoint_step().
struct Terms {
  float before, of[PARAMETERS];
  bool wants(Parameter p) const { return p == DECAY || p == THETA; }
  void add(Parameter p, float term) { of[p] = term; }
  float v_before() const { return before; }
  float current() const { return 0; }
  float trace() const { return 0; }
};

template <Reset R>
void check(const Case& c, Random random) {
  const int64_t M = c.O * c.I, K = 16, kept = (c.T - 1) / K, rows = c.refractory > 0 ? 2 : 1;
  Memory x(c.dtype, c.T, c.O, c.I, c.gap, c.offset), s = x, dx = x, ds = x;
  Memory h(Dtype::float32, c.T, c.O, c.I, c.gap, c.offset), dh = h;
  if (c.constant_rows) x.inner = ds.inner = 0;
  x.fill(random, -0.8f, 1.4f);
  ds.fill(random, -1, 1);
  dh.fill(random, -1, 1);
  std::vector<float> v0(M), wait0(M), dv(M), decays(c.C), thetas(c.C);
  for (float& a : v0) a = random.uniform(-1, 1);
  for (float& a : wait0) a = static_cast<float>(random.below(3));
  for (float& a : dv) a = random.uniform(-1, 1);
  for (float& a : decays) a = random.uniform(0.5f, 1);
  for (float& a : thetas) a = random.uniform(0.5f, 1);

  Problem q{};
  q.T = c.T, q.O = c.O, q.I = c.I, q.C = c.C, q.channel_inner = 3;
  q.dtype = c.dtype;
  q.reset = c.reset;
  q.detach_reset = c.detach;
  q.surrogate = c.surrogate;
  q.K = K;
  q.numbers.surrogate_p = 1.25f;
  q.numbers.surrogate_q =
      c.surrogate == Surrogate::gaussian || c.surrogate == Surrogate::sigmoid ? -1.25f : 0.75f;
  q.numbers.v_reset = -0.25f;
  q.refractory = static_cast<int64_t>(c.refractory);
  q.decay = {c.coefficients ? decays.data() : nullptr, c.coefficients == 2 ? c.C : 1, 0.75f};
  q.v_threshold = {c.coefficients ? thetas.data() : nullptr, c.coefficients == 2 ? c.C : 1, 0.8f};
  q.x = x.input();
  q.v0 = c.given ? v0.data() : nullptr;
  q.wait0 = c.given && c.refractory > 0 ? wait0.data() : nullptr;
  q.threads = c.threads;

  const float poison = from_bits(0x7fa57fa5);
  std::vector<float> v(M, poison), wait(rows == 2 ? M : 0, poison);
  std::vector<float> checkpoints(kept * rows * M, poison), dv0(M, poison);
  std::vector<float> ddecay(M, poison), dtheta(M, poison);
  NeuronForward forward{q,        s.output(),  c.record ? h.output() : Output{},
                        v.data(), wait.data(), checkpoints.data()};
  neuron_forward(forward);
  NeuronBackward backward{q,
                          checkpoints.data(),
                          ds.input(),
                          c.record ? dh.input() : Input{},
                          c.carried ? dv.data() : nullptr,
                          dx.output(),
                          dv0.data(),
                          c.coefficients ? ddecay.data() : nullptr,
                          c.coefficients ? dtheta.data() : nullptr};
  neuron_backward(backward);

  const bool exact = c.surrogate != Surrogate::gaussian && c.surrogate != Surrogate::sigmoid;
  const auto equal = exact ? same : close;
  std::vector<float> before(c.T);
  std::vector<Step<float, bool>> steps(c.T);
  for (int64_t m = 0; m < M; ++m) {
    const int64_t channel = c.coefficients == 2 ? m / q.channel_inner % c.C : 0;
    const float decay = c.coefficients ? decays[channel] : q.decay.value;
    const float theta = c.coefficients ? thetas[channel] : q.v_threshold.value;
    const Neuron<float> neuron = {decay, theta, false, rows == 2, 1, c.refractory, 0, q.numbers};
    NeuronState<float> state = {c.given ? v0[m] : 0, q.wait0 ? wait0[m] : 0, 0};
    for (int64_t t = 0; t < c.T; ++t) {
      if (t && t % K == 0) {
        const float* row = checkpoints.data() + (t / K - 1) * rows * M;
        same(row[m], state.v, "checkpoint of v", t, m);
        if (rows == 2) same(row[M + m], state.wait, "checkpoint of wait", t, m);
      }
      before[t] = state.v;
      steps[t] = neuron_step<R>(neuron, state, x.get(t, m));
      same(s.get(t, m), steps[t].fired, "s", t, m);
      if (c.record) same(h.get(t, m), steps[t].h, "h", t, m);
    }
    same(v[m], state.v, "v", c.T, m);
    if (rows == 2) same(wait[m], state.wait, "wait", c.T, m);

    StateGradients<float> dstate = {c.carried ? dv[m] : 0, 0};
    float decay_sum = 0, theta_sum = 0;
    double decay_total = 0, theta_total = 0;
    for (int64_t t = c.T - 1; t >= 0; --t) {
      const float u = steps[t].h - theta;
      const float f = surrogate_grad(c.surrogate, u, q.numbers.surrogate_p, q.numbers.surrogate_q);
      const Arriving<float> from = {ds.get(t, m), c.record ? dh.get(t, m) : 0, 0,     c.record,
                                    false,        c.carried || t + 1 < c.T,    false, c.detach};
      Terms terms = {before[t], {}};
      float want = adjoint_step<R>(neuron, steps[t], f, from, dstate, terms);
      if (c.dtype != Dtype::float32) want = widen(narrow(want, c.dtype), c.dtype);
      if (exact || c.dtype == Dtype::float32) equal(dx.get(t, m), want, "dx", t, m);
      decay_sum += terms.of[DECAY];
      theta_sum += terms.of[THETA];
      if (t % K == 0) {  // float32 within a chunk, float64 over them
        decay_total += static_cast<double>(decay_sum);
        theta_total += static_cast<double>(theta_sum);
        decay_sum = theta_sum = 0;
      }
    }
    equal(dv0[m], dstate.v, "dv0", 0, m);
    if (c.coefficients) {
      equal(ddecay[m], static_cast<float>(decay_total), "ddecay", 0, m);
      equal(dtheta[m], static_cast<float>(theta_total), "dv_threshold", 0, m);
    }
  }

  // What lies between rows and steps is not the kernel's to write, nor is h where nobody asked.
  for (Memory* memory : {&s, &dx, &h}) {
    if (memory != &h || c.record) memory->erase();
    for (uint16_t word : memory->words) assert(word == POISON && "the kernel wrote beyond a row");
  }
}

Case draw(Random& random) {
  Case c{};
  const int64_t steps[] = {1, 2, 15, 16, 17, 33}, lengths[] = {1, 3, 15, 16, 17, 31, 67, 130};
  c.T = steps[random.below(6)];
  c.O = 1 + random.below(3);
  c.I = lengths[random.below(8)];
  c.C = 1 + random.below(4);
  c.gap = random.below(3);
  c.offset = random.below(3);
  c.dtype = static_cast<Dtype>(random.below(3));
  c.reset = static_cast<Reset>(random.below(3));
  c.surrogate = static_cast<Surrogate>(random.below(6));
  c.detach = random.below(2);
  c.record = random.below(2);
  c.carried = random.below(2);
  c.constant_rows = random.below(4) == 0;
  c.given = random.below(2);
  c.refractory = static_cast<float>(random.below(2) * 2);
  c.coefficients = random.below(3);
  c.threads = 1 + random.below(3);
  return c;
}

void run(const Case& c, Random random) {
  with_reset(c.reset, [&](auto reset) { check<reset.value>(c, random); });
}

// Larger than the caches: rows of several tiles, written past the caches, aligned and not.
void run_large(Random& random) {
  for (Dtype dtype : {Dtype::float32, Dtype::bfloat16, Dtype::float16}) {
    for (int offset : {0, 1}) {
      Case c = draw(random);
      c.T = 17, c.O = 1, c.I = dtype == Dtype::float32 ? 16003 : 32003;
      c.dtype = dtype;
      c.gap = c.offset = offset;
      c.threads = 2;
      run(c, random);
    }
  }
}

void check_reduction() {
  const int64_t M = 1003, C = 7, inner = 3;
  std::vector<float> values(M);
  Random random{5};
  for (float& a : values) a = random.uniform(-1, 1);
  std::vector<double> scratch(REDUCE_BLOCKS * C), want(C, 0.0);
  for (int64_t m = 0; m < M; ++m) want[m / inner % C] += static_cast<double>(values[m]);
  for (int threads : {1, 3}) {
    std::vector<float> out(C);
    reduce_channels(values.data(), M, C, inner, scratch.data(), out.data(), threads);
    for (int64_t c = 0; c < C; ++c) assert(std::fabs(double(out[c]) - want[c]) < 1e-5);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 200;
  std::string names = available_isas();
  assert(!use_isa("no such ISA"));
  while (!names.empty()) {
    const std::string name = names.substr(0, names.find(' '));
    names = names.size() > name.size() ? names.substr(name.size() + 1) : "";
    assert(use_isa(name.c_str()));
    Random random{1};
    for (int k = 0; k < cases; ++k) {
      const Case c = draw(random);
      run(c, random);
    }
    run_large(random);
    std::printf("%s: %d cases and 6 large ones equal the scalar loop\n", name.c_str(), cases);
  }
  check_reduction();
  return 0;
}
