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
  float decay_[N], theta_[N], period;
  Numbers numbers;

  SNN_DEVICE Coefficients(const Call& a, Int m)
      : Coefficients(a, Channels<N>(a, m, L != Level::plain && any_per_channel(a))) {}
  SNN_DEVICE float decay(int j) const { return decay_[N > 1 ? j : 0]; }
  SNN_DEVICE float theta(int j) const { return theta_[N > 1 ? j : 0]; }
  SNN_DEVICE bool refractory() const { return L != Level::plain && period > 0; }
  SNN_DEVICE Neuron<float> neuron(int j) const {
    float gain = 1.0f, trace_decay = 0.0f;
    if constexpr (L == Level::general) gain = this->gain[j], trace_decay = this->trace_decay[j];
    return {decay(j), theta(j), L == Level::general, refractory(),
            gain,     period,   trace_decay,         numbers};
  }

 private:
  SNN_DEVICE Coefficients(const Call& a, const Channels<N>& channel)
      : MoreCoefficients<VEC, L>(a, channel), period(a.refractory), numbers(a.numbers) {
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
  static_assert(R != Reset::trace || L == Level::general, "a trace needs the general kernels");
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
  // The input stage: what the synapse, where there is one, makes of x[t] of neuron j.
  SNN_DEVICE float current(const Coefficients<VEC, L>& q, int j, float x) {
    if constexpr (L == Level::general) x = this->synapse.step(q.synapse, j, x);
    return x;
  }
  SNN_DEVICE Step<float, bool> step(const Coefficients<VEC, L>& q, int j, float current) {
    NeuronState<float> one = {v[j], wait[j], 0.0f};
    if constexpr (R == Reset::trace) one.trace = this->trace[j];
    const auto made = neuron_step<R>(q.neuron(j), one, current);
    v[j] = one.v, wait[j] = one.wait;
    if constexpr (R == Reset::trace) this->trace[j] = one.trace;
    return made;
  }
};

}  // namespace cuda
}  // namespace snn
