// The filter on CUDA, for VEC neurons of one thread and orders up to N. It stands alone
// (iir_kernels.cuh) and as the synapse of the neuron (neuron_kernels.cuh).
//
// All N lags are always computed. One that is not there has the factor -0.0 and the value 1.0: its
// term is then -0.0, and adding that changes no bit of any sum.
#pragma once

#include "rows.cuh"

namespace snn {
namespace cuda {

constexpr float NO_FACTOR = -0.0f, NO_VALUE = 1.0f;

// No alpha and no beta: the filter that passes x on.
template <int N, int VEC>
struct Taps {
  int P, Q;
  float alpha[N][VEC], beta[N + 1][VEC];  // lags 1 ... N and 0 ... N

  SNN_DEVICE Taps(const Call& a, const Channels<VEC>& channel) : P(a.P), Q(a.Q) {
#pragma unroll
    for (int k = 0; k <= N; ++k) {
      const bool used = k <= Q;
      spread(beta[k], used && a.beta ? a.beta + k * a.filter_count : nullptr, a.filter_count,
             used ? 1.0f : NO_FACTOR, channel);
    }
#pragma unroll
    for (int k = 0; k < N; ++k) {
      spread(alpha[k], k < P ? a.alpha + k * a.filter_count : nullptr, a.filter_count, NO_FACTOR,
             channel);
    }
  }
};

// The last N inputs and outputs, newest first.
template <int N, int VEC>
struct Window {
  float x[N][VEC], f[N][VEC];

  // Of the synapse's state before the first step.
  SNN_DEVICE void start(const Call& a, Int m) {
    const Int M = a.O * a.I;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      load_row_or_zero(f[k], k < a.P ? a.synapse0 : nullptr, k * M + m);
      load_row_or_zero(x[k], k < a.Q ? a.synapse0 : nullptr, (a.P + k) * M + m);
    }
  }
  // Of step t > N: the outputs [P, M] of a checkpoint, and x, which points at step t.
  template <class IO>
  SNN_DEVICE void restore(const Call& a, const float* outputs, const char* x_t) {
    const Int M = a.O * a.I, step = a.x.time * Int(sizeof(IO));
#pragma unroll
    for (int k = 0; k < N; ++k) {
      load_row_or_zero(f[k], k < a.P ? outputs : nullptr, k * M);
      auto pack = Pack<IO, VEC>::zero();
      if (k < a.Q) pack = load_step<IO, VEC, true>(a.x, x_t - (k + 1) * step);
#pragma unroll
      for (int j = 0; j < VEC; ++j) x[k][j] = pack.get(j);
    }
  }
  // f[t] of neuron j.
  SNN_DEVICE float step(const Taps<N, VEC>& c, int j, float x_t) {
    const float f_t = filter(
        N, N, [&](int q) { return c.beta[q][j]; },
        [&](int q) { return q == 0     ? x_t
                            : q <= c.Q ? x[q ? q - 1 : 0][j]
                                       : NO_VALUE; },
        [&](int p) { return c.alpha[p - 1][j]; },
        [&](int p) { return p <= c.P ? f[p - 1][j] : NO_VALUE; });
#pragma unroll
    for (int k = N - 1; k > 0; --k) x[k][j] = x[k - 1][j], f[k][j] = f[k - 1][j];
    x[0][j] = x_t, f[0][j] = f_t;
    return f_t;
  }
  // Rows of a state, from `to` on, which moves behind them: the outputs, and the inputs too.
  SNN_DEVICE void save(const Call& a, float*& to, bool inputs) const {
    const Int M = a.O * a.I;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if (k < a.P) store_row(to, f[k]), to += M;
    }
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if (inputs && k < a.Q) store_row(to, x[k]), to += M;
    }
  }
};

// What the gradients of the coefficients need of a chunk of K steps: x and f from N steps before.
template <int N, int VEC, int K>
struct FilterTape {
  float x[N + K][VEC], f[N + K][VEC];  // [N + k] is that of step k

