// The time loop of the neuron on CUDA: device kernels only. nvcc and NVRTC compile this same text,
// and the tests run it on the CPU. neuron.h holds the equations, backends/cuda/launch.py chooses
// kernel and shape.
//
// A thread owns VEC neurons that lie side by side and walks over time with their state in
// registers. VEC divides I and every row is aligned to VEC elements, so no access is partial.
#pragma once

#include "neuron.cuh"
#include "sums.cuh"

namespace snn {
namespace cuda {

// --- forward -------------------------------------------------------------------------------------

// One step of VEC neurons, from x to s and h.
template <class IO, Reset R, int VEC, Level L>
SNN_DEVICE Pack<IO, VEC> forward_step(const Coefficients<VEC, L>& q, const Pack<IO, VEC>& x,
                                      State<R, VEC, L>& state, float (&h)[VEC]) {
  Pack<IO, VEC> s;
#pragma unroll
  for (int j = 0; j < VEC; ++j) {
    const auto step = state.step(q, j, state.current(q, j, x.get(j)));
    h[j] = step.h;
    s.set_spike(j, step.fired);
  }
  return s;
}

// The penalty on the potentials, summed over time; only Level::general has it.
template <int VEC, Level L>
struct Penalties {
  SNN_DEVICE void add(const Call&, const Coefficients<VEC, L>&, const float (&)[VEC]) {}
  SNN_DEVICE void end_chunk(const Call&) {}
  SNN_DEVICE void store(const Call&, Int) {}
};
template <int VEC>
struct Penalties<VEC, Level::general> {
  typename Sums<1, VEC, false>::Room room;
  Sums<1, VEC, false> sums{room};

  SNN_DEVICE void add(const Call& a, const Coefficients<VEC, Level::general>& q,
                      const float (&h)[VEC]) {
    if (!a.regularise) return;
#pragma unroll
    for (int j = 0; j < VEC; ++j) sums.add(0, j, penalty(q.neuron(j), h[j]));
  }
  SNN_DEVICE void end_chunk(const Call& a) {
    if (a.regularise) sums.end_chunk(), sums.start_chunk();
  }
  SNN_DEVICE void store(const Call& a, Int m) {
    if (a.regularise) sums.store(0, a.penalty, m);
  }
};

template <class IO, Reset R, int VEC, int U, Level L>
__global__ void __launch_bounds__(THREADS, 4) neuron_fwd_kernel(const __grid_constant__ Call a) {
  constexpr bool RARE = L != Level::plain;
  Place at;
  if (!find_place<VEC>(a, at)) return;
  const Coefficients<VEC, L> q(a, at.m);
  State<R, VEC, L> state;
  state.start(a, q, at.m);
  float* h_out = RARE && a.h.p ? reinterpret_cast<float*>(address<float>(a.h, at)) : nullptr;
  const Int M = a.O * a.I;
  float* checkpoint = a.checkpoints + at.m;
  Penalties<VEC, L> penalties;
  walk_forward<IO, VEC, U, RARE>(
      a, at,
      [&](const Pack<IO, VEC>& x) {
        float h[VEC];
        const auto s = forward_step<IO>(q, x, state, h);
        if (RARE && h_out) store_row(h_out, h), h_out += a.h.time;
        penalties.add(a, q, h);
        return s;
      },
      [&] { penalties.end_chunk(a); }, [&] { state.save(a, q, M, checkpoint); });
  state.finish(a, q, at.m);
  penalties.store(a, at.m);
}

// --- backward ------------------------------------------------------------------------------------

// One branch for a whole chunk, so that the surrogates of all its steps overlap.
template <int VEC, int K, Level L>
SNN_DEVICE void surrogate_tape(const Call& a, const Coefficients<VEC, L>& q,
                               const float (&h)[K][VEC], float (&f)[K][VEC]) {
  with_surrogate(static_cast<Surrogate>(a.surrogate), [&](auto kind) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        f[k][j] = surrogate_grad(kind.value, h[k][j] - q.theta(j), a.numbers.surrogate_p,
                                 a.numbers.surrogate_q);
      }
    }
  });
}

// What Level::general adds to the tape.
template <int VEC, int K, Level L>
struct MoreTape {};
template <int VEC, int K>
struct MoreTape<VEC, K, Level::general> {
  float trace[K][VEC];  // before the step
  FilterTape<SYNAPSE_ORDER, VEC, K> filter;
};

