// The backward pass of the filter on rows of one tile, as in filter.h: a chunk of the forward
// pass replayed, the adjoint filter, and sums over time for the gradients of the coefficients.
#pragma once

#include "filter.h"

namespace snn {
namespace SNN_ISA {
namespace {

// The rows of x and f of one chunk of K steps, and as many before it as the filter looks back.
// Unless the whole chunk is asked for, rows are used again as soon as no step looks at them.
struct FilterReplay {
  FilterTile tile;
  const float* state0;
  int n;
  int64_t m0, M, t0, t1;
  float *x[MAX_ORDER + MAX_K], *f[MAX_ORDER + MAX_K];  // row[k] is that of step t1 - 1 - k

  static int rows(const Filter& a, bool whole) {
    return FilterTile::rows(a) + a.P + a.Q + 2 * (whole ? MAX_K : 1);
  }

  template <class Rows>
  void start(const Filter& a, const Walk& q, int64_t first, int count, bool whole, Rows& pool) {
    n = count, m0 = first, M = q.O * q.I, state0 = a.state0;
    tile.start(a, q, m0, n, pool);
    const int kept = whole ? MAX_K : 1;
    pool.take(f, tile.width, a.P + kept);
    pool.take(x, tile.width, a.Q + kept);
    for (int k = kept; k < MAX_K; ++k) f[a.P + k] = f[k - 1], x[a.Q + k] = x[k - 1];
  }
  float** x_at(int64_t t) { return x + (t1 - 1 - t); }
  float** f_at(int64_t t) { return f + (t1 - 1 - t); }

  // What lies before the chunk. outputs: [P, M], those before step `from`, where that is not 0.
  template <class Input>
  void enter(int64_t from, int64_t to, const float* outputs, Input& input) {
    t0 = from, t1 = to;
    if (from == 0) outputs = state0;
    for (int p = 0; p < tile.P; ++p)
      load_row(f_at(t0)[p + 1], outputs ? outputs + p * M : nullptr, m0, n);
    for (int k = 1; k <= tile.Q; ++k) {
      if (t0 >= k)
        widen_row(x_at(t0)[k], input.row(t0 - k), input.ahead(t0), tile.width);
      else
        load_row(x_at(t0)[k], state0 ? state0 + (tile.P + k - 1 - t0) * M : nullptr, m0, n);
    }
  }
  template <class IO>
  const float* step(int64_t t, const IO* x_row, const IO* x_next) {
    widen_row(x_at(t)[0], x_row, x_next, tile.width);
    tile.run(tile.P, tile.Q, tile.beta, x_at(t), tile.alpha, f_at(t) + 1, f_at(t)[0]);
    return f_at(t)[0];
  }
  template <class Input>
  void run(int64_t from, int64_t to, const float* outputs, Input& input) {
    enter(from, to, outputs, input);
    for (int64_t t = t0; t < t1; ++t) {
      const auto *x_row = input.row(t), *x_next = input.ahead(smaller(t + AHEAD, t1 - 1));
      const bool done = in_loop(tile, [&](auto orders) {
        const typename decltype(orders)::type one(tile, f_at(t), x_at(t));
        for (int j = 0; j < tile.width; j += LANES) {
          prefetch(x_next + j);
          one.forward(j, widen(x_row + j));
        }
      });
      if (!done) step(t, x_row, x_next);
    }
  }
};

// The adjoint, from the last step to the first: gradients on f in, gradients on x out.
struct FilterAdjoint {
  FilterTile tile;
  const float* dstate;
  int n;
  int64_t m0, M, T;
  Ring g;  // now()[k] is that of k steps later
  float *incoming, *dx, *ones;

  // chunk: of how many steps g is looked at together.
  static int rows(const Filter& a, int chunk) {
    return FilterTile::rows(a) + (a.P > a.Q ? a.P : a.Q) + 3 + chunk;
  }

  template <class Rows>
  void start(const Filter& a, const Walk& q, int64_t first, int count, const float* gradient,
             int chunk, Rows& pool) {
    n = count, m0 = first, M = q.O * q.I, T = q.T, dstate = gradient;
    tile.start(a, q, m0, n, pool);
    g.start(history() - 1 + chunk, tile.width, pool);
    incoming = pool.take(tile.width);
    dx = pool.take(tile.width);
    ones = pool.take(tile.width);
    fill(ones, tile.width, 1.0f);
  }
  int history() const { return (tile.P > tile.Q ? tile.P : tile.Q) + 1; }

