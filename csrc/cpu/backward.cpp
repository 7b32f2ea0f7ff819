// The neuron's backward pass on CPU, compiled once per instruction set (SNN_ISA). It walks the
// checkpoints from the last to the first: it recomputes h of K steps into a tape in L1/L2 and then
// runs the adjoint over them.
#include "filter_adjoint.h"
#include "scratch.h"
#include "time_loop.h"

namespace snn {
namespace SNN_ISA {
namespace {

// Whether the synapse's output is looked at again after the potentials are made of it.
SNN_HD bool whole_replay(const NeuronBackward& a) {
  return a.dcoefficients_per_neuron || a.dgain_per_neuron;
}

template <class IO, Reset R, Way W>
struct BackwardTile : InScratch {
  static constexpr bool GENERAL = W == Way::general, PLAIN = W == Way::plain;
  static constexpr int TILE = BACKWARD_TILE + LANES;
  const NeuronBackward& a;
  const Problem& q;
  const int64_t o, i0;
  const int n;
  static constexpr bool TRACE = R == Reset::trace;
  const int64_t m0 = o * q.I + i0, M = q.O * q.I;
  const bool refractory = GENERAL && q.refractory > 0, recorded = GENERAL && a.dh.p;
  const bool synapse = has_synapse<W>(q), regularise = GENERAL && a.dpenalty;
  float* const gradients[PARAMETERS] = {a.ddecay_per_neuron, a.dv_threshold_per_neuron,
                                        a.dgain_per_neuron, a.dtrace_decay_per_neuron};
  const bool want_filter = !PLAIN && a.dcoefficients_per_neuron;
  const bool large = past_caches<IO>(q);
  alignas(64) float tape[MAX_K][TILE], wait_tape[GENERAL ? MAX_K + 1 : 1][TILE];
  alignas(64) float trace_tape[TRACE ? MAX_K + 1 : 1][TILE], dtrace[TRACE ? TILE : 1];
  alignas(64) float v[TILE], v_start[GENERAL ? TILE : 1], dv[TILE];
  alignas(64) float slope[PLAIN ? 1 : TILE];
  InputRows<IO, TILE> x, ds;
  InputRows<float, GENERAL ? TILE : 1> dh;
  OutputRows<IO, TILE> dx;
  Coefficients<W, TILE> per_channel;
  Sum<GENERAL ? BACKWARD_TILE : 0> sums[PARAMETERS];
  Pool<PLAIN ? 1 : BACKWARD_FLOATS> pool;
  FilterReplay replay;
  FilterAdjoint filter_adjoint;
  TermSums filter_sums;

  BackwardTile(const NeuronBackward& call, int64_t outer, int64_t first, int count)
      : a(call), q(call.problem), o(outer), i0(first), n(count) {}

  void run() {
    x.start(q.x, q, o, i0, n);
    ds.start(a.ds, q, o, i0, n);
    dx.start(a.dx, q, o, i0, n, large);
    load_row(dv, a.dv, m0, n);
    per_channel.start(q, m0, n);
    if (recorded) dh.start(a.dh, q, o, i0, n);
    for (int p = 0; p < PARAMETERS; ++p)
      if (wants(p)) sums[p].start(n);
    if (TRACE) load_row(dtrace, a.dtrace, m0, n);
    if (synapse) {
      replay.start(q.synapse, q, m0, n, whole_replay(a), pool);
      filter_adjoint.start(q.synapse, q, m0, n, a.dsynapse, want_filter ? MAX_K : 1, pool);
      if (want_filter) filter_sums.start(replay.tile, pool);
    }
    for (int64_t c = (q.T - 1) / q.K; c >= 0; --c) {
      const int64_t t0 = c * q.K, t1 = smaller(q.T, t0 + q.K);
      const float* from = c ? a.checkpoints + (c - 1) * q.state_rows() * M : nullptr;
      load_row(v, c ? from : q.v0, m0, n);
      if (refractory) load_row(wait_tape[0], c ? from + q.wait_row() * M : q.wait0, m0, n);
      if (TRACE) load_row(trace_tape[0], c ? from + q.trace_row() * M : q.trace0, m0, n);
      if (synapse) replay.enter(t0, t1, c ? from + q.synapse_row() * M : nullptr, x);
      if (wants(DECAY)) std::memcpy(v_start, v, n * sizeof(float));
      recompute(t0, t1);
      for (int64_t t = t1 - 1; t >= t0; --t) {
        if (!PLAIN) {
          adjoint(t, static_cast<int>(t - t0), q.surrogate);
        } else {
          with_surrogate(q.surrogate, [&](auto kind) SNN_IN_PLACE {
            adjoint(t, static_cast<int>(t - t0), kind.value);
          });
        }
      }
      for (int p = 0; p < PARAMETERS; ++p)
        if (wants(p)) sums[p].end_chunk(n);
      if (want_filter)
        filter_sums.add(replay.tile, filter_adjoint.g.now(), replay.f_at(t0), replay.x_at(t0),
                        static_cast<int>(t1 - t0));
    }
    if (a.dv0) std::memcpy(a.dv0 + m0, dv, n * sizeof(float));
    for (int p = 0; p < PARAMETERS; ++p)
      if (wants(p)) sums[p].finish(gradients[p] + m0, n);
    if (want_filter) filter_sums.finish(a.dcoefficients_per_neuron, M, m0, n);
    if (TRACE && a.dtrace0) std::memcpy(a.dtrace0 + m0, dtrace, n * sizeof(float));
    if (synapse && a.dsynapse0) filter_adjoint.finish(a.dsynapse0);
  }

