// The time loop on CUDA: device kernels only. nvcc and NVRTC compile this same text, and the tests
// run it on the CPU. neuron.h holds the equations, backends/cuda_launch.py chooses kernel and
// shape.
//
// A thread owns VEC neurons that lie side by side and walks over time with their state in
// registers. VEC divides I and every row is aligned to VEC elements, so no access is partial.
// RARE: any of per-channel coefficients, refractory periods, recorded h, parameter gradients, and
// inputs or outputs that are broadcast or absent; which of them is then asked at run time.
#pragma once

#include "cuda_memory.cuh"

namespace snn {
namespace cuda {

// --- forward -------------------------------------------------------------------------------------

// One step of VEC neurons, from x to s; h is stored where it is recorded.
template <class IO, Reset R, int VEC, bool RARE>
SNN_DEVICE Pack<IO, VEC> forward_step(const Coefficients<VEC, RARE>& q, const Pack<IO, VEC>& x,
                                      float (&v)[VEC], float (&wait)[VEC], float* h_out) {
  Pack<IO, VEC> s;
  float h[VEC];
#pragma unroll
  for (int j = 0; j < VEC; ++j) {
    h[j] = charge(q.decay(j), v[j], x.get(j));
    bool fired = fire(h[j], q.theta(j));
    if (q.refractory()) {
      fired = fired && wait[j] <= 0.0f;
      wait[j] = wait_after(wait[j], fired, q.period);
    }
    v[j] = reset<R>(h[j], fired, q.theta(j), q.v_reset);
    s.set_spike(j, fired);
  }
  if (RARE && h_out) store_row(h_out, h);
  return s;
}

template <int VEC>
SNN_DEVICE void store_state(const Call& a, Int m, const float (&v)[VEC], const float (&wait)[VEC],
                            bool refractory) {
  store_row(a.v + m, v);
  if (refractory) store_row(a.wait + m, wait);
}

// U steps of x are loaded before the first store, and the next U while these are computed.
template <class IO, Reset R, int VEC, int U, bool RARE>
__global__ void __launch_bounds__(THREADS, 4) neuron_fwd_kernel(const __grid_constant__ Call a) {
  Place at;
  if (!find_place<VEC>(a, at)) return;
  const Coefficients<VEC, RARE> q(a, at.m);
  float v[VEC], wait[VEC];
  load_row_or_zero(v, a.v0, at.m);
  load_row_or_zero(wait, q.refractory() ? a.wait0 : nullptr, at.m);
  const Int M = a.O * a.I, x_step = a.x.time * Int(sizeof(IO)), s_step = a.s.time * Int(sizeof(IO));
  const char* x = address<IO>(a.x, at);
  char* s = address<IO>(a.s, at);
  float* h = RARE && a.h.p ? reinterpret_cast<float*>(address<float>(a.h, at)) : nullptr;
  float* checkpoint = a.checkpoints + at.m;
  int until = a.K;  // steps to the next checkpoint; U divides K

  Pack<IO, VEC> now[U], next[U];
  load_steps<IO, VEC, RARE>(next, a.x, x, a.T);
  for (int left = a.T; left > 0; left -= U) {
#pragma unroll
    for (int k = 0; k < U; ++k) now[k] = next[k];
    x += U * x_step;
    load_steps<IO, VEC, RARE>(next, a.x, x, left - U);
#pragma unroll
    for (int k = 0; k < U; ++k) {
      if (k < left) {
        forward_step<IO, R>(q, now[k], v, wait, h).store(s);
        s += s_step;
        if (RARE && h) h += a.h.time;
      }
    }
    until -= U;
    if (until == 0 && left > U) {
      store_row(checkpoint, v);
      checkpoint += M;
      if (q.refractory()) {
        store_row(checkpoint, wait);
        checkpoint += M;
      }
      until = a.K;
    }
  }
  store_state(a, at.m, v, wait, q.refractory());
}

// --- backward ------------------------------------------------------------------------------------

// Sums over time of the parameters' gradients: float32 within a chunk, float64 over the chunks.
template <int VEC, bool RARE>
struct Sums {
  static constexpr int N = RARE ? VEC : 1;
  double decay[N], theta[N];

