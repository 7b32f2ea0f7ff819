// THE equations of the neuron and its surrogates, for every compiler: g++, nvcc, NVRTC.
//
// F is a float or a vector of floats; M is what comparing two F gives (bool or a mask). Everything
// here is written once for both: selects instead of branches on data, one rounding per operation
// (contraction is off in all builds), and no #include, so that NVRTC needs no include path.
// snnkernels/core/reference.py and snnkernels/backends/triton/equations.py mirror this file.
#pragma once

#if defined(__CUDACC__)
#define SNN_HD __host__ __device__ __forceinline__
#else
#define SNN_HD inline __attribute__((always_inline))
#endif

namespace snn {

enum class Reset : int { hard, soft, none, trace };
enum class Surrogate : int { triangle, rectangle, gaussian, atan, sigmoid, fast_sigmoid };

SNN_HD float select(bool m, float a, float b) { return m ? a : b; }
SNN_HD float absolute(float a) { return a < 0 ? -a : a; }
SNN_HD float exponential(float a) {
#if defined(__CUDA_ARCH__)
  return expf(a);
#else
  return __builtin_expf(a);
#endif
}

// Of surrogates only. A GPU multiplies by a reciprocal that is right to 1 ulp: dividing exactly
// takes as many instructions as all the rest of a step.
template <class F>
SNN_HD F quotient(F a, F b) {
  return a / b;
}
SNN_HD float quotient(float a, float b) {
#if defined(__CUDA_ARCH__)
  float reciprocal;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(b));
  return a * reciprocal;
#else
  return a / b;
#endif
}

// ds/dh at u = h - v_threshold. p and q are Surrogate.constants() of snnkernels/core/surrogates.py.
template <class F>
SNN_HD F surrogate_grad(Surrogate kind, F u, F p, F q) {
  const F one(1.0f), zero(0.0f);
  switch (kind) {
    case Surrogate::triangle: {  // p * max(0, 1 - |u| q), q = 1 / width
      const F m = one - absolute(u) * q;
      return select(m > zero, m, zero) * p;
    }
    case Surrogate::rectangle:  // p where |u| < q
      return select(absolute(u) < q, p, zero);
    case Surrogate::gaussian:  // p * exp(q u^2), q = -1 / (2 sigma^2)
      return exponential((u * u) * q) * p;
    case Surrogate::atan: {  // p / (1 + (q u)^2)
      const F z = u * q;
      return quotient(p, one + z * z);
    }
    case Surrogate::sigmoid: {  // p y (1 - y), y = 1 / (1 + exp(q u))
      const F y = quotient(one, one + exponential(u * q));
      return (y * p) * (one - y);
    }
    default: {  // fast sigmoid: q / (1 + p |u|)^2
      const F d = one + absolute(u) * p;
      return quotient(q, d * d);
    }
  }
}

template <Surrogate S>
struct SurrogateConstant {
  static constexpr Surrogate value = S;
};

// f(SurrogateConstant<kind>()): from a surrogate known at run time to one known to the compiler.
template <class Function>
SNN_HD void with_surrogate(Surrogate kind, Function f) {
  switch (kind) {
    case Surrogate::triangle:
      return f(SurrogateConstant<Surrogate::triangle>());
    case Surrogate::rectangle:
      return f(SurrogateConstant<Surrogate::rectangle>());
    case Surrogate::gaussian:
      return f(SurrogateConstant<Surrogate::gaussian>());
    case Surrogate::atan:
      return f(SurrogateConstant<Surrogate::atan>());
    case Surrogate::sigmoid:
      return f(SurrogateConstant<Surrogate::sigmoid>());
    default:
      return f(SurrogateConstant<Surrogate::fast_sigmoid>());
  }
}