  SNN_DEVICE void start(const Window<N, VEC>& before) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        x[N - 1 - k][j] = before.x[k][j];
        f[N - 1 - k][j] = before.f[k][j];
      }
    }
  }
  SNN_DEVICE void put(int k, int j, float x_t, float f_t) { x[N + k][j] = x_t, f[N + k][j] = f_t; }
  SNN_DEVICE float output(int k, int j) const { return f[N + k][j]; }
  // The terms of step k, given the total gradient on its output, to sums from `first` on: of alpha,
  // then of beta. Those of a lag that is not there are stored nowhere.
  template <class Sums>
  SNN_DEVICE void add_terms(Sums& to, int first, int k, int j, float g) const {
#pragma unroll
    for (int p = 1; p <= N; ++p) to.add(first + p - 1, j, g * f[N + k - p][j]);
#pragma unroll
    for (int q = 0; q <= N; ++q) to.add(first + N + q, j, g * x[N + k - q][j]);
  }
};

// The adjoint, from the last step to the first.
template <int N, int VEC>
struct FilterAdjoint {
  float g[N][VEC];  // g[t+1], g[t+2], ...: the total gradients on f

  SNN_DEVICE FilterAdjoint() {
#pragma unroll
    for (int k = 0; k < N; ++k) {
#pragma unroll
      for (int j = 0; j < VEC; ++j) g[k][j] = NO_VALUE;
    }
  }
  // From the gradient on f[t] to that on x[t]; g[0] is then the total one on f[t]. `left` steps
  // come after this one.
  SNN_DEVICE float step(const Call& a, const Taps<N, VEC>& c, Int m, int left, int j, float df) {
    const auto value = [&](int k, int order) {
      return k <= order ? g[k ? k - 1 : 0][j] : NO_VALUE;
    };
    const float incoming = df + arriving(a, m + j, left, 0, c.P);
    const float g_t = filter(
        N, 0, [](int) { return 1.0f; }, [&](int) { return incoming; },
        [&](int p) { return p <= left ? c.alpha[p - 1][j] : NO_FACTOR; },
        [&](int p) { return value(p, c.P); });
    const float dx = gather(
        arriving(a, m + j, left, c.P, c.Q),
        [&](int q) { return q <= left ? c.beta[q][j] : NO_FACTOR; },
        [&](int q) { return q == 0 ? g_t : value(q, c.Q); });
#pragma unroll
    for (int k = N - 1; k > 0; --k) g[k][j] = g[k - 1][j];
    g[0][j] = g_t;
    return dx;
  }
  // Gradients on the state before the first step, once that step is done: what step -lag sent.
  SNN_DEVICE void finish(const Call& a, const Taps<N, VEC>& c, Int m) const {
    if (!a.dsynapse0) return;
#pragma unroll
    for (int lag = 1; lag <= N; ++lag) {
      finish_row(a, m, lag, c.P, 0, [&](int k, int j) { return c.alpha[k - 1][j]; });
      finish_row(a, m, lag, c.Q, c.P, [&](int k, int j) { return c.beta[k][j]; });
    }
  }

 private:
  template <class Tap>
  SNN_DEVICE void finish_row(const Call& a, Int m, int lag, int order, int first, Tap tap) const {
    if (lag > order) return;
    const auto there = [&](int k) { return lag + k <= order && k < a.T; };
    float row[VEC];
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      row[j] = gather(
          arriving(a, m + j, a.T + lag - 1, first, order),
          [&](int k) { return there(k) ? tap(lag + k < N ? lag + k : N, j) : NO_FACTOR; },
          [&](int k) { return there(k) ? g[k < N ? k : N - 1][j] : NO_VALUE; });
    }
    store_row(a.dsynapse0 + (first + lag - 1) * (a.O * a.I) + m, row);
  }
  // Row `first` + k of the gradient on the state after the last step, where it has it.
  SNN_DEVICE static float arriving(const Call& a, Int m, int k, int first, int order) {
    return a.dsynapse && k < order ? a.dsynapse[(first + k) * (a.O * a.I) + m] : NO_FACTOR;
  }
  // first + factor(N) value(N) + ... + factor(0) value(0): from the latest step to the earliest.
  template <class Factor, class Value>
  SNN_DEVICE static float gather(float first, Factor factor, Value value) {
    const auto none = [](int) { return NO_VALUE; };
    return filter(
        0, N + 1, [&](int q) { return q > N ? 1.0f : factor(q); },
        [&](int q) { return q > N ? first : value(q); }, none, none);
  }
};

}  // namespace cuda
}  // namespace snn