  SNN_DEVICE Sums() {
#pragma unroll
    for (int j = 0; j < N; ++j) decay[j] = theta[j] = 0.0;
  }
};

template <Surrogate S, int VEC, int K, bool RARE>
SNN_DEVICE void surrogate_tape(const Call& a, const Coefficients<VEC, RARE>& q,
                               const float (&h)[K][VEC], float (&f)[K][VEC]) {
#pragma unroll
  for (int k = 0; k < K; ++k) {
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      f[k][j] = surrogate_grad(S, h[k][j] - q.theta(j), a.surrogate_p, a.surrogate_q);
    }
  }
}

// One branch for a whole chunk, so that the surrogates of all its steps overlap.
template <int VEC, int K, bool RARE>
SNN_DEVICE void surrogate_tape(const Call& a, const Coefficients<VEC, RARE>& q,
                               const float (&h)[K][VEC], float (&f)[K][VEC]) {
  switch (static_cast<Surrogate>(a.surrogate)) {
    case Surrogate::triangle:
      return surrogate_tape<Surrogate::triangle>(a, q, h, f);
    case Surrogate::rectangle:
      return surrogate_tape<Surrogate::rectangle>(a, q, h, f);
    case Surrogate::gaussian:
      return surrogate_tape<Surrogate::gaussian>(a, q, h, f);
    case Surrogate::atan:
      return surrogate_tape<Surrogate::atan>(a, q, h, f);
    case Surrogate::sigmoid:
      return surrogate_tape<Surrogate::sigmoid>(a, q, h, f);
    default:
      return surrogate_tape<Surrogate::fast_sigmoid>(a, q, h, f);
  }
}

// What the adjoint of one chunk of K steps needs. h where anything but f is made of it, else only
// whether it fired.
template <int VEC, int K, bool RARE>
struct Tape {
  static_assert(K * VEC <= 32, "one bit of a word for each neuron-step");
  float h[K][VEC], f[K][VEC], v_start[VEC];
  unsigned fired_bits = 0, live_bits = 0;

  SNN_DEVICE bool fired(int k, int j) const { return fired_bits >> (k * VEC + j) & 1; }
  SNN_DEVICE bool live(int k, int j) const { return live_bits >> (k * VEC + j) & 1; }
};

// n steps, the last one first; dh and dx point at the first. FULL: n is K, and a gradient arrives
// on the state after the last of them.
template <bool FULL, class IO, Reset R, bool DETACH, int VEC, int K, bool RARE>
SNN_DEVICE void adjoint(const Call& a, const Coefficients<VEC, RARE>& q, int n, bool carried,
                        const Tape<VEC, K, RARE>& tape, const Pack<IO, VEC> (&ds)[K],
                        const char* dh, char* dx, float (&dv)[VEC], float (&ddecay)[VEC],
                        float (&dtheta)[VEC]) {
  constexpr bool KEEPS_H = !RARE && R == Reset::hard && !DETACH;
  const bool recorded = RARE && a.dh.p;
  const Int dx_step = a.dx.time * Int(sizeof(IO)), dh_step = a.dh.time * Int(sizeof(float));
  dx += (n - 1) * dx_step;
  if (recorded) dh += (n - 1) * dh_step;
#pragma unroll
  for (int k = K - 1; k >= 0; --k) {
    if (FULL || k < n) {
      auto dh_t = Pack<float, VEC>::zero();
      if (recorded) dh_t = load_step<float, VEC, RARE>(a.dh, dh);
      Pack<IO, VEC> out;
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        const float h = tape.h[k][j];
        const bool fired = KEEPS_H ? fire(h, q.theta(j)) : tape.fired(k, j);
        const bool live = !q.refractory() || tape.live(k, j);
        float v_before = 0.0f;
        if (RARE && a.ddecay) {
          v_before = k == 0 ? tape.v_start[j]
                            : reset<R>(tape.h[k ? k - 1 : 0][j], tape.fired(k ? k - 1 : 0, j),
                                       q.theta(j), q.v_reset);
        }
        const auto back = step_back<R>(ds[k].get(j), dh_t.get(j), recorded, dv[j],
                                       FULL || carried || k != n - 1, DETACH, h, fired, live,
                                       tape.f[k][j], v_before, q.decay(j), q.theta(j), q.v_reset);
        dv[j] = back.dv;
        ddecay[j] += back.ddecay;
        dtheta[j] += back.dtheta;
        out.set(j, back.dx);
      }
      if (!RARE || a.dx.p) out.store(dx);
      dx -= dx_step;
      if (recorded) dh -= dh_step;
    }
  }
}