// One step of the filter of order P, Q (Fang et al., eq. 5d): the inputs and then the outputs, each
// from the oldest to the newest, so that only one product and one sum wait for f[t-1]. beta(q),
// x(q), alpha(p), f(p) are the values at lag q = 0..Q and p = 1..P. Its adjoint is the same step
// backward in time: g[t] = df[t] + sum of alpha(p) g[t+p], dx[t] = sum of beta(q) g[t+q].
template <class Beta, class X, class Alpha, class Y>
SNN_HD auto filter(int P, int Q, Beta beta, X x, Alpha alpha, Y f) -> decltype(beta(0) * x(0)) {
  auto sum = beta(Q) * x(Q);
  for (int q = Q - 1; q >= 0; --q) sum = sum + beta(q) * x(q);
  for (int p = P; p >= 1; --p) sum = sum + alpha(p) * f(p);
  return sum;
}

// --- the neuron ----------------------------------------------------------------------------------

// The numbers of a call that all of its neurons share: the float fields of Call in
// snnkernels/core/call.py, in the same order, which a test compares.
struct Numbers {
  float v_reset, surrogate_p, surrogate_q;
  float tolerance, shift;  // of the penalty

  // Whether a loop that is compiled without what is rare does not do.
  SNN_HD bool need_general() const { return false; }
};

// What a call sets of a neuron, or of a vector of neurons. A loop that is compiled without a part
// gives the flag as a constant, and what belongs to the part need not be set.
template <class F>
struct Neuron {
  F decay, theta;
  bool general, refractory;  // general: with all parts, so with a gain
  F gain, period, trace_decay;
  Numbers numbers;
};

// What a neuron keeps from one step to the next, as values or as places in memory: Cell converts to
// F and takes one. wait: the steps it still may not fire in.
template <class Cell>
struct NeuronState {
  Cell v, wait, trace;
};

// What one step made. live: it might have fired.
template <class F, class M>
struct Step {
  F h;
  M fired, live;
};

template <class F>
SNN_HD F charge(F decay, F v, F x) {
  return decay * v + x;
}

// The trace r of earlier spikes lowers the potential (Fang et al., eq. 5a).
template <class F>
SNN_HD F inhibit(F h, F theta, F r) {
  return h - theta * r;
}

template <class F, class Cell>
SNN_HD auto fire(const Neuron<F>& q, F h, const Cell& wait) -> Step<F, decltype(h >= h)> {
  const F zero(0.0f);
  Step<F, decltype(h >= h)> step = {h, h >= q.theta, zero <= zero};
  if (q.refractory) {
    step.live = F(wait) <= zero;
    step.fired = step.fired & step.live;
  }
  return step;
}

template <Reset R, class F, class M>
SNN_HD F reset(const Neuron<F>& q, const Step<F, M>& step) {
  if (R == Reset::hard) return select(step.fired, F(q.numbers.v_reset), step.h);
  if (R == Reset::soft) return step.h - q.theta * select(step.fired, F(1.0f), F(0.0f));
  return step.h;
}

// The trace of the next step (Fang et al., eq. 5c).
template <class F, class M>
SNN_HD F trace_after(F r, M s, F trace_decay) {
  return trace_decay * r + select(s, F(1.0f), F(0.0f));
}

// Steps that a neuron still has to wait after this one: `period` after a spike.
template <class F, class M>
SNN_HD F wait_after(F wait, M s, F period) {
  const F zero(0.0f), left = wait - F(1.0f);
  return select(s, period, select(left < zero, zero, left));
}

// One step: from the current i[t] and the state before it to the state after it.
template <Reset R, class F, class Cell>
SNN_HD auto neuron_step(const Neuron<F>& q, NeuronState<Cell>& state, F i)
    -> decltype(fire(q, i, state.wait)) {
  constexpr bool TRACE = R == Reset::trace;
  if (q.general) i = q.gain * i;
  F h = charge(q.decay, F(state.v), i);
  const F trace = TRACE ? F(state.trace) : F(0.0f);
  if (TRACE) h = inhibit(h, q.theta, trace);
  const auto step = fire(q, h, state.wait);
  if (q.refractory) state.wait = wait_after(F(state.wait), step.fired, q.period);
  if (TRACE) state.trace = trace_after(trace, step.fired, q.trace_decay);
  state.v = reset<R>(q, step);
  return step;
}

