// What a CUDA thread holds of its VEC neurons, and one step of them.
#pragma once

#include "filter.cuh"

namespace snn {
namespace cuda {

constexpr int SYNAPSE_ORDER = 2;  // at most, of the filter that is fused into the neuron

// What Level::general adds to the coefficients.
template <int VEC, Level L>
struct MoreCoefficients {
  template <class Channels>
  SNN_DEVICE MoreCoefficients(const Call&, const Channels&) {}
};
template <int VEC>
struct MoreCoefficients<VEC, Level::general> {
  float gain[VEC], trace_decay[VEC];
  Taps<SYNAPSE_ORDER, VEC> synapse;

  SNN_DEVICE MoreCoefficients(const Call& a, const Channels<VEC>& channel) : synapse(a, channel) {
    spread(gain, a.gain, a.gain_count, a.gain_value, channel);
    spread(trace_decay, a.trace_decay, a.trace_decay_count, a.trace_decay_value, channel);
  }
};

template <int VEC, Level L>
struct Coefficients : MoreCoefficients<VEC, L> {
  static constexpr int N = L == Level::plain ? 1 : VEC;
  float decay_[N], theta_[N], v_reset, period;

  SNN_DEVICE Coefficients(const Call& a, Int m)
      : Coefficients(a, Channels<N>(a, m, L != Level::plain && any_per_channel(a))) {}
  SNN_DEVICE float decay(int j) const { return decay_[N > 1 ? j : 0]; }
  SNN_DEVICE float theta(int j) const { return theta_[N > 1 ? j : 0]; }
  SNN_DEVICE bool refractory() const { return L != Level::plain && period > 0; }

 private:
  SNN_DEVICE Coefficients(const Call& a, const Channels<N>& channel)
      : MoreCoefficients<VEC, L>(a, channel), v_reset(a.v_reset), period(a.refractory) {
    spread(decay_, a.decay, a.decay_count, a.decay_value, channel);
    spread(theta_, a.theta, a.theta_count, a.theta_value, channel);
  }
  SNN_DEVICE static bool any_per_channel(const Call& a) {
    return (a.decay_count | a.theta_count | a.gain_count | a.trace_decay_count | a.filter_count) >
           1;
  }
};

// What Level::general adds to the state.
template <int VEC, Level L>
struct MoreState {};
template <int VEC>
struct MoreState<VEC, Level::general> {
  float trace[VEC];
  Window<SYNAPSE_ORDER, VEC> synapse;
};

template <Reset R, int VEC, Level L>
struct State : MoreState<VEC, L> {
  float v[VEC], wait[VEC];

  // Before the first step; nothing of a thread that has no neurons.
  SNN_DEVICE void start(const Call& a, const Coefficients<VEC, L>& q, Int m, bool inside = true) {
    load_row_or_zero(v, inside ? a.v0 : nullptr, m);
    load_row_or_zero(wait, q.refractory() ? a.wait0 : nullptr, m);
    if constexpr (L == Level::general) {
      load_row_or_zero(this->trace, a.trace0, m);
      this->synapse.start(a, m);
    }
  }
  // Of the step at which x_t points, from its checkpoint.
  template <class IO>
  SNN_DEVICE void restore(const Call& a, const Coefficients<VEC, L>& q, const float* from,
                          const char* x_t) {
    const Int M = a.O * a.I;
    load_row(v, from), from += M;
    if (q.refractory()) load_row(wait, from), from += M;
    if constexpr (R == Reset::trace) load_row(this->trace, from), from += M;
    if constexpr (L == Level::general) this->synapse.template restore<IO>(a, from, x_t);
  }
  // The rows of a checkpoint from `to` on, which moves behind them.
  SNN_DEVICE void save(const Call& a, const Coefficients<VEC, L>& q, Int M, float*& to) const {
    store_row(to, v), to += M;
    if (q.refractory()) store_row(to, wait), to += M;
    if constexpr (R == Reset::trace) store_row(to, this->trace), to += M;
    if constexpr (L == Level::general) this->synapse.save(a, to, false);
  }
  // After the last step.
  SNN_DEVICE void finish(const Call& a, const Coefficients<VEC, L>& q, Int m) const {
    store_row(a.v + m, v);
    if (q.refractory()) store_row(a.wait + m, wait);
    if constexpr (R == Reset::trace) store_row(a.trace + m, this->trace);
    if constexpr (L == Level::general) {
      float* to = a.synapse + m;
      this->synapse.save(a, to, true);
    }
  }
  SNN_DEVICE static Int rows(const Call& a, const Coefficients<VEC, L>& q) {
    return 1 + q.refractory() + (R == Reset::trace) + (L == Level::general ? a.P : 0);
  }
};

// What one step made of one neuron.
struct Step {
  float current, h;  // current: before the gain
  bool fired, live;
};

template <Reset R, int VEC, Level L>
SNN_DEVICE Step neuron_step(const Coefficients<VEC, L>& q, int j, float x,
                            State<R, VEC, L>& state) {
  static_assert(R != Reset::trace || L == Level::general, "a trace needs the general kernels");
  Step out;
  if constexpr (L == Level::general) {
    out.current = state.synapse.step(q.synapse, j, x);
    x = q.gain[j] * out.current;
  }
  out.h = charge(q.decay(j), state.v[j], x);
  if constexpr (R == Reset::trace) out.h = inhibit(out.h, q.theta(j), state.trace[j]);
  out.fired = fire(out.h, q.theta(j));
  out.live = true;
  if (q.refractory()) {
    out.live = state.wait[j] <= 0.0f;
    out.fired = out.fired && out.live;
    state.wait[j] = wait_after(state.wait[j], out.fired, q.period);
  }
  if constexpr (R == Reset::trace)
    state.trace[j] = trace_after(state.trace[j], out.fired, q.trace_decay[j]);
  state.v[j] = reset<R>(out.h, out.fired, q.theta(j), q.v_reset);
  return out;
}

}  // namespace cuda
}  // namespace snn