// n <= K steps: recompute h from v, the state before them, then run the adjoint. dv: on the state
// after the chunk (carried: if anything arrives there), then on the one before it.
template <class IO, Reset R, bool DETACH, int VEC, int K, bool RARE>
SNN_DEVICE void backward_chunk(const Call& a, const Coefficients<VEC, RARE>& q, int n, bool carried,
                               const Pack<IO, VEC> (&x)[K], const Pack<IO, VEC> (&ds)[K],
                               const char* dh, char* dx, float (&v)[VEC], float (&wait)[VEC],
                               float (&dv)[VEC], Sums<VEC, RARE>& sums) {
  Tape<VEC, K, RARE> tape;
#pragma unroll
  for (int j = 0; j < VEC; ++j) tape.v_start[j] = v[j];
#pragma unroll
  for (int k = 0; k < K; ++k) {
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      const float h = charge(q.decay(j), v[j], x[k].get(j));
      bool fired = fire(h, q.theta(j));
      if (q.refractory()) {
        const bool live = wait[j] <= 0.0f;
        fired = fired && live;
        wait[j] = wait_after(wait[j], fired, q.period);
        if (live) tape.live_bits |= 1u << (k * VEC + j);
      }
      if (fired) tape.fired_bits |= 1u << (k * VEC + j);
      v[j] = reset<R>(h, fired, q.theta(j), q.v_reset);
      tape.h[k][j] = h;
    }
  }
  keep_word(tape.fired_bits);
  surrogate_tape(a, q, tape.h, tape.f);

  float ddecay[VEC], dtheta[VEC];
#pragma unroll
  for (int j = 0; j < VEC; ++j) ddecay[j] = dtheta[j] = 0.0f;
  if (n == K && carried) {
    adjoint<true, IO, R, DETACH>(a, q, K, true, tape, ds, dh, dx, dv, ddecay, dtheta);
  } else {
    adjoint<false, IO, R, DETACH>(a, q, n, carried, tape, ds, dh, dx, dv, ddecay, dtheta);
  }
  if (RARE) {
#pragma unroll
    for (int j = 0; j < VEC; ++j) sums.decay[j] += ddecay[j], sums.theta[j] += dtheta[j];
  }
}

template <int VEC, bool RARE>
SNN_DEVICE void store_gradients(const Call& a, Int m, const float (&dv)[VEC],
                                const Sums<VEC, RARE>& sums) {
  if (a.dv0) store_row(a.dv0 + m, dv);
  if (RARE) {
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      if (a.ddecay) a.ddecay[m + j] = static_cast<float>(sums.decay[j]);
      if (a.dtheta) a.dtheta[m + j] = static_cast<float>(sums.theta[j]);
    }
  }
}