  // Row k of `count` in the gradient on the state after the last step, or nullptr.
  const float* arriving(int64_t k, int first, int count) const {
    return dstate && k < count ? dstate + (first + k) * M + m0 : nullptr;
  }
  // Whether step t is one that neither meets the end of time nor the gradient on the final state.
  bool inside(int64_t t) const { return T - t >= history(); }
  // g[t] = total gradient on f[t], from `incoming`, which the caller has filled.
  const float* step(int64_t t) {
    if (const float* from = arriving(T - 1 - t, 0, tile.P)) add_row(incoming, from, n);
    g.next();
    const int after = static_cast<int>(smaller<int64_t>(tile.P, T - 1 - t));
    tile.run(after, 0, &ones, &incoming, tile.alpha, g.now() + 1, g.now()[0]);
    return g.now()[0];
  }
  const float* to_input(int64_t t) {
    return gather(tile.beta, smaller<int64_t>(tile.Q, T - 1 - t),
                  arriving(T - 1 - t, tile.P, tile.Q));
  }
  // Gradients on the state before the first step: rows as in Filter.
  void finish(float* to) {
    before_first(to, tile.alpha - 1, tile.P, 0);
    before_first(to, tile.beta, tile.Q, tile.P);
  }

 private:
  // first + c[last] g[last] + ... + c[0] g[0]: the terms from the latest step to the earliest.
  const float* gather(const float* const* c, int64_t last, const float* first) {
    const float *factors[MAX_ORDER + 2], *rows[MAX_ORDER + 2];
    int count = 0;
    for (; count <= last; ++count) factors[count] = c[count], rows[count] = g.now()[count];
    if (first) {
      std::memcpy(incoming, first, n * sizeof(float));
      factors[count] = ones, rows[count++] = incoming;
    }
    tile.run(0, count - 1, factors, rows, tile.alpha, rows, dx);
    return dx;
  }
  // Step -m gets c[m] g[0] + c[m+1] g[1] + ... where g reaches, after the part of the final state
  // that the call was too short to replace.
  void before_first(float* to, const float* const* c, int order, int first) {
    for (int m = 1; m <= order; ++m) {
      const float* row =
          gather(c + m, smaller<int64_t>(order - m, T - 1), arriving(T + m - 1, first, order));
      std::memcpy(to + (first + m - 1) * M + m0, row, n * sizeof(float));
    }
  }
};

// Sums over time of g[t] f[t-p] and g[t] x[t-q], the gradients of the coefficients: float32 within
// a chunk, from the last step to the first, float64 over chunks.
struct TermSums {
  int P, Q, width;
  double* total;

  static int rows(const Filter& a) { return 2 * (a.P + a.Q + 1); }

  template <class Rows>
  void start(const FilterTile& tile, Rows& pool) {
    P = tile.P, Q = tile.Q, width = tile.width;
    total = reinterpret_cast<double*>(pool.take(width, 2 * (P + Q + 1)));
    fill(total, (P + Q + 1) * width, 0.0);
  }
  // A chunk: g[i] is that of its i-th step; f[p - i] and x[q - i] lie p and q steps before.
  void add(const FilterTile& tile, float* const* g, float* const* f, float* const* x, int steps) {
    const bool done = in_loop(tile, [&](auto orders) {
      using Loop = typename decltype(orders)::type;
      for (int j = 0; j < width; j += LANES) {
        Vec sum[Loop::P + Loop::Q + 1];
        for (Vec& one : sum) one = Vec(0.0f);
        for (int i = steps - 1; i >= 0; --i) {
          const Vec g_t = Vec::load(g[i] + j);
          for (int p = 1; p <= Loop::P; ++p)
            sum[p - 1] = sum[p - 1] + g_t * Vec::load(f[p - i] + j);
          for (int q = 0; q <= Loop::Q; ++q)
            sum[Loop::P + q] = sum[Loop::P + q] + g_t * Vec::load(x[q - i] + j);
        }
        for (int k = 0; k <= Loop::P + Loop::Q; ++k) add_up(k, j, sum[k]);
      }
    });
    for (int k = 0; !done && k <= P + Q; ++k) {
      float* const* row = k < P ? f + 1 + k : x + k - P;
      for (int j = 0; j < width; j += LANES) {
        Vec sum(0.0f);
        for (int i = steps - 1; i >= 0; --i)
          sum = sum + Vec::load(g[i] + j) * Vec::load(row[-i] + j);
        add_up(k, j, sum);
      }
    }
  }
  void finish(float* to, int64_t M, int64_t m0, int n) const {
    for (int k = 0; k <= P + Q; ++k) {
      for (int j = 0; j < n; ++j) to[k * M + m0 + j] = static_cast<float>(total[k * width + j]);
    }
  }

 private:
  SNN_HD void add_up(int k, int j, Vec sum) {
    float values[LANES];
    sum.store(values);
    for (int i = 0; i < LANES; ++i) total[k * width + j + i] += values[i];
  }
};

}  // namespace
}  // namespace SNN_ISA
}  // namespace snn
