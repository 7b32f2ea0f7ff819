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
    const Step step = neuron_step(q, j, x.get(j), state);
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
  Sums<1, VEC, false> sums;

  SNN_DEVICE void add(const Call& a, const Coefficients<VEC, Level::general>& q,
                      const float (&h)[VEC]) {
    if (!a.regularise) return;
#pragma unroll
    for (int j = 0; j < VEC; ++j) sums.add(0, j, penalty(h[j], q.theta(j), a.tolerance, a.shift));
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

template <Surrogate S, int VEC, int K, Level L>
SNN_DEVICE void surrogate_tape(const Call& a, const Coefficients<VEC, L>& q,
                               const float (&h)[K][VEC], float (&f)[K][VEC]) {
#pragma unroll
  for (int k = 0; k < K; ++k) {
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      f[k][j] = surrogate_grad(S, h[k][j] - q.theta(j), a.surrogate_p, a.surrogate_q);
    }
  }
}

// One branch for a whole chunk, so that the surrogates of all its steps overlap.
template <int VEC, int K, Level L>
SNN_DEVICE void surrogate_tape(const Call& a, const Coefficients<VEC, L>& q,
                               const float (&h)[K][VEC], float (&f)[K][VEC]) {
  switch (static_cast<Surrogate>(a.surrogate)) {
    case Surrogate::triangle:
      return surrogate_tape<Surrogate::triangle>(a, q, h, f);
    case Surrogate::rectangle:
      return surrogate_tape<Surrogate::rectangle>(a, q, h, f);
    case Surrogate::gaussian:
      return surrogate_tape<Surrogate::gaussian>(a, q, h, f);
    case Surrogate::atan:
      return surrogate_tape<Surrogate::atan>(a, q, h, f);
    case Surrogate::sigmoid:
      return surrogate_tape<Surrogate::sigmoid>(a, q, h, f);
    default:
      return surrogate_tape<Surrogate::fast_sigmoid>(a, q, h, f);
  }
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

  SNN_DEVICE bool fired(int k, int j) const { return fired_bits >> (k * VEC + j) & 1; }
  SNN_DEVICE bool live(int k, int j) const { return live_bits >> (k * VEC + j) & 1; }
};

// The gradients that are summed over time.
enum Sum : int { DECAY, THETA, GAIN, TRACE_DECAY, ALPHA, BETA = ALPHA + SYNAPSE_ORDER };
template <int VEC, Level L>
using NeuronSums =
    Sums<L == Level::general ? BETA + SYNAPSE_ORDER + 1 : 2, VEC, L == Level::general>;

// What Level::general adds to what goes backward through time.
template <int VEC, Level L>
struct MoreAdjoint {};
template <int VEC>
struct MoreAdjoint<VEC, Level::general> {
  float dtrace[VEC], dpenalty;
  FilterAdjoint<SYNAPSE_ORDER, VEC> synapse;
};

// The gradient on the state after a step, and the sums so far.
template <int VEC, Level L>
struct Adjoint : MoreAdjoint<VEC, L> {
  float dv[VEC];
  NeuronSums<VEC, L> sums;

  SNN_DEVICE Adjoint(const Call& a, Int m, bool inside = true) {
    load_row_or_zero(dv, inside ? a.dv : nullptr, m);
    if constexpr (L == Level::general) {
      load_row_or_zero(this->dtrace, a.dtrace, m);
      this->dpenalty = a.dpenalty ? *a.dpenalty : 0.0f;
    }
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

// Step k of a chunk: from the gradients on s, h and the state after it to those on x and the state
// before it. `left` steps of the call come after it.
template <Reset R, bool DETACH, int VEC, int K, Level L>
SNN_DEVICE float adjoint_step(const Call& a, const Coefficients<VEC, L>& q, Int m, int left,
                              bool carried, const Tape<VEC, K, L>& tape, int k, int j, float ds,
                              bool recorded, float dh, Adjoint<VEC, L>& to) {
  constexpr bool GENERAL = L == Level::general;
  constexpr bool KEEPS_H = L == Level::plain && R == Reset::hard && !DETACH;
  const float h = tape.h[k][j];
  const bool fired = KEEPS_H ? fire(h, q.theta(j)) : tape.fired(k, j);
  const bool live = !q.refractory() || tape.live(k, j), detach = GENERAL ? a.detach : DETACH;
  float v_before = 0.0f;
  if (L != Level::plain && a.ddecay) {
    v_before = k == 0 ? tape.v_start[j]
                      : reset<R>(tape.h[k ? k - 1 : 0][j], tape.fired(k ? k - 1 : 0, j), q.theta(j),
                                 q.v_reset);
  }
  const bool trace_carried = left > 0 || a.dtrace;
  if constexpr (R == Reset::trace) {
    if (!detach && trace_carried) ds += to.dtrace[j];
  }
  float pulled = 0.0f;
  if constexpr (GENERAL) {
    if (a.dpenalty) {
      pulled = to.dpenalty * penalty_grad(h, q.theta(j), a.tolerance, a.shift);
      dh = recorded ? dh + pulled : pulled;
      recorded = true;
    }
  }
  const auto back = step_back<R>(ds, dh, recorded, to.dv[j], carried, detach, h, fired, live,
                                 tape.f[k][j], v_before, q.decay(j), q.theta(j), q.v_reset);
  to.dv[j] = back.dv;
  float dtheta = back.dtheta, dx = back.dx;
  if (GENERAL && a.dpenalty) dtheta -= pulled;
  if constexpr (R == Reset::trace) {
    const auto trace = trace_back(back.dx, tape.trace[k][j], to.dtrace[j], trace_carried,
                                  q.theta(j), q.trace_decay[j]);
    to.dtrace[j] = trace.dr;
    dtheta += trace.dtheta;
    to.sums.add(TRACE_DECAY, j, trace.dtrace_decay);
  }
  to.sums.add(DECAY, j, back.ddecay);
  to.sums.add(THETA, j, dtheta);
  if constexpr (GENERAL) {
    if (a.dgain) to.sums.add(GAIN, j, dx * tape.filter.output(k, j));
    dx = to.synapse.step(a, q.synapse, m, left, j, dx * q.gain[j]);
    if (a.dcoefficients) tape.filter.add_terms(to.sums, ALPHA, k, j, to.synapse.g[0][j]);
  }
  return dx;
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
      const Step step = neuron_step(q, j, x[k].get(j), state);
      if (step.live && q.refractory()) tape.live_bits |= 1u << (k * VEC + j);
      if (step.fired) tape.fired_bits |= 1u << (k * VEC + j);
      if constexpr (GENERAL) tape.filter.put(k, j, x[k].get(j), step.current);
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
  Adjoint<VEC, L> to(a, at.m);
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
          for (int j = 0; j < VEC; ++j) neuron_step(q, j, x_steps[k].get(j), state);
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