// What the adjoint of one chunk of K steps needs. h where anything but f is made of it, else only
// whether it fired.
template <int VEC, int K, Level L>
struct Tape : MoreTape<VEC, K, L> {
  static_assert(K * VEC <= 32, "one bit of a word for each neuron-step");
  float h[K][VEC], f[K][VEC], v_start[VEC];
  unsigned fired_bits = 0, live_bits = 0;

  SNN_DEVICE Step<float, bool> step(const Coefficients<VEC, L>& q, int k, int j) const {
    return {h[k][j], bool(fired_bits >> (k * VEC + j) & 1),
            !q.refractory() || (live_bits >> (k * VEC + j) & 1)};
  }
};

// The gradients that are summed over time.
enum : int { ALPHA = PARAMETERS, BETA = ALPHA + SYNAPSE_ORDER };  // after those of neuron.h
template <int VEC, Level L>
using NeuronSums =
    Sums<L == Level::general ? BETA + SYNAPSE_ORDER + 1 : 2, VEC, L == Level::general>;

// What Level::general adds to what goes backward through time.
template <int VEC, Level L>
struct MoreAdjoint {};
template <int VEC>
struct MoreAdjoint<VEC, Level::general> {
  float dtrace[VEC], dpenalty_;
  FilterAdjoint<SYNAPSE_ORDER, VEC> synapse;
};

// The gradient on the state after a step, and the sums so far.
template <int VEC, Level L>
struct Adjoint : MoreAdjoint<VEC, L> {
  float dv[VEC];
  NeuronSums<VEC, L> sums;

  SNN_DEVICE Adjoint(const Call& a, Int m, typename NeuronSums<VEC, L>::Room& room,
                     bool inside = true)
      : sums(room) {
    load_row_or_zero(dv, inside ? a.dv : nullptr, m);
    if constexpr (L == Level::general) {
      load_row_or_zero(this->dtrace, a.dtrace, m);
      this->dpenalty_ = a.dpenalty ? *a.dpenalty : 0.0f;
    }
  }
  SNN_DEVICE float dpenalty() const {
    if constexpr (L == Level::general) return this->dpenalty_;
    return 0.0f;
  }
  SNN_DEVICE StateGradients<float> state(int j) const {
    if constexpr (L == Level::general) return {dv[j], this->dtrace[j]};
    return {dv[j], 0.0f};
  }
  SNN_DEVICE void put(int j, const StateGradients<float>& from) {
    dv[j] = from.v;
    if constexpr (L == Level::general) this->dtrace[j] = from.trace;
  }
  // The adjoint of the input stage: from the gradient on the current of step k to that on x.
  template <int K>
  SNN_DEVICE float send(const Call& a, const Coefficients<VEC, L>& q, Int m, int left,
                        const Tape<VEC, K, L>& tape, int k, int j, float di) {
    if constexpr (L == Level::general) {
      di = this->synapse.step(a, q.synapse, m, left, j, di);
      if (a.dcoefficients) tape.filter.add_terms(sums, ALPHA, k, j, this->synapse.g[0][j]);
    }
    return di;
  }
  SNN_DEVICE void finish(const Call& a, const Coefficients<VEC, L>& q, Int m) {
    if (a.dv0) store_row(a.dv0 + m, dv);
    if constexpr (L != Level::plain) {
      sums.store(DECAY, a.ddecay, m);
      sums.store(THETA, a.dtheta, m);
    }
    if constexpr (L == Level::general) {
      if (a.dtrace0) store_row(a.dtrace0 + m, this->dtrace);
      this->synapse.finish(a, q.synapse, m);
      sums.store(GAIN, a.dgain, m);
      sums.store(TRACE_DECAY, a.dtrace_decay, m);
      sums.template store_filter<SYNAPSE_ORDER>(ALPHA, a, m);
    }
  }
};

// What snn::adjoint_step() asks for the gradients on coefficients, of neuron j at step k.
template <Reset R, int VEC, int K, Level L>
struct Terms {
  const Call& a;
  const Coefficients<VEC, L>& q;
  const Tape<VEC, K, L>& tape;
  Adjoint<VEC, L>& to;
  int k, j;