// From the last checkpoint to the first: K steps of x and ds are loaded before the first store.
template <class IO, Reset R, bool DETACH, int VEC, int K, bool RARE>
__global__ void __launch_bounds__(THREADS, 4) neuron_bwd_kernel(const __grid_constant__ Call a) {
  Place at;
  if (!find_place<VEC>(a, at)) return;
  const Coefficients<VEC, RARE> q(a, at.m);
  const int last = (a.T - 1) / K;
  const Int M = a.O * a.I, x_step = K * a.x.time * Int(sizeof(IO)),
            ds_step = K * a.ds.time * Int(sizeof(IO)), dx_step = K * a.dx.time * Int(sizeof(IO)),
            dh_step = K * a.dh.time * Int(sizeof(float));
  const char *x = address<IO>(a.x, at) + last * x_step,
             *ds = address<IO>(a.ds, at) + last * ds_step,
             *dh = RARE ? address<float>(a.dh, at) + last * dh_step : nullptr;
  char* dx = address<IO>(a.dx, at) + last * dx_step;
  const int rows = q.refractory() ? 2 : 1;
  const float* start = a.checkpoints + (last - 1) * rows * M + at.m;
  float v[VEC], wait[VEC], dv[VEC];
  load_row_or_zero(dv, a.dv, at.m);
  load_row_or_zero(wait, nullptr, 0);
  Sums<VEC, RARE> sums;
  int n = a.T - last * K;
  bool carried = a.dv;
#pragma unroll 1
  for (int c = last; c >= 0; --c) {
    Pack<IO, VEC> x_steps[K], ds_steps[K];
    load_steps<IO, VEC, RARE>(x_steps, a.x, x, n);
    load_steps<IO, VEC, RARE>(ds_steps, a.ds, ds, n);
    if (c) {
      load_row(v, start);
      if (q.refractory()) load_row(wait, start + M);
    } else {
      load_row_or_zero(v, a.v0, at.m);
      if (q.refractory()) load_row_or_zero(wait, a.wait0, at.m);
    }
    backward_chunk<IO, R, DETACH>(a, q, n, carried, x_steps, ds_steps, dh, dx, v, wait, dv, sums);
    x -= x_step;
    ds -= ds_step;
    dx -= dx_step;
    start -= rows * M;
    if (RARE) dh -= dh_step;
    n = K;
    carried = true;
  }
  store_gradients(a, at.m, dv, sums);
}

// --- sums over neurons ---------------------------------------------------------------------------

// out[c] = sum over the neurons of channel c, in an order given by the shape alone: `parts` blocks
// a channel, each in a fixed tree, then the parts one after the other.
struct Reduction {
  const float* per_neuron;  // [M]
  double* partial;          // [C, parts]
  float* out;               // [C]
  Int M, C, channel_inner, parts;
};

template <int REDUCE_THREADS>
__global__ void __launch_bounds__(REDUCE_THREADS)
    reduce_channels_kernel(const __grid_constant__ Reduction a) {
  __shared__ double sums[REDUCE_THREADS];
  const int thread = threadIdx.x;
  const Int channel = blockIdx.x / a.parts, part = blockIdx.x - channel * a.parts;
  const Int terms = a.M / a.C, end = terms * (part + 1) / a.parts;
  double sum = 0;
  for (Int r = terms * part / a.parts + thread; r < end; r += REDUCE_THREADS) {
    const Int block = r / a.channel_inner;
    sum += a.per_neuron[(block * a.C + channel) * a.channel_inner + (r - block * a.channel_inner)];
  }
  sums[thread] = sum;
  __syncthreads();
  for (int half = REDUCE_THREADS / 2; half > 0; half /= 2) {
    if (thread < half) sums[thread] += sums[thread + half];
    __syncthreads();
  }
  if (thread == 0) a.partial[channel * a.parts + part] = sums[0];
}

template <int REDUCE_THREADS>
__global__ void __launch_bounds__(REDUCE_THREADS)
    reduce_parts_kernel(const __grid_constant__ Reduction a) {
  const Int channel = Int(blockIdx.x) * REDUCE_THREADS + threadIdx.x;
  if (channel >= a.C) return;
  double sum = 0;
  for (Int part = 0; part < a.parts; ++part) sum += a.partial[channel * a.parts + part];
  a.out[channel] = static_cast<float>(sum);
}

}  // namespace cuda
}  // namespace snn