  SNN_HD bool wants(int p) const { return GENERAL && gradients[p]; }

  // h of steps t0 ... t1-1 once more, onto the tape.
  SNN_HD void recompute(int64_t t0, int64_t t1) {
    // Values that a loop uses are copied out of *this: a store to a row might change a member.
    const Neuron<Vec> any = any_neuron<W>(q);
    const int width = n;
    for (int64_t t = t0; t < t1; ++t) {
      const int64_t k = t - t0;
      const IO *x_row = x.row(t), *x_next = x.ahead(smaller(t + AHEAD, t1 - 1));
      const float* trace_row = TRACE ? trace_tape[k] : nullptr;
      float* trace_next = TRACE ? trace_tape[k + 1] : nullptr;
      float *tape_row = tape[k], *wait_row = GENERAL ? wait_tape[k] : nullptr;
      float* wait_next = GENERAL ? wait_tape[k + 1] : nullptr;
      const auto neurons = [&](auto current) SNN_IN_PLACE {
        for (int j = 0; j < width; j += LANES) {
          prefetch(x_next + j);
          const Neuron<Vec>& neuron = per_channel.at(j, any);
          NeuronState<Slot> state = {
              {v + j, v + j}, {wait_row + j, wait_next + j}, {trace_row + j, trace_next + j}};
          neuron_step<R>(neuron, state, current(j)).h.store(tape_row + j);
        }
      };
      if (!has_synapse<W>(q)) {
        neurons([&](int j) SNN_IN_PLACE { return widen(x_row + j); });
      } else if (!in_loop(replay.tile, [&](auto orders) SNN_IN_PLACE {
                   const typename decltype(orders)::type step(replay.tile, replay.f_at(t),
                                                              replay.x_at(t));
                   neurons([&](int j) SNN_IN_PLACE { return step.forward(j, widen(x_row + j)); });
                 })) {
        const float* i_row = replay.step(t, x_row, x_next);
        neurons([&](int j) SNN_IN_PLACE { return Vec::load(i_row + j); });
      }
    }
  }