  SNN_DEVICE bool wants(Parameter p) const {
    if (p == GAIN) return L == Level::general && a.dgain;
    return p == DECAY ? L != Level::plain && a.ddecay : L != Level::plain;
  }
  SNN_DEVICE void add(Parameter p, float term) { to.sums.add(p, j, term); }
  SNN_DEVICE float v_before() const {
    return k == 0 ? tape.v_start[j] : reset<R>(q.neuron(j), tape.step(q, k ? k - 1 : 0, j));
  }
  SNN_DEVICE float current() const {
    if constexpr (L == Level::general) return tape.filter.output(k, j);
    return 0.0f;
  }
  SNN_DEVICE float trace() const {
    if constexpr (R == Reset::trace) return tape.trace[k][j];
    return 0.0f;
  }
};

// Step k of a chunk: from the gradients on s, h and the state after it to those on x and the state
// before it. `left` steps of the call come after it.
template <Reset R, bool DETACH, int VEC, int K, Level L>
SNN_DEVICE float adjoint_step(const Call& a, const Coefficients<VEC, L>& q, Int m, int left,
                              bool carried, const Tape<VEC, K, L>& tape, int k, int j, float ds,
                              bool recorded, float dh, Adjoint<VEC, L>& to) {
  constexpr bool GENERAL = L == Level::general;
  constexpr bool KEEPS_H = L == Level::plain && R == Reset::hard && !DETACH;
  const Neuron<float> neuron = q.neuron(j);
  const auto step = KEEPS_H ? fire(neuron, tape.h[k][j], 0.0f) : tape.step(q, k, j);
  const Arriving<float> from = {ds,
                                dh,
                                to.dpenalty(),
                                recorded,
                                GENERAL && a.dpenalty,
                                carried,
                                left > 0 || a.dtrace,
                                GENERAL ? bool(a.detach) : DETACH};
  StateGradients<float> state = to.state(j);
  Terms<R, VEC, K, L> terms = {a, q, tape, to, k, j};
  const float di = adjoint_step<R>(neuron, step, tape.f[k][j], from, state, terms);
  to.put(j, state);
  return to.send(a, q, m, left, tape, k, j, di);
}

// n steps, the last one first; dh and dx point at the first. FULL: n is K, and a gradient arrives
// on the state after the last of them. `after` steps of the call come after them.
template <bool FULL, class IO, Reset R, bool DETACH, int VEC, int K, Level L>
SNN_DEVICE void adjoint(const Call& a, const Coefficients<VEC, L>& q, Int m, int n, int after,
                        bool carried, const Tape<VEC, K, L>& tape, const Pack<IO, VEC> (&ds)[K],
                        const char* dh, char* dx, Adjoint<VEC, L>& to) {
  constexpr bool RARE = L != Level::plain;
  const bool recorded = RARE && a.dh.p;
  const Int dx_step = a.dx.time * Int(sizeof(IO)), dh_step = a.dh.time * Int(sizeof(float));
  dx += (n - 1) * dx_step;
  if (recorded) dh += (n - 1) * dh_step;
#pragma unroll
  for (int k = K - 1; k >= 0; --k) {
    if (FULL || k < n) {
      auto dh_t = Pack<float, VEC>::zero();
      if (recorded) dh_t = load_step<float, VEC, RARE>(a.dh, dh);
      float out[VEC];
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        out[j] = adjoint_step<R, DETACH>(a, q, m, after + n - 1 - k, FULL || carried || k != n - 1,
                                         tape, k, j, ds[k].get(j), recorded, dh_t.get(j), to);
      }
      if (!RARE || a.dx.p) Pack<IO, VEC>::of(out).store(dx);
      dx -= dx_step;
      if (recorded) dh -= dh_step;
    }
  }
}

