// The neuron's backward pass on CPU, compiled once per instruction set (SNN_ISA). It walks the
// checkpoints from the last to the first: it recomputes h of K steps into a tape in L1/L2 and then
// runs the adjoint over them.
#include "filter_adjoint.h"
#include "time_loop.h"

namespace snn {
namespace SNN_ISA {
namespace {

// Whether the synapse's output is looked at again after the potentials are made of it.
SNN_HD bool whole_replay(const NeuronBackward& a) {
  return a.dcoefficients_per_neuron || a.dgain_per_neuron;
}

template <class IO, Reset R, Way W>
struct BackwardTile {
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
  const bool want_decay = GENERAL && a.ddecay_per_neuron;
  const bool want_theta = GENERAL && a.dv_threshold_per_neuron;
  const bool want_gain = GENERAL && a.dgain_per_neuron;
  const bool want_trace_decay = TRACE && a.dtrace_decay_per_neuron;
  const bool want_filter = !PLAIN && a.dcoefficients_per_neuron;
  const bool large = past_caches<IO>(q);
  const Vec v_reset_all{q.v_reset}, decay_all{q.decay.shared()}, theta_all{q.v_threshold.shared()};
  alignas(64) float tape[MAX_K][TILE], wait_tape[GENERAL ? MAX_K : 1][TILE];
  alignas(64) float trace_tape[TRACE ? MAX_K + 1 : 1][TILE], dtrace[TRACE ? TILE : 1];
  alignas(64) float v[TILE], v_start[GENERAL ? TILE : 1], dv[TILE];
  alignas(64) float slope[PLAIN ? 1 : TILE];
  InputRows<IO, TILE> x, ds;
  InputRows<float, GENERAL ? TILE : 1> dh;
  OutputRows<IO, TILE> dx;
  Coefficients<GENERAL ? TILE : 1> per_channel;
  Sum<BACKWARD_TILE> ddecay, dtheta, dgain, dtrace_decay;
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
    if (GENERAL) per_channel.start(q, m0, n);
    if (recorded) dh.start(a.dh, q, o, i0, n);
    if (want_decay) ddecay.start(n);
    if (want_theta) dtheta.start(n);
    if (want_gain) dgain.start(n);
    if (want_trace_decay) dtrace_decay.start(n);
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
      if (want_decay) std::memcpy(v_start, v, n * sizeof(float));
      recompute(t0, t1);
      for (int64_t t = t1 - 1; t >= t0; --t) {
        if (!PLAIN) {
          adjoint(t, static_cast<int>(t - t0), q.surrogate);
        } else {
          with_surrogate(q.surrogate,
                         [&](auto kind) { adjoint(t, static_cast<int>(t - t0), kind.value); });
        }
      }
      if (want_decay) ddecay.end_chunk(n);
      if (want_theta) dtheta.end_chunk(n);
      if (want_gain) dgain.end_chunk(n);
      if (want_trace_decay) dtrace_decay.end_chunk(n);
      if (want_filter)
        filter_sums.add(replay.tile, filter_adjoint.g.now(), replay.f_at(t0), replay.x_at(t0),
                        static_cast<int>(t1 - t0));
    }
    if (a.dv0) std::memcpy(a.dv0 + m0, dv, n * sizeof(float));
    if (want_decay) ddecay.finish(a.ddecay_per_neuron + m0, n);
    if (want_theta) dtheta.finish(a.dv_threshold_per_neuron + m0, n);
    if (want_gain) dgain.finish(a.dgain_per_neuron + m0, n);
    if (want_trace_decay) dtrace_decay.finish(a.dtrace_decay_per_neuron + m0, n);
    if (want_filter) filter_sums.finish(a.dcoefficients_per_neuron, M, m0, n);
    if (TRACE && a.dtrace0) std::memcpy(a.dtrace0 + m0, dtrace, n * sizeof(float));
    if (synapse && a.dsynapse0) filter_adjoint.finish(a.dsynapse0);
  }

