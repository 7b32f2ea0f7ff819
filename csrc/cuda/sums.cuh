// Gradients of parameters: sums over time within a thread, then over neurons.
#pragma once

#include "rows.cuh"

namespace snn {
namespace cuda {

// What adds up over the chunks, in registers or, where these are many, in shared memory: in the
// Room that the kernel declares for it.
template <int COUNT, int VEC, bool SHARED>
struct Totals {
  struct Room {};
  double of[COUNT][VEC];

  SNN_DEVICE explicit Totals(Room&) {}
  SNN_DEVICE double& at(int k, int j) { return of[k][j]; }
};
template <int COUNT, int VEC>
struct Totals<COUNT, VEC, true> {
  struct Room {
    double of[COUNT][VEC][THREADS];
  };
  Room& room;

  SNN_DEVICE explicit Totals(Room& shared) : room(shared) {}
  SNN_DEVICE double& at(int k, int j) { return room.of[k][j][threadIdx.x]; }
};

// COUNT sums over time for VEC neurons: float32 within a chunk of steps, float64 over the chunks.
template <int COUNT, int VEC, bool SHARED>
struct Sums {
  using Room = typename Totals<COUNT, VEC, SHARED>::Room;
  float chunk[COUNT][VEC];
  Totals<COUNT, VEC, SHARED> total;

  SNN_DEVICE explicit Sums(Room& room) : total(room) {
#pragma unroll
    for (int k = 0; k < COUNT; ++k) {
#pragma unroll
      for (int j = 0; j < VEC; ++j) total.at(k, j) = 0.0;
    }
    start_chunk();
  }
  SNN_DEVICE void start_chunk() {
#pragma unroll
    for (int k = 0; k < COUNT; ++k) {
#pragma unroll
      for (int j = 0; j < VEC; ++j) chunk[k][j] = 0.0f;
    }
  }
  SNN_DEVICE void add(int k, int j, float term) { chunk[k][j] += term; }
  SNN_DEVICE void end_chunk() {
#pragma unroll
    for (int k = 0; k < COUNT; ++k) {
#pragma unroll
      for (int j = 0; j < VEC; ++j) total.at(k, j) += chunk[k][j];
    }
  }
  // Sum k to `to`, where that is wanted.
  SNN_DEVICE void store(int k, float* to, Int m) {
    if (!to) return;
#pragma unroll
    for (int j = 0; j < VEC; ++j) to[m + j] = static_cast<float>(total.at(k, j));
  }
  // The sums of a filter's coefficients, N of alpha and N + 1 of beta, from `first` on.
  template <int N>
  SNN_DEVICE void store_filter(int first, const Call& a, Int m) {
    const Int M = a.O * a.I;
    if (!a.dcoefficients) return;
#pragma unroll
    for (int p = 0; p < N; ++p) store(first + p, p < a.P ? a.dcoefficients + p * M : nullptr, m);
#pragma unroll
    for (int q = 0; q <= N; ++q) {
      store(first + N + q, q <= a.Q ? a.dcoefficients + (a.P + q) * M : nullptr, m);
    }
  }
};

// Over neurons: out[c] = sum over those of channel c, in an order given by the shape alone: `parts`
// blocks a channel, each in a fixed tree, then the parts one after the other.
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