// n <= K steps: recompute h from the state before them, then run the adjoint. `to` belongs to the
// state after the chunk (carried: if anything arrives there on v), then to the one before it.
template <class IO, Reset R, bool DETACH, int VEC, int K, Level L>
SNN_DEVICE void backward_chunk(const Call& a, const Coefficients<VEC, L>& q, Int m, int n,
                               int after, bool carried, const Pack<IO, VEC> (&x)[K],
                               const Pack<IO, VEC> (&ds)[K], const char* dh, char* dx,
                               State<R, VEC, L>& state, Adjoint<VEC, L>& to) {
  constexpr bool GENERAL = L == Level::general;
  Tape<VEC, K, L> tape;
#pragma unroll
  for (int j = 0; j < VEC; ++j) tape.v_start[j] = state.v[j];
  if constexpr (GENERAL) tape.filter.start(state.synapse);
#pragma unroll
  for (int k = 0; k < K; ++k) {
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      if constexpr (R == Reset::trace) tape.trace[k][j] = state.trace[j];
      const float current = state.current(q, j, x[k].get(j));
      const auto step = state.step(q, j, current);
      if (step.live && q.refractory()) tape.live_bits |= 1u << (k * VEC + j);
      if (step.fired) tape.fired_bits |= 1u << (k * VEC + j);
      if constexpr (GENERAL) tape.filter.put(k, j, x[k].get(j), current);
      tape.h[k][j] = step.h;
    }
  }
  keep_word(tape.fired_bits);
  surrogate_tape(a, q, tape.h, tape.f);

  to.sums.start_chunk();
  if (!GENERAL && n == K && carried) {
    adjoint<true, IO, R, DETACH>(a, q, m, K, after, true, tape, ds, dh, dx, to);
  } else {
    adjoint<false, IO, R, DETACH>(a, q, m, n, after, carried, tape, ds, dh, dx, to);
  }
  if constexpr (L != Level::plain) to.sums.end_chunk();
}

// From the last chunk of K steps to the first: its x and ds are loaded before the first store. The
// general kernels have shorter chunks than there are steps between checkpoints, and come to the
// later ones by way of the earlier.
template <class IO, Reset R, bool DETACH, int VEC, int K, Level L>
__global__ void __launch_bounds__(THREADS, 4) neuron_bwd_kernel(const __grid_constant__ Call a) {
  constexpr bool RARE = L != Level::plain, GENERAL = L == Level::general;
  Place at;
  if (!find_place<VEC>(a, at)) return;
  const Coefficients<VEC, L> q(a, at.m);
  const int last = (a.T - 1) / K, chunks = GENERAL ? a.K / K : 1;  // to a checkpoint
  const Int x_step = K * a.x.time * Int(sizeof(IO)), ds_step = K * a.ds.time * Int(sizeof(IO)),
            dx_step = K * a.dx.time * Int(sizeof(IO)), dh_step = K * a.dh.time * Int(sizeof(float));
  const char *x = address<IO>(a.x, at) + last * x_step,
             *ds = address<IO>(a.ds, at) + last * ds_step,
             *dh = RARE ? address<float>(a.dh, at) + last * dh_step : nullptr;
  char* dx = address<IO>(a.dx, at) + last * dx_step;
  const Int rows = State<R, VEC, L>::rows(a, q) * (a.O * a.I);
  const float* start = a.checkpoints + (last / chunks - 1) * rows + at.m;
  State<R, VEC, L> state;
  __shared__ typename NeuronSums<VEC, L>::Room room;
  Adjoint<VEC, L> to(a, at.m, room);
  int n = a.T - last * K;
  bool carried = a.dv;
#pragma unroll 1
  for (int c = last; c >= 0; --c) {
    const int ahead = GENERAL ? c % chunks : 0;
    Pack<IO, VEC> x_steps[K], ds_steps[K];
    if (!GENERAL) {
      load_steps<IO, VEC, RARE>(x_steps, a.x, x, n);
      load_steps<IO, VEC, RARE>(ds_steps, a.ds, ds, n);
    }
    if (c >= chunks) {
      state.template restore<IO>(a, q, start, x - ahead * x_step);
    } else {
      state.start(a, q, at.m);
    }
    if (GENERAL) {
#pragma unroll 1
      for (int b = ahead; b > 0; --b) {
        load_steps<IO, VEC, RARE>(x_steps, a.x, x - b * x_step, K);
#pragma unroll
        for (int k = 0; k < K; ++k) {
#pragma unroll
          for (int j = 0; j < VEC; ++j) state.step(q, j, state.current(q, j, x_steps[k].get(j)));
        }
      }
      load_steps<IO, VEC, RARE>(x_steps, a.x, x, n);
      load_steps<IO, VEC, RARE>(ds_steps, a.ds, ds, n);
    }
    backward_chunk<IO, R, DETACH>(a, q, at.m, n, a.T - c * K - n, carried, x_steps, ds_steps, dh,
                                  dx, state, to);
    x -= x_step;
    ds -= ds_step;
    dx -= dx_step;
    if (ahead == 0) start -= rows;
    if (RARE) dh -= dh_step;
    n = K;
    carried = true;
  }
  to.finish(a, q, at.m);
}

}  // namespace cuda
}  // namespace snn
