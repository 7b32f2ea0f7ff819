// The neuron's forward pass on CPU, compiled once per instruction set (SNN_ISA).
#include "time_loop.h"

namespace snn {
namespace SNN_ISA {
namespace {

template <class IO, Reset R, Way W>
void forward_tile(const NeuronForward& a, int64_t o, int64_t i0, int n) {
  constexpr int TILE = FORWARD_TILE + LANES;
  constexpr bool GENERAL = W == Way::general;
  const Problem& q = a.problem;
  constexpr bool TRACE = R == Reset::trace;
  const int64_t m0 = o * q.I + i0, M = q.O * q.I;
  const bool refractory = GENERAL && q.refractory > 0, record = GENERAL && a.h.p;
  const bool synapse = has_synapse<W>(q), regularise = GENERAL && q.regularise;
  const bool large = past_caches<IO>(q);
  const Neuron<Vec> any = any_neuron<W>(q);
  alignas(64) float v[TILE], wait[GENERAL ? TILE : 1], trace[TRACE ? TILE : 1];
  Pool<W == Way::plain ? 1 : FORWARD_FLOATS> pool;
  FilterForward filter;
  InputRows<IO, TILE> x;
  OutputRows<IO, TILE> s;
  OutputRows<float, GENERAL ? TILE : 1> h;
  Coefficients<W, TILE> per_channel;
  Sum<GENERAL ? FORWARD_TILE : 0> penalties;
  x.start(q.x, q, o, i0, n);
  s.start(a.s, q, o, i0, n, large);
  load_row(v, q.v0, m0, n);
  if (refractory) load_row(wait, q.wait0, m0, n);
  if (TRACE) load_row(trace, q.trace0, m0, n);
  if (synapse) filter.start(q.synapse, q, m0, n, pool);
  per_channel.start(q, m0, n);
  if (record) h.start(a.h, q, o, i0, n, large);
  if (regularise) penalties.start(n);

  for (int64_t t = 0; t < q.T; ++t) {
    if (q.K && t && t % q.K == 0) {
      float* to = a.checkpoints + (t / q.K - 1) * q.state_rows() * M;
      std::memcpy(to + m0, v, n * sizeof(float));
      if (refractory) std::memcpy(to + q.wait_row() * M + m0, wait, n * sizeof(float));
      if (TRACE) std::memcpy(to + q.trace_row() * M + m0, trace, n * sizeof(float));
      if (synapse) filter.save(to + q.synapse_row() * M, false);
    }
    const IO *x_row = x.row(t), *x_next = x.ahead(smaller(t + AHEAD, q.T - 1));
    IO* s_row = s.row(t);
    float* h_row = record ? h.row(t) : nullptr;
    const bool s_past = s.stream, h_past = record && h.stream;
    // current(j): the input of the neuron, x or what the synapse makes of it.
    const auto neurons = [&](auto current) SNN_IN_PLACE {
      for (int j = 0; j < n; j += LANES) {
        prefetch(x_next + j);
        const Neuron<Vec>& neuron = per_channel.at(j, any);
        NeuronState<Slot> state = {{v + j, v + j}, {wait + j, wait + j}, {trace + j, trace + j}};
        const auto step = neuron_step<R>(neuron, state, current(j));
        put_spikes(s_row + j, step.fired, s_past);
        if (record) put(h_row + j, step.h, h_past);
        if (regularise) penalties.add(j, penalty(neuron, step.h));
      }
    };
    if (!synapse) {
      neurons([&](int j) SNN_IN_PLACE { return widen(x_row + j); });
    } else if (!in_loop(filter.tile, [&](auto orders) SNN_IN_PLACE {
                 filter.next();
                 const typename decltype(orders)::type step(filter.tile, filter.f.now(),
                                                            filter.x.now());
                 neurons([&](int j) SNN_IN_PLACE { return step.forward(j, widen(x_row + j)); });
               })) {
      const float* i_row = filter.step(x_row, x_next);
      neurons([&](int j) SNN_IN_PLACE { return Vec::load(i_row + j); });
    }
    s.finish(t, large);
    if (record) h.finish(t, large);
    if (regularise && (t % MAX_K == MAX_K - 1 || t + 1 == q.T)) penalties.end_chunk(n);
  }
  std::memcpy(a.v + m0, v, n * sizeof(float));
  if (refractory) std::memcpy(a.wait + m0, wait, n * sizeof(float));
  if (TRACE) std::memcpy(a.trace + m0, trace, n * sizeof(float));
  if (synapse) filter.save(a.synapse, true);
  if (regularise) penalties.finish(a.penalty + m0, n);
}

int forward_width(const Problem& q) {
  if (!q.has_synapse) return FORWARD_TILE;
  return Pool<FORWARD_FLOATS>::width(FilterForward::rows(q.synapse), SYNAPSE_TILE);
}

}  // namespace

void neuron_forward(const NeuronForward& a) {
  const Problem& q = a.problem;
  with_dtype<bf16, f16>(q.dtype, [&](auto io) {
    using IO = typename decltype(io)::type;
    with_reset(q.reset, [&](auto reset) {
      with_way<reset.value>(q, a.h.p, [&](auto way) {
        for_tiles(q, forward_width(q), [&](int64_t o, int64_t i0, int n) {
          forward_tile<IO, reset.value, way.value>(a, o, i0, n);
        });
      });
    });
  });
}

void stream(float* to, const float* a, const float* b, int64_t count, int threads) {
  constexpr int64_t BLOCK = 4096;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t k = 0; k < count; k += BLOCK) {
      const int64_t end = smaller(count, k + BLOCK);
      int64_t i = k;
      for (; i + LANES <= end; i += LANES) {
        const Vec sum = b ? Vec::load(a + i) + Vec::load(b + i) : Vec::load(a + i);
        put(to + i, sum, true);
      }
      for (; i < end; ++i) to[i] = b ? a[i] + b[i] : a[i];
    }
    fence_streams();
  }
}

}  // namespace SNN_ISA
}  // namespace snn
