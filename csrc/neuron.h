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

// The policy of a neuron. An enum with one value marks a place where other libraries' neurons
// differ in the order of operations.
enum class Charge : int { decay };           // h = decay * v + x
enum class Compare : int { greater_equal };  // fires where h >= v_threshold
enum class Spikes : int { single };          // 0 or 1 a step
enum class When : int { now };               // resets in the step of the spike
// v_reset where s; h - v_threshold * s; h; h, and a trace of the spikes lowers the next potentials
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

template <class F>
SNN_HD F charge(F decay, F v, F x) {
  return decay * v + x;
}

// The trace r of earlier spikes lowers the potential (Fang et al., eq. 5a).
template <class F>
SNN_HD F inhibit(F h, F theta, F r) {
  return h - theta * r;
}

template <class F>
SNN_HD auto fire(F h, F theta) -> decltype(h >= theta) {
  return h >= theta;
}

template <Reset R, class F, class M>
SNN_HD F reset(F h, M s, F theta, F v_reset) {
  if (R == Reset::hard) return select(s, v_reset, h);
  if (R == Reset::soft) return h - theta * select(s, F(1.0f), F(0.0f));
  return h;
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

// What a potential far from the threshold costs (Stöckl, fig. 5.8): the square of what |h - middle|
// has over the tolerance, the middle lying `shift` above the threshold.
template <class F>
SNN_HD F beyond(F offset, F tolerance) {
  const F zero(0.0f), excess = absolute(offset) - tolerance;
  return select(excess <= zero, zero, excess);
}
template <class F>
SNN_HD F penalty(F h, F theta, F tolerance, F shift) {
  const F excess = beyond(h - (theta + shift), tolerance);
  return excess * excess;
}
// Its derivative by h; that by theta is the same with the other sign.
template <class F>
SNN_HD F penalty_grad(F h, F theta, F tolerance, F shift) {
  const F offset = h - (theta + shift);
  return select(offset < F(0.0f), F(-2.0f), F(2.0f)) * beyond(offset, tolerance);
}

// One step of the adjoint: from gradients on s[t], h[t] and v[t] to those on x[t] and v[t-1].
template <class F>
struct StepBack {
  F dx;      // = dh[t]
  F dv;      // on v[t-1]
  F dtheta;  // this step's term
  F ddecay;  // this step's term, given v[t-1]
};

// carried: false where nothing arrives on v[t] (the last step of a call whose state got no
// gradient). Its terms are then -0.0, which added to any number changes no bit of it.
// detach: the reset does not reach back through s. recorded: dh holds a gradient on h.
template <Reset R, class F, class M>
SNN_HD StepBack<F> step_back(F ds, F dh, bool recorded, F dv, bool carried, bool detach, F h, M s,
                             M live, F f, F v_before, F decay, F theta, F v_reset) {
  const F none(-0.0f), zero(0.0f);
  if (!detach && (R == Reset::hard || R == Reset::soft) && carried)
    ds = R == Reset::hard ? ds + dv * (v_reset - h) : ds - dv * theta;
  F through = none;
  if (carried) through = R == Reset::hard ? select(s, zero, dv) : dv;
  if (recorded) through = dh + through;
  const F fired = select(live, ds * f, zero);
  StepBack<F> out;
  out.dx = through + fired;
  out.dtheta = zero - fired;
  if (R == Reset::soft && carried) out.dtheta = out.dtheta - select(s, dv, zero);
  out.ddecay = out.dx * v_before;
  out.dv = out.dx * decay;
  return out;
}

// The adjoint of the trace: from gradients on h[t] and r[t+1] to that on r[t].
template <class F>
struct TraceBack {
  F dr;
  F dtheta;        // this step's term, beside that of step_back
  F dtrace_decay;  // this step's term
};

// after: on r[t+1]; carried as in step_back, for r.
template <class F>
SNN_HD TraceBack<F> trace_back(F dh, F r, F after, bool carried, F theta, F trace_decay) {
  const F none(-0.0f);
  TraceBack<F> out;
  out.dr = (carried ? after * trace_decay : none) - dh * theta;
  out.dtheta = none - dh * r;
  out.dtrace_decay = carried ? after * r : none;
  return out;
}

}  // namespace snn
