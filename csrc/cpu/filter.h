// The filter of neuron.h on rows of one tile in the L1 cache, and its forward pass. Used by the
// kernels of the filter alone and of the neuron; the backward pass stands in cpu_filter_adjoint.h.
//
// Rows are float32 and `width` long, a multiple of the vector, so no loop here has a remainder.
// An array of rows is ordered by time from the newest to the oldest: row[k] lies k steps back.
#pragma once

#include "tile.h"

namespace snn {
namespace SNN_ISA {
namespace {

SNN_HD int padded(int n) { return (n + LANES - 1) / LANES * LANES; }

// Rows cut from memory that a kernel keeps on its stack.
template <int FLOATS>
struct Pool {
  alignas(64) float floats[FLOATS];
  int used = 0;

  float* take(int width, int rows = 1) {
    float* row = floats + used;
    used += rows * width;
    return row;
  }
  void take(float** rows, int width, int count) {
    for (int k = 0; k < count; ++k) rows[k] = take(width);
  }
  // The widest tile whose rows fit.
  static int width(int rows, int most) {
    const int fits = FLOATS / rows / 16 * 16;
    return smaller(fits, most);
  }
};

// The rows of the last steps; now()[k] is that of k steps ago.
struct Ring {
  float* row[2 * (MAX_ORDER + MAX_K)];  // all of them twice, so that any run of them lies in one
  int count, at;

  template <class Rows>
  void start(int rows, int width, Rows& pool) {
    count = rows, at = 0;
    pool.take(row, width, count);
    std::memcpy(row + count, row, count * sizeof(*row));
  }
  float* const* now() const { return row + at; }
  // A step on: the oldest row is the one to be written, now()[0].
  void next() { at = (at ? at : count) - 1; }
};

// next: a row that will be read soon.
template <class IO>
SNN_HD void widen_row(float* to, const IO* from, const IO* next, int width) {
  for (int j = 0; j < width; j += LANES) {
    prefetch(next + j);
    widen(from + j).store(to + j);
  }
}

template <class IO, int TILE>
SNN_HD void write_row(OutputRows<IO, TILE>& to, int64_t t, const float* from, int width,
                      bool large) {
  IO* row = to.row(t);
  const bool past = to.stream;
  for (int j = 0; j < width; j += LANES) put(row + j, Vec::load(from + j), past);
  to.finish(t, large);
}

SNN_HD void add_row(float* to, const float* from, int n) {
  for (int j = 0; j < n; ++j) to[j] = to[j] + from[j];
}

// out = filter(beta, x, alpha, f), x[q] being x[t-q] and f[p] being f[t-1-p]. Orders of -1 are
// given at run time. A coefficient is one value, or with SPREAD one per neuron.
template <int P, int Q, bool SPREAD>
void filter_row(int width, int p_count, int q_count, const float* const* beta,
                const float* const* x, const float* const* alpha, const float* const* f,
                float* out) {
  if (P < 0) {
    for (int j = 0; j < width; j += LANES) {
      const auto of = [j](const float* const* rows) {
        return [j, rows](int k) { return SPREAD ? Vec::load(rows[k] + j) : Vec(*rows[k]); };
      };
      const auto lag = [j](const float* const* rows) {
        return [j, rows](int k) { return Vec::load(rows[k] + j); };
      };
      filter(p_count, q_count, of(beta), lag(x), of(alpha - 1), lag(f - 1)).store(out + j);
    }
    return;
  }
  constexpr int IN = (Q < 0 ? 0 : Q) + 1, OUT = P > 0 ? P : 1;
  const float *from_x[IN], *from_f[OUT], *from_beta[IN], *from_alpha[OUT];
  Vec b[IN], a[OUT];
  for (int q = 0; q < IN; ++q) {
    from_x[q] = x[q], from_beta[q] = beta[q];
    b[q] = Vec(*beta[q]);
  }
  for (int p = 0; p < P; ++p) {
    from_f[p] = f[p], from_alpha[p] = alpha[p];
    a[p] = Vec(*alpha[p]);
  }
  for (int j = 0; j < width; j += LANES) {
    filter(
        P, IN - 1, [&](int q) { return SPREAD ? Vec::load(from_beta[q] + j) : b[q]; },
        [&](int q) { return Vec::load(from_x[q] + j); },
        [&](int p) { return SPREAD ? Vec::load(from_alpha[p - 1] + j) : a[p - 1]; },
        [&](int p) { return Vec::load(from_f[p - 1] + j); })
        .store(out + j);
  }
}

using FilterRow = void (*)(int, int, int, const float* const*, const float* const*,
                           const float* const*, const float* const*, float*);

template <bool SPREAD>
FilterRow find_filter_row(int P, int Q) {
#define SNN_ORDER(P)                                                              \
  {                                                                               \
    filter_row<P, 0, SPREAD>, filter_row<P, 1, SPREAD>, filter_row<P, 2, SPREAD>, \
        filter_row<P, 3, SPREAD>, filter_row<P, 4, SPREAD>                        \
  }
  static constexpr FilterRow BY_ORDER[5][5] = {SNN_ORDER(0), SNN_ORDER(1), SNN_ORDER(2),
                                               SNN_ORDER(3), SNN_ORDER(4)};
#undef SNN_ORDER
  return P <= 4 && Q <= 4 ? BY_ORDER[P][Q] : filter_row<-1, -1, SPREAD>;
}

// The coefficients of one tile, and the row function of any orders up to theirs.
struct FilterTile {
  int P, Q, width;
  bool spread_out, in_loop;
  const float *alpha[MAX_ORDER], *beta[MAX_ORDER + 1];