  // One step of the adjoint; tape[k] holds h[t].
  SNN_HD void adjoint(int64_t t, int k, Surrogate kind) {
    const Neuron<Vec> any = any_neuron<W>(q);
    const Vec zero(0.0f), p(q.numbers.surrogate_p), r(q.numbers.surrogate_q);
    const int width = n;
    const bool write = dx.base, past = dx.stream;
    bool sum[PARAMETERS];
    for (int p = 0; p < PARAMETERS; ++p) sum[p] = wants(p);
    const bool has_dh = GENERAL && recorded, penalised = GENERAL && regularise;
    const bool carried = t + 1 < q.T || a.dv, trace_carried = t + 1 < q.T || a.dtrace;
    const bool detach = q.detach_reset;
    const Vec dpenalty(penalised ? *a.dpenalty : 0.0f);
    const IO* x_row = sum[GAIN] && !has_synapse<W>(q) ? x.row(t) : nullptr;
    const float* i_row = sum[GAIN] && has_synapse<W>(q) ? replay.f_at(t)[0] : nullptr;
    const IO *ds_row = ds.row(t), *ds_next = ds.ahead(t < AHEAD ? 0 : t - AHEAD);
    const float* dh_row = has_dh ? dh.row(t) : nullptr;
    const float *tape_row = tape[k], *wait_row = GENERAL ? wait_tape[k] : nullptr;
    IO* dx_row = dx.row(t);
    // A row of its own: the surrogates' formulas are too much for the registers of the loop below.
    if (!PLAIN) {
      with_surrogate(kind, [&](auto one) SNN_IN_PLACE {
        for (int j = 0; j < width; j += LANES) {
          const Vec u = Vec::load(tape_row + j) - per_channel.at(j, any).theta;
          surrogate_grad(one.value, u, p, r).store(slope + j);
        }
      });
    }
    // send(j, di): on with the gradient on the neuron's input.
    const auto neurons = [&](auto send) SNN_IN_PLACE {
      for (int j = 0; j < width; j += LANES) {
        prefetch(ds_next + j);
        const Neuron<Vec>& neuron = per_channel.at(j, any);
        const Vec h = Vec::load(tape_row + j);
        const auto step = fire(neuron, h, Slot{wait_row + j, nullptr});
        const Vec f = PLAIN ? surrogate_grad(kind, h - neuron.theta, p, r) : Vec::load(slope + j);
        const Arriving<Vec> from = {widen(ds_row + j), has_dh ? widen(dh_row + j) : zero,
                                    dpenalty,          has_dh,
                                    penalised,         carried,
                                    trace_carried,     detach};
        StateGradients<Slot> state = {{dv + j, dv + j}, {dtrace + j, dtrace + j}};
        Terms terms = {*this, neuron, sum, x_row, i_row, k, j};
        send(j, adjoint_step<R>(neuron, step, f, from, state, terms));
      }
    };
    if (!has_synapse<W>(q)) {
      neurons([&](int j, Vec di) SNN_IN_PLACE {
        if (write) put(dx_row + j, di, past);
      });
      if (write) dx.finish(t, large);
      return;
    }
    const bool done =
        write && filter_adjoint.inside(t) &&
        in_loop(filter_adjoint.tile, [&](auto orders) SNN_IN_PLACE {
          filter_adjoint.g.next();
          const typename decltype(orders)::type step(filter_adjoint.tile, filter_adjoint.g.now(),
                                                     nullptr);
          neurons([&](int j, Vec di) SNN_IN_PLACE { put(dx_row + j, step.backward(j, di), past); });
          dx.finish(t, large);
        });
    if (!done) {
      float* incoming = filter_adjoint.incoming;
      neurons([&](int j, Vec di) SNN_IN_PLACE { di.store(incoming + j); });
      filter_adjoint.step(t);
      if (write) write_row(dx, t, filter_adjoint.to_input(t), padded(n), large);
    }
  }

  // What adjoint_step() asks for the gradients on coefficients; tape[k] holds h[t].
  struct Terms {
    BackwardTile& tile;
    const Neuron<Vec>& neuron;
    const bool (&sum)[PARAMETERS];
    const IO* x_row;
    const float* i_row;
    int k, j;

    SNN_HD bool wants(Parameter p) const { return sum[p]; }
    SNN_HD void add(Parameter p, Vec term) { tile.sums[p].add(j, term); }
    SNN_HD Vec current() const { return i_row ? Vec::load(i_row + j) : widen(x_row + j); }
    SNN_HD Vec trace() const { return Vec::load(tile.trace_tape[k] + j); }
    SNN_HD Vec v_before() const {
      if (k == 0) return Vec::load(tile.v_start + j);
      const Vec h = Vec::load(tile.tape[k - 1] + j);
      return reset<R>(neuron, fire(neuron, h, Slot{tile.wait_tape[k - 1] + j, nullptr}));
    }
  };
};

int backward_width(const NeuronBackward& a) {
  const Problem& q = a.problem;
  // Rows of 4 KB, whatever the type: shorter ones meet too many pages, longer ones leave the cache.
  if (!q.has_synapse) return q.dtype == Dtype::float32 ? BACKWARD_TILE / 2 : BACKWARD_TILE;
  const bool learn = a.dcoefficients_per_neuron;
  const int rows = FilterReplay::rows(q.synapse, whole_replay(a)) +
                   FilterAdjoint::rows(q.synapse, learn ? MAX_K : 1) +
                   (learn ? TermSums::rows(q.synapse) : 0);
  return Pool<BACKWARD_FLOATS>::width(rows, SYNAPSE_TILE);
}

}  // namespace

void neuron_backward(const NeuronBackward& a) {
  const Problem& q = a.problem;
  const bool more = a.dh.p || a.ddecay_per_neuron || a.dv_threshold_per_neuron ||
                    a.dgain_per_neuron || a.dpenalty;
  with_dtype<bf16, f16>(q.dtype, [&](auto io) {
    using IO = typename decltype(io)::type;
    with_reset(q.reset, [&](auto reset) {
      with_way<reset.value>(q, more, [&](auto way) {
        for_tiles(q, backward_width(a), [&](int64_t o, int64_t i0, int n) {
          (new BackwardTile<IO, reset.value, way.value>(a, o, i0, n))->run();
        });
      });
    });
  });
}

}  // namespace SNN_ISA
}  // namespace snn