  // h of steps t0 ... t1-1 once more, onto the tape.
  SNN_HD void recompute(int64_t t0, int64_t t1) {
    // Values that a loop uses are copied out of *this: a store to a row might change a member.
    const Vec zero(0.0f), period(q.refractory), v_reset = v_reset_all, decay_1 = decay_all,
                                                theta_1 = theta_all;
    const int width = n;
    const bool has_wait = GENERAL && refractory;
    for (int64_t t = t0; t < t1; ++t) {
      const int64_t k = t - t0;
      const IO *x_row = x.row(t), *x_next = x.ahead(smaller(t + AHEAD, t1 - 1));
      const float* trace_row = TRACE ? trace_tape[k] : nullptr;
      float* trace_next = TRACE ? trace_tape[k + 1] : nullptr;
      float *tape_row = tape[k], *wait_row = GENERAL ? wait_tape[k] : nullptr;
      float* wait_next = GENERAL && t + 1 < t1 ? wait_tape[k + 1] : nullptr;
      const auto neurons = [&](auto current) SNN_IN_PLACE {
        for (int j = 0; j < width; j += LANES) {
          prefetch(x_next + j);
          const Vec decay = GENERAL ? per_channel.decay.at(j) : decay_1;
          const Vec theta = GENERAL ? per_channel.theta.at(j) : theta_1;
          Vec i = current(j);
          if (GENERAL) i = per_channel.gain.at(j) * i;
          Vec h = charge(decay, Vec::load(v + j), i);
          if (TRACE) h = inhibit(h, theta, Vec::load(trace_row + j));
          h.store(tape_row + j);
          Mask fired = fire(h, theta);
          if (has_wait) {
            const Vec w = Vec::load(wait_row + j);
            fired = fired & (w <= zero);
            if (wait_next) wait_after(w, fired, period).store(wait_next + j);
          }
          if (TRACE) {
            trace_after(Vec::load(trace_row + j), fired, per_channel.trace_decay.at(j))
                .store(trace_next + j);
          }
          reset<R>(h, fired, theta, v_reset).store(v + j);
        }
      };
      if (!has_synapse<W>(q)) {
        neurons([&](int j) SNN_IN_PLACE { return widen(x_row + j); });
      } else if (!in_loop(replay.tile, [&](auto orders) {
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
    const Vec zero(0.0f), p(q.surrogate_p), r(q.surrogate_q),
        v_reset = v_reset_all, decay_1 = decay_all, theta_1 = theta_all;
    const int width = n;
    const bool carried = t + 1 < q.T || a.dv, detach = q.detach_reset, write = dx.base;
    const bool has_wait = GENERAL && refractory, has_dh = GENERAL && recorded, past = dx.stream;
    const bool sum_decay = GENERAL && want_decay, sum_theta = GENERAL && want_theta;
    const bool sum_gain = GENERAL && want_gain, sum_trace_decay = want_trace_decay;
    const bool trace_carried = t + 1 < q.T || a.dtrace;
    const bool has_penalty = GENERAL && regularise;
    const Vec tolerance(q.tolerance), shift(q.shift), dpenalty(has_penalty ? *a.dpenalty : 0.0f);
    const float* trace_row = TRACE ? trace_tape[k] : nullptr;
    const IO* x_row = sum_gain && !has_synapse<W>(q) ? x.row(t) : nullptr;
    const float* i_row = sum_gain && has_synapse<W>(q) ? replay.f_at(t)[0] : nullptr;
    const IO *ds_row = ds.row(t), *ds_next = ds.ahead(t < AHEAD ? 0 : t - AHEAD);
    const float* dh_row = has_dh ? dh.row(t) : nullptr;
    const float *tape_row = tape[k], *wait_row = GENERAL ? wait_tape[k] : nullptr;
    IO* dx_row = dx.row(t);
    // A row of its own: the surrogates' formulas are too much for the registers of the loop below.
    if (!PLAIN) {
      with_surrogate(kind, [&](auto one) {
        for (int j = 0; j < width; j += LANES) {
          const Vec u = Vec::load(tape_row + j) - (GENERAL ? per_channel.theta.at(j) : theta_1);
          surrogate_grad(one.value, u, p, r).store(slope + j);
        }
      });
    }
    // send(j, di): on with the gradient on the neuron's input.
    const auto neurons = [&](auto send) SNN_IN_PLACE {
      for (int j = 0; j < width; j += LANES) {
        prefetch(ds_next + j);
        const Vec decay = GENERAL ? per_channel.decay.at(j) : decay_1;
        const Vec theta = GENERAL ? per_channel.theta.at(j) : theta_1;
        const Vec h = Vec::load(tape_row + j);
        Mask live = zero <= zero, fired = fire(h, theta);
        if (has_wait) {
          live = Vec::load(wait_row + j) <= zero;
          fired = fired & live;
        }
        const Vec v_before = sum_decay ? potential_before(k, j, theta) : zero;
        const Vec f = PLAIN ? surrogate_grad(kind, h - theta, p, r) : Vec::load(slope + j);
        Vec ds_t = widen(ds_row + j), after = zero;
        if (TRACE) {
          after = Vec::load(dtrace + j);
          if (!detach && trace_carried) ds_t = ds_t + after;
        }
        Vec dh_t = has_dh ? widen(dh_row + j) : zero, pulled = zero;
        if (has_penalty) {
          pulled = dpenalty * penalty_grad(h, theta, tolerance, shift);
          dh_t = has_dh ? dh_t + pulled : pulled;
        }
        auto back = step_back<R>(ds_t, dh_t, has_dh || has_penalty, Vec::load(dv + j), carried,
                                 detach, h, fired, live, f, v_before, decay, theta, v_reset);
        if (has_penalty) back.dtheta = back.dtheta - pulled;
        back.dv.store(dv + j);
        if (TRACE) {
          const auto trace = trace_back(back.dx, Vec::load(trace_row + j), after, trace_carried,
                                        theta, per_channel.trace_decay.at(j));
          trace.dr.store(dtrace + j);
          back.dtheta = back.dtheta + trace.dtheta;
          if (sum_trace_decay) dtrace_decay.add(j, trace.dtrace_decay);
        }
        Vec di = back.dx;
        if (GENERAL) {
          if (sum_gain) dgain.add(j, di * (i_row ? Vec::load(i_row + j) : widen(x_row + j)));
          di = di * per_channel.gain.at(j);
        }
        if (sum_decay) ddecay.add(j, back.ddecay);
        if (sum_theta) dtheta.add(j, back.dtheta);
        send(j, di);
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
        write && filter_adjoint.inside(t) && in_loop(filter_adjoint.tile, [&](auto orders) {
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

  // v[t-1], where tape[k] holds h[t].
  SNN_HD Vec potential_before(int k, int j, Vec theta) const {
    if (k == 0) return Vec::load(v_start + j);
    const Vec h = Vec::load(tape[k - 1] + j);
    Mask fired = fire(h, theta);
    if (refractory) fired = fired & (Vec::load(wait_tape[k - 1] + j) <= Vec(0.0f));
    return reset<R>(h, fired, theta, v_reset_all);
  }
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
          BackwardTile<IO, reset.value, way.value>(a, o, i0, n).run();
        });
      });
    });
  });
}

}  // namespace SNN_ISA
}  // namespace snn