  static int rows(const Filter& a) { return a.count > 1 ? a.P + a.Q + 1 : 0; }
  // Whether in_loop() below takes such a filter.
  static bool has_loop(const Filter& a) { return a.count == 1 && a.P >= 1 && a.P <= 2 && a.Q <= 1; }

  template <class Rows>
  void start(const Filter& a, const Walk& q, int64_t m0, int n, Rows& pool) {
    in_loop = has_loop(a);
    P = a.P, Q = a.Q, width = padded(n);
    spread_out = a.count > 1;
    const auto place = [&](const float* p) -> const float* {
      if (!spread_out) return p;
      float* row = pool.take(width);
      std::memset(row, 0, width * sizeof(float));
      spread({p, a.count, 0.0f}, q, m0, n, row);
      return row;
    };
    for (int p = 0; p < P; ++p) alpha[p] = place(a.alpha + p * a.count);
    for (int k = 0; k <= Q; ++k) beta[k] = place(a.beta + k * a.count);
  }
  void run(int p_count, int q_count, const float* const* b, const float* const* x,
           const float* const* a, const float* const* f, float* out) const {
    const FilterRow row = spread_out ? find_filter_row<true>(p_count, q_count)
                                     : find_filter_row<false>(p_count, q_count);
    row(width, p_count, q_count, b, x, a, f, out);
  }
};

// One step of a shared filter of low order inside the loop of who uses it: what the rows above
// load and store again and again stays in registers.
template <int P_ORDER, int Q_ORDER>
struct InLoop {
  static constexpr int P = P_ORDER, Q = Q_ORDER;
  static_assert(Q <= P, "backward() looks at P later steps");
  Vec alpha[P], beta[Q + 1];
  float* now;              // f[t], or backward g[t]
  const float* before[P];  // f[t-1], ...; backward g[t+1], ...
  float* x_now = nullptr;  // x[t] and those before; forward only
  const float* x_before[Q > 0 ? Q : 1];

