// The filter on CPU, compiled once per instruction set (SNN_ISA): tiles and rows as the neuron's
// (time_loop.h). Without gradients of coefficients the backward pass is the adjoint filter
// alone and needs neither x nor checkpoints.
#include "filter_adjoint.h"
#include "scratch.h"

namespace snn {
namespace SNN_ISA {
namespace {

constexpr int FORWARD_TILE = 1024, BACKWARD_TILE = 512;
// Enough for one vector per row of the highest orders.
constexpr int FORWARD_FLOATS = 8192, BACKWARD_FLOATS = 1 << 16;

struct BackwardPool : Pool<BACKWARD_FLOATS>, InScratch {};

int backward_rows(const IirBackward& a) {
  const Filter& q = a.filter;
  if (!a.dcoefficients_per_neuron) return FilterAdjoint::rows(q, 1);
  return FilterAdjoint::rows(q, MAX_K) + FilterReplay::rows(q, true) + TermSums::rows(q);
}

template <class IO>
void forward_tile(const IirForward& a, int64_t o, int64_t i0, int n) {
  const Walk& q = a.walk;
  const int64_t m0 = o * q.I + i0, M = q.O * q.I;
  const bool large = past_caches<IO>(q);
  Pool<FORWARD_FLOATS> pool;
  FilterForward filter;
  InputRows<IO, FORWARD_TILE + LANES> x;
  OutputRows<IO, FORWARD_TILE + LANES> f;
  filter.start(a.filter, q, m0, n, pool);
  x.start(a.x, q, o, i0, n);
  f.start(a.f, q, o, i0, n, large);
  for (int64_t t = 0; t < q.T; ++t) {
    if (a.K && t && t % a.K == 0)
      filter.save(a.checkpoints + (t / a.K - 1) * a.filter.P * M, false);
    const IO *x_row = x.row(t), *x_next = x.ahead(smaller(t + AHEAD, q.T - 1));
    const bool done = in_loop(filter.tile, [&](auto orders) {
      filter.next();
      const typename decltype(orders)::type step(filter.tile, filter.f.now(), filter.x.now());
      IO* row = f.row(t);
      const bool past = f.stream;
      for (int j = 0; j < n; j += LANES) {
        prefetch(x_next + j);
        put(row + j, step.forward(j, widen(x_row + j)), past);
      }
      f.finish(t, large);
    });
    if (!done) write_row(f, t, filter.step(x_row, x_next), filter.tile.width, large);
  }
  filter.save(a.state, true);
}

template <class IO>
void backward_tile(const IirBackward& a, int64_t o, int64_t i0, int n) {
  const Walk& q = a.walk;
  const int64_t m0 = o * q.I + i0, M = q.O * q.I;
  const bool large = past_caches<IO>(q);
  const int P = a.filter.P, width = padded(n);
  const bool learn = a.dcoefficients_per_neuron;
  auto& pool = *new BackwardPool;
  FilterAdjoint adjoint;
  FilterReplay replay;
  TermSums sums;
  InputRows<IO, BACKWARD_TILE + LANES> x, df;
  OutputRows<IO, BACKWARD_TILE + LANES> dx;
  adjoint.start(a.filter, q, m0, n, a.dstate, learn ? MAX_K : 1, pool);
  df.start(a.df, q, o, i0, n);
  dx.start(a.dx, q, o, i0, n, large);
  if (learn) {
    replay.start(a.filter, q, m0, n, true, pool);
    x.start(a.x, q, o, i0, n);
    sums.start(replay.tile, pool);
  }
  const int64_t K = learn ? a.K : q.T;
  for (int64_t c = (q.T - 1) / K; c >= 0; --c) {
    const int64_t t0 = c * K, t1 = smaller(q.T, t0 + K);
    if (learn) replay.run(t0, t1, c ? a.checkpoints + (c - 1) * P * M : nullptr, x);
    for (int64_t t = t1 - 1; t >= t0; --t) {
      const IO *df_row = df.row(t), *df_next = df.ahead(t < AHEAD ? 0 : t - AHEAD);
      const bool done =
          dx.base && adjoint.inside(t) && in_loop(adjoint.tile, [&](auto orders) {
            adjoint.g.next();
            const typename decltype(orders)::type step(adjoint.tile, adjoint.g.now(), nullptr);
            IO* row = dx.row(t);
            const bool past = dx.stream;
            for (int j = 0; j < n; j += LANES) {
              prefetch(df_next + j);
              put(row + j, step.backward(j, widen(df_row + j)), past);
            }
            dx.finish(t, large);
          });
      if (!done) {
        widen_row(adjoint.incoming, df_row, df_next, width);
        adjoint.step(t);
      }
      if (dx.base && !done) write_row(dx, t, adjoint.to_input(t), width, large);
    }
    if (learn)
      sums.add(replay.tile, adjoint.g.now(), replay.f_at(t0), replay.x_at(t0),
               static_cast<int>(t1 - t0));
  }
  if (a.dstate0) adjoint.finish(a.dstate0);
  if (learn) sums.finish(a.dcoefficients_per_neuron, M, m0, n);
}

}  // namespace

void iir_forward(const IirForward& a) {
  const int width = Pool<FORWARD_FLOATS>::width(FilterForward::rows(a.filter), FORWARD_TILE);
  with_dtype<bf16, f16>(a.walk.dtype, [&](auto io) {
    using IO = typename decltype(io)::type;
    for_tiles(a.walk, width, [&](int64_t o, int64_t i0, int n) { forward_tile<IO>(a, o, i0, n); });
  });
}

void iir_backward(const IirBackward& a) {
  const int width = Pool<BACKWARD_FLOATS>::width(backward_rows(a), BACKWARD_TILE);
  with_dtype<bf16, f16>(a.walk.dtype, [&](auto io) {
    using IO = typename decltype(io)::type;
    for_tiles(a.walk, width, [&](int64_t o, int64_t i0, int n) { backward_tile<IO>(a, o, i0, n); });
  });
}

}  // namespace SNN_ISA
}  // namespace snn