// What a potential far from the threshold costs (Stöckl, fig. 5.8): the square of what |h - middle|
// has over the tolerance, the middle lying `shift` above the threshold.
template <class F>
SNN_HD F beyond(F offset, F tolerance) {
  const F zero(0.0f), excess = absolute(offset) - tolerance;
  return select(excess <= zero, zero, excess);
}
template <class F>
SNN_HD F penalty(const Neuron<F>& q, F h) {
  const F excess = beyond(h - (q.theta + F(q.numbers.shift)), F(q.numbers.tolerance));
  return excess * excess;
}
// Its derivative by h; that by theta is the same with the other sign.
template <class F>
SNN_HD F penalty_grad(const Neuron<F>& q, F h) {
  const F offset = h - (q.theta + F(q.numbers.shift));
  return select(offset < F(0.0f), F(-2.0f), F(2.0f)) * beyond(offset, F(q.numbers.tolerance));
}

// --- its adjoint ---------------------------------------------------------------------------------

// What arrives at step t from outside of it. A gradient that is not there leaves its terms out.
template <class F>
struct Arriving {
  F ds, dh, dpenalty;
  bool recorded;       // dh is there
  bool penalised;      // dpenalty is there
  bool carried;        // something arrives on v[t]: not in the last step of a call whose state got
                       // no gradient
  bool trace_carried;  // the same of r[t+1]
  bool detach;         // the reset does not reach back through s
};

// Gradients on the state after a step, or before it: as NeuronState.
template <class Cell>
struct StateGradients {
  Cell v, trace;
};

// The coefficients whose gradients are sums over the steps of a neuron.
enum Parameter : int { DECAY, THETA, GAIN, TRACE_DECAY, PARAMETERS };

// One step of the adjoint: from the gradients on s[t], h[t] and the state after it to those on
// i[t], which is returned, and the state before it. f: the surrogate's slope. A term that is not
// there is -0.0, which added to any number changes no bit of it.
//
// `terms` is for the gradients on coefficients: wants(Parameter) and add(Parameter, F), and what
// only they look at: v_before(), which is v[t-1], current(), which is i[t], and trace(), r[t].
template <Reset R, class F, class M, class Cell, class Terms>
SNN_HD F adjoint_step(const Neuron<F>& q, const Step<F, M>& step, F f, const Arriving<F>& from,
                      StateGradients<Cell>& state, Terms& terms) {
  constexpr bool TRACE = R == Reset::trace, RESETS = R == Reset::hard || R == Reset::soft;
  const F none(-0.0f), zero(0.0f), dv = F(state.v), after = TRACE ? F(state.trace) : zero;
  F ds = from.ds;
  if (TRACE && from.trace_carried && !from.detach) ds = ds + after;
  if (RESETS && from.carried && !from.detach)
    ds = R == Reset::hard ? ds + dv * (F(q.numbers.v_reset) - step.h) : ds - dv * q.theta;
  F through = none;
  if (from.carried) through = R == Reset::hard ? select(step.fired, zero, dv) : dv;
  F dh = from.dh, pulled = none;
  if (from.penalised) {
    pulled = from.dpenalty * penalty_grad(q, step.h);
    dh = from.recorded ? dh + pulled : pulled;
  }
  if (from.recorded || from.penalised) through = dh + through;
  const F fired = select(step.live, ds * f, zero);
  dh = through + fired;
  if (TRACE) state.trace = (from.trace_carried ? after * q.trace_decay : none) - dh * q.theta;
  state.v = dh * q.decay;

  if (terms.wants(DECAY)) terms.add(DECAY, dh * terms.v_before());
  if (terms.wants(THETA)) {
    F dtheta = zero - fired;
    if (R == Reset::soft && from.carried) dtheta = dtheta - select(step.fired, dv, zero);
    if (from.penalised) dtheta = dtheta - pulled;
    if (TRACE) dtheta = dtheta + (none - dh * terms.trace());
    terms.add(THETA, dtheta);
  }
  if (TRACE && terms.wants(TRACE_DECAY))
    terms.add(TRACE_DECAY, from.trace_carried ? after * terms.trace() : none);
  if (!q.general) return dh;
  if (terms.wants(GAIN)) terms.add(GAIN, dh * terms.current());
  return dh * q.gain;
}

}  // namespace snn