  // rows[0] is to be written; x: nullptr backward.
  SNN_HD InLoop(const FilterTile& tile, float* const* rows, float* const* x) {
    for (int p = 0; p < P; ++p) alpha[p] = Vec(*tile.alpha[p]);
    for (int q = 0; q <= Q; ++q) beta[q] = Vec(*tile.beta[q]);
    now = rows[0];
    for (int p = 0; p < P; ++p) before[p] = rows[p + 1];
    if (!x) return;
    x_now = x[0];
    for (int q = 0; q < Q; ++q) x_before[q] = x[q + 1];
  }
  // All loads come before the stores: rows may lie a multiple of 4 KB apart, and a load then waits
  // for a store to the same place in its page.
  SNN_HD Vec forward(int j, Vec x) const {
    Vec lag[P], x_lag[Q + 1];
    x_lag[0] = x;
    for (int p = 0; p < P; ++p) lag[p] = Vec::load(before[p] + j);
    for (int q = 0; q < Q; ++q) x_lag[q + 1] = Vec::load(x_before[q] + j);
    const Vec f = filter(
        P, Q, [&](int q) { return beta[q]; }, [&](int q) { return x_lag[q]; },
        [&](int p) { return alpha[p - 1]; }, [&](int p) { return lag[p - 1]; });
    x.store(x_now + j);
    f.store(now + j);
    return f;
  }
  // From the gradient on f[t] to that on x[t]; P and Q later steps must be there.
  SNN_HD Vec backward(int j, Vec df) const {
    Vec later[P + 1];
    for (int p = 0; p < P; ++p) later[p + 1] = Vec::load(before[p] + j);
    const Vec one(1.0f);
    later[0] = filter(
        P, 0, [&](int) { return one; }, [&](int) { return df; },
        [&](int p) { return alpha[p - 1]; }, [&](int p) { return later[p]; });
    const Vec dx = filter(
        0, Q, [&](int q) { return beta[q]; }, [&](int q) { return later[q]; },
        [&](int) { return one; }, [&](int) { return one; });
    later[0].store(now + j);
    return dx;
  }
};

template <int P, int Q>
struct Orders {
  using type = InLoop<P, Q>;
};

// f(Orders<P, Q>()) and true, where such a filter has an InLoop.
template <class Function>
SNN_HD bool in_loop(const FilterTile& tile, Function f) {
  if (!tile.in_loop) return false;
  if (tile.P == 1) {
    tile.Q ? f(Orders<1, 1>()) : f(Orders<1, 0>());
  } else {
    tile.Q ? f(Orders<2, 1>()) : f(Orders<2, 0>());
  }
  return true;
}

// Forward: one row of x in, one row of f out.
struct FilterForward {
  FilterTile tile;
  int n;
  int64_t m0, M;
  Ring x, f;

  static int rows(const Filter& a) { return FilterTile::rows(a) + a.P + a.Q + 2; }

  template <class Rows>
  void start(const Filter& a, const Walk& q, int64_t first, int count, Rows& pool) {
    n = count, m0 = first, M = q.O * q.I;
    tile.start(a, q, m0, n, pool);
    f.start(a.P + 1, tile.width, pool);
    x.start(a.Q + 1, tile.width, pool);
    for (int p = 0; p < a.P; ++p) load_row(f.now()[p], lag(a.state0, p), m0, n);
    for (int k = 0; k < a.Q; ++k) load_row(x.now()[k], lag(a.state0, a.P + k), m0, n);
  }
  const float* lag(const float* state, int k) const { return state ? state + k * M : nullptr; }

  void next() {
    x.next();
    f.next();
  }
  template <class IO>
  const float* step(const IO* x_row, const IO* x_next) {
    next();
    float *const *in = x.now(), *const *out = f.now();
    widen_row(in[0], x_row, x_next, tile.width);
    tile.run(tile.P, tile.Q, tile.beta, in, tile.alpha, out + 1, out[0]);
    return out[0];
  }
  // The last outputs, and with `inputs` also the last inputs.
  void save(float* to, bool inputs) const {
    for (int p = 0; p < tile.P; ++p) std::memcpy(to + p * M + m0, f.now()[p], n * sizeof(float));
    for (int k = 0; inputs && k < tile.Q; ++k)
      std::memcpy(to + (tile.P + k) * M + m0, x.now()[k], n * sizeof(float));
  }
};

}  // namespace
}  // namespace SNN_ISA
}  // namespace snn
