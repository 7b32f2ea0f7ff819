// What the time loops of the neuron share: coefficients and sums of a tile. As tile.h, included
// once per instruction set.
//
// Neurons are cut into tiles whose state stays in the L1 cache; time runs inside a tile, so x is
// read once and s is written once. Outputs larger than the caches are streamed past them.
#pragma once

#include "filter.h"

namespace snn {
namespace SNN_ISA {
namespace {

// A tile's rows fit the L1 cache (forward: v) or the L2 cache (backward: K rows of h).
constexpr int FORWARD_TILE = 2048, BACKWARD_TILE = 2048;
// With a synapse the rows of its filter come on top.
constexpr int SYNAPSE_TILE = 1024, FORWARD_FLOATS = 1 << 14, BACKWARD_FLOATS = 1 << 16;

// The time loops that are compiled: of the neuron alone, with a synapse that has an InLoop, and
// with whatever a call may ask for, which costs up to twice the instructions.
enum class Way { plain, synapse, general };

// What all neurons of a call share.
template <Way W>
SNN_HD Neuron<Vec> any_neuron(const Problem& q) {
  constexpr bool GENERAL = W == Way::general;
  Neuron<Vec> any;
  any.decay = Vec(q.decay.shared()), any.theta = Vec(q.v_threshold.shared());
  any.period = Vec(static_cast<float>(q.refractory)), any.numbers = q.numbers;
  any.general = GENERAL, any.refractory = GENERAL && q.refractory > 0;
  return any;
}

// One vector of a row, read at one place and written at another.
struct Slot {
  const float* from;
  float* to;

  SNN_HD explicit operator Vec() const { return Vec::load(from); }
  SNN_HD void operator=(Vec a) const { a.store(to); }
};

// A coefficient of a tile's neurons: a row, or one vector for all of them, which costs no cache.
template <int TILE>
struct TileCoefficient {
  alignas(64) float row[TILE];
  int spread_out;  // all bits, or none

  SNN_HD void start(const Coefficient& a, const Problem& q, int64_t m0, int n) {
    spread_out = a.count > 1 ? -1 : 0;
    spread(a, q, m0, spread_out ? n : LANES, row);
  }
  SNN_HD Vec at(int j) const { return Vec::load(row + (j & spread_out)); }
};

// The neurons of a tile, by their vectors: in the general loop some coefficients differ.
template <Way W, int TILE>
struct Coefficients {
  SNN_HD void start(const Problem&, int64_t, int) {}
  SNN_HD const Neuron<Vec>& at(int, const Neuron<Vec>& any) const { return any; }
};

template <int TILE>
struct Coefficients<Way::general, TILE> {
  TileCoefficient<TILE> decay, theta, gain, trace_decay;

  SNN_HD void start(const Problem& q, int64_t m0, int n) {
    decay.start(q.decay, q, m0, n);
    theta.start(q.v_threshold, q, m0, n);
    gain.start(q.gain, q, m0, n);
    trace_decay.start(q.trace_decay, q, m0, n);
  }
  SNN_HD Neuron<Vec> at(int j, const Neuron<Vec>& any) const {
    return {decay.at(j), theta.at(j), any.general,       any.refractory,
            gain.at(j),  any.period,  trace_decay.at(j), any.numbers};
  }
};

// Sums over time, as of one parameter's gradient: float32 within a chunk, float64 over chunks.
template <int TILE>
struct Sum {
  alignas(64) float chunk[TILE + LANES];
  double total[TILE + 1];

  SNN_HD void start(int n) {
    fill(total, n, 0.0);
    std::memset(chunk, 0, sizeof(chunk));
  }
  SNN_HD void add(int j, Vec term) { (Vec::load(chunk + j) + term).store(chunk + j); }
  SNN_HD void end_chunk(int n) {
    for (int j = 0; j < n; ++j) total[j] += chunk[j];
    std::memset(chunk, 0, sizeof(chunk));
  }
  SNN_HD void finish(float* to, int n) {
    for (int j = 0; j < n; ++j) to[j] = static_cast<float>(total[j]);
  }
};

// Known to the compiler but in the general loop: asked in the plain one, it costs a third of the
// backward pass's speed.
template <Way W>
SNN_HD bool has_synapse(const Problem& q) {
  return W == Way::synapse || (W == Way::general && q.has_synapse);
}

// f(std::integral_constant<Way, ...>). needs_general: something beside the problem's options does.
template <Reset R, class Function>
SNN_HD void with_way(const Problem& q, bool needs_general, Function f) {
  const bool per_channel = q.decay.count > 1 || q.v_threshold.count > 1;
  const bool has_gain = q.gain.p || q.gain.value != 1.0f;
  const bool general = needs_general || q.numbers.need_general() || per_channel || has_gain ||
                       q.refractory > 0 || q.regularise ||
                       (q.has_synapse && !FilterTile::has_loop(q.synapse));
  if constexpr (R != Reset::trace) {
    if (!general && q.has_synapse) return f(std::integral_constant<Way, Way::synapse>());
    if (!general) return f(std::integral_constant<Way, Way::plain>());
  }
  return f(std::integral_constant<Way, Way::general>());
}

}  // namespace
}  // namespace SNN_ISA
}  // namespace snn
