// The filter alone on CUDA; threads and neurons as in neuron_kernels.cuh. Orders up to N, sequences
// broadcast or absent. In `Call`, s is f, and ds and dx are its and the input's gradients.
#pragma once

#include "filter.cuh"
#include "sums.cuh"

namespace snn {
namespace cuda {

template <class IO, int N, int VEC, int U>
__global__ void __launch_bounds__(THREADS, 4) iir_fwd_kernel(const __grid_constant__ Call a) {
  Place at;
  if (!find_place<VEC>(a, at)) return;
  const Taps<N, VEC> taps(a, Channels<VEC>(a, at.m, a.filter_count > 1));
  Window<N, VEC> window;
  window.start(a, at.m);
  float *checkpoint = a.checkpoints + at.m, *end = a.synapse + at.m;
  walk_forward<IO, VEC, U, true>(
      a, at,
      [&](const Pack<IO, VEC>& x) {
        float f[VEC];
#pragma unroll
        for (int j = 0; j < VEC; ++j) f[j] = window.step(taps, j, x.get(j));
        return Pack<IO, VEC>::of(f);
      },
      [] {}, [&] { window.save(a, checkpoint, false); });
  window.save(a, end, true);
}

// x and f of a chunk of K steps once more: from its checkpoint, or from the one before, which is
// `ahead` chunks back; where none was `kept`, from the start. x points at the first of its n steps.
// The pointer cannot say so: a filter without outputs has checkpoints of no size.
template <class IO, int N, int VEC, int K>
SNN_DEVICE void replay(const Call& a, const Taps<N, VEC>& taps, Int m, bool kept,
                       const float* checkpoint, const char* x, int ahead, int n,
                       FilterTape<N, VEC, K>& tape) {
  const Int x_step = K * a.x.time * Int(sizeof(IO));
  Window<N, VEC> window;
  if (kept) {
    window.template restore<IO>(a, checkpoint, x - ahead * x_step);
  } else {
    window.start(a, m);
  }
#pragma unroll 1
  for (int b = ahead; b >= 0; --b) {
    Pack<IO, VEC> steps[K];
    load_steps<IO, VEC, true>(steps, a.x, x - b * x_step, b ? K : n);
    tape.start(window);
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        const float x_t = steps[k].get(j);
        tape.put(k, j, x_t, window.step(taps, j, x_t));
      }
    }
  }
}

// LEARN: the gradients of the coefficients too, for which f is computed once more, K steps at a
// time. Without them the adjoint is a filter of its own and needs neither x nor checkpoints.
template <class IO, int N, int VEC, int K, bool LEARN>
__global__ void __launch_bounds__(THREADS, 4) iir_bwd_kernel(const __grid_constant__ Call a) {
  Place at;
  if (!find_place<VEC>(a, at)) return;
  const Taps<N, VEC> taps(a, Channels<VEC>(a, at.m, a.filter_count > 1));
  FilterAdjoint<N, VEC> adjoint;
  using CoefficientSums = Sums<2 * N + 1, VEC, LEARN>;
  __shared__ typename CoefficientSums::Room room;
  CoefficientSums sums(room);
  const int last = (a.T - 1) / K, chunks = LEARN ? a.K / K : 1;
  const Int x_step = K * a.x.time * Int(sizeof(IO)), ds_step = K * a.ds.time * Int(sizeof(IO)),
            dx_step = a.dx.time * Int(sizeof(IO)), outputs = a.P * (a.O * a.I);
  const char *x = address<IO>(a.x, at) + last * x_step,
             *ds = address<IO>(a.ds, at) + last * ds_step;
  char* dx = address<IO>(a.dx, at) + (a.T - 1) * dx_step;
  int left = 0;
#pragma unroll 1
  for (int c = last; c >= 0; --c) {
    const int n = c == last ? a.T - last * K : K;
    Pack<IO, VEC> ds_steps[K];
    FilterTape<N, VEC, K> tape;
    if constexpr (LEARN) {
      const float* start = a.checkpoints + (c / chunks - 1) * outputs + at.m;
      replay<IO>(a, taps, at.m, c >= chunks, start, x, c % chunks, n, tape);
      sums.start_chunk();
    }
    load_steps<IO, VEC, true>(ds_steps, a.ds, ds, n);
#pragma unroll
    for (int k = K - 1; k >= 0; --k) {
      if (k < n) {
        float out[VEC];
#pragma unroll
        for (int j = 0; j < VEC; ++j) {
          out[j] = adjoint.step(a, taps, at.m, left, j, ds_steps[k].get(j));
          if constexpr (LEARN) tape.add_terms(sums, 0, k, j, adjoint.g[0][j]);
        }
        if (a.dx.p) Pack<IO, VEC>::of(out).store(dx);
        dx -= dx_step;
        ++left;
      }
    }
    if constexpr (LEARN) sums.end_chunk();
    x -= x_step;
    ds -= ds_step;
  }
  adjoint.finish(a, taps, at.m);
  if constexpr (LEARN) sums.template store_filter<N>(0, a, at.m);
}

}  // namespace cuda
}  // namespace snn
