// How the CUDA kernels reach memory: their arguments, packs of elements, where a thread works.
// nvcc and NVRTC compile this text, and a C++ compiler does for the tests.
#pragma once

#include "neuron.h"

namespace snn {
namespace cuda {

using Int = long long;

// Element (o, t, i) of a sequence lies at o * outer + t * time + i * inner elements; inner is 1, or
// 0 where one value stands for a whole row.
struct Rows {
  char* p;  // nullptr: absent
  Int outer, time, inner;
};

// Which options a kernel has. rare: per-channel coefficients, refractory periods, recorded h,
// parameter gradients, and inputs or outputs that are broadcast or absent. general: these, and
// gain, trace and synapse. Which of them a call uses is then asked at run time.
enum class Level : int { plain, rare, general };

// The arguments of every kernel that walks over time. csrc/snncore.h says what each one holds;
// backends/cuda/launch.py: pack_call packs the same fields in the same order.
struct Call {
  Rows x, s, h, ds, dh, dx;
  const float *v0, *wait0, *dv;       // [M]; nullptr: zero
  float *v, *wait, *synapse, *trace;  // after the last step: [M], [P + Q, M] of the synapse
  float* penalty;                     // [M]: its sum over time
  float *checkpoints, *dv0, *ddecay, *dtheta;  // the gradients: nullptr: not wanted
  const float *decay, *theta;                  // [count]; nullptr: the value holds
  Int decay_count, theta_count;                // 1, or C
  Int O, I, C, channel_inner;
  int surrogate, detach, T, K;  // K: steps between checkpoints; 0: none
  float decay_value, theta_value, gain_value, trace_decay_value;
  // Of the general neuron; the filter's alone (s and ds are then its f and df) uses the synapse's.
  const float *gain, *trace_decay;  // as decay
  Int gain_count, trace_decay_count;
  const float *alpha, *beta;  // [P, filter_count], [Q + 1, filter_count]; nullptr: no synapse
  Int filter_count;
  const float *trace0, *synapse0, *dtrace, *dsynapse;  // [M], [P + Q, M], and again
  float *dtrace0, *dsynapse0, *dgain, *dtrace_decay, *dcoefficients;
  const float* dpenalty;  // one value, or nullptr: zero
  int P, Q, regularise;
  float refractory;
  Numbers numbers;
};

constexpr int THREADS = 128;    // a block of the register kernels
constexpr int RING_STEPS = 16;  // steps of one stage of the ring kernels

#define SNN_DEVICE __device__ __forceinline__

// --- what needs an instruction of its own --------------------------------------------------------
// Compiled by no CUDA compiler, this file expects these functions from whoever includes it.

#if defined(__CUDACC__)
SNN_DEVICE float half_to_float(unsigned short a) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(a));
  return f;
}
// Two elements as one word: rounded to nearest even, denormals kept, as PTX has it without .ftz;
// the conversions of eager PyTorch on a GPU are these instructions too.
SNN_DEVICE unsigned floats_to_half(float low, float high) {
  unsigned word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
SNN_DEVICE unsigned floats_to_bf16(float low, float high) {
  unsigned word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
// Bits that were gathered into a word stay there: the compiler would keep them in predicates, of
// which there are few.
SNN_DEVICE void keep_word(unsigned& word) { asm volatile("" : "+r"(word)); }
// 16 bytes from global to shared memory, past the registers; complete after wait_copies().
SNN_DEVICE void copy_async(void* shared, const void* global) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}
SNN_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All but the newest PENDING groups of this thread's copies are complete.
template <int PENDING>
SNN_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
#endif

// --- element types in memory ---------------------------------------------------------------------

struct bf16 {
  unsigned short bits;
};
struct f16 {
  unsigned short bits;
};

SNN_DEVICE float as_float(unsigned bits) {
  union {
    unsigned bits;
    float value;
  } a = {bits};
  return a.value;
}
SNN_DEVICE unsigned as_bits(float value) {
  union {
    float value;
    unsigned bits;
  } a = {value};
  return a.bits;
}

// The 16 bits in the low half of `word`.
SNN_DEVICE float widen(unsigned word, bf16) { return as_float(word << 16); }
SNN_DEVICE float widen(unsigned word, f16) {
  return half_to_float(static_cast<unsigned short>(word));
}
SNN_DEVICE unsigned narrow(float low, float high, bf16) { return floats_to_bf16(low, high); }
SNN_DEVICE unsigned narrow(float low, float high, f16) { return floats_to_half(low, high); }
// In the high half.
SNN_DEVICE unsigned spike(bool fired, bf16) { return fired ? 0x3f800000u : 0u; }
SNN_DEVICE unsigned spike(bool fired, f16) { return fired ? 0x3c000000u : 0u; }

template <int BYTES>
struct Cells {
  using Cell = unsigned;
  static constexpr int COUNT = BYTES / 4;
};
template <>
struct Cells<2> {
  using Cell = unsigned short;
  static constexpr int COUNT = 1;
};

// VEC elements as one access of up to 16 bytes.
template <class IO, int VEC>
struct alignas(sizeof(IO) * VEC) Pack {
  using Cell = typename Cells<sizeof(IO) * VEC>::Cell;
  static constexpr int COUNT = Cells<sizeof(IO) * VEC>::COUNT;
  Cell cell[COUNT];

  SNN_DEVICE static Pack zero() {
    Pack a;
#pragma unroll
    for (int k = 0; k < COUNT; ++k) a.cell[k] = 0;
    return a;
  }
  SNN_DEVICE static Pack of(const float (&a)[VEC]) {
    Pack to;
#pragma unroll
    for (int j = 0; j < VEC; j += 2) {
      to.cell[j / 2] =
          static_cast<Cell>(narrow(a[j], j + 1 < VEC ? a[VEC > 1 ? j + 1 : 0] : 0, IO()));
    }
    return to;
  }
  SNN_DEVICE static Pack load(const char* p) { return *reinterpret_cast<const Pack*>(p); }
  SNN_DEVICE void store(char* p) const { *reinterpret_cast<Pack*>(p) = *this; }
  SNN_DEVICE float get(int j) const { return widen(cell[j / 2] >> (j % 2 * 16), IO()); }
  SNN_DEVICE void put(int j, unsigned high) {  // j = 0, 1, ... in this order
    cell[j / 2] = static_cast<Cell>(j % 2 ? (high & 0xffff0000) | cell[j / 2] : high >> 16);
  }
  SNN_DEVICE void set_spike(int j, bool fired) { put(j, spike(fired, IO())); }
};

template <int VEC>
struct alignas(4 * VEC) Pack<float, VEC> {
  float cell[VEC];

  SNN_DEVICE static Pack zero() {
    Pack a;
#pragma unroll
    for (int k = 0; k < VEC; ++k) a.cell[k] = 0.0f;
    return a;
  }
  SNN_DEVICE static Pack load(const char* p) { return *reinterpret_cast<const Pack*>(p); }
  SNN_DEVICE void store(char* p) const { *reinterpret_cast<Pack*>(p) = *this; }
  SNN_DEVICE static Pack of(const float (&a)[VEC]) {
    Pack to;
#pragma unroll
    for (int j = 0; j < VEC; ++j) to.cell[j] = a[j];
    return to;
  }
  SNN_DEVICE float get(int j) const { return cell[j]; }
  SNN_DEVICE void set_spike(int j, bool fired) { cell[j] = fired ? 1.0f : 0.0f; }
};

// VEC floats of state, 16 bytes at a time.
template <int VEC>
SNN_DEVICE void load_row(float (&to)[VEC], const float* p) {
  constexpr int N = VEC < 4 ? VEC : 4;
#pragma unroll
  for (int j = 0; j < VEC; j += N) {
    const auto part = Pack<float, N>::load(reinterpret_cast<const char*>(p + j));
#pragma unroll
    for (int k = 0; k < N; ++k) to[j + k] = part.cell[k];
  }
}
template <int VEC>
SNN_DEVICE void store_row(float* p, const float (&from)[VEC]) {
  constexpr int N = VEC < 4 ? VEC : 4;
#pragma unroll
  for (int j = 0; j < VEC; j += N) {
    Pack<float, N> part;
#pragma unroll
    for (int k = 0; k < N; ++k) part.cell[k] = from[j + k];
    part.store(reinterpret_cast<char*>(p + j));
  }
}
template <int VEC>
SNN_DEVICE void load_row_or_zero(float (&to)[VEC], const float* p, Int m) {
#pragma unroll
  for (int j = 0; j < VEC; ++j) to[j] = 0.0f;
  if (p) load_row(to, p + m);
}

// --- where a thread works ------------------------------------------------------------------------

struct Place {
  Int o, i, m;  // m = o * I + i
};

template <class IO>
SNN_DEVICE char* address(const Rows& a, const Place& at) {
  return a.p + (at.o * a.outer + at.i * a.inner) * Int(sizeof(IO));
}

// False where the thread lies behind the last neuron.
template <int VEC>
SNN_DEVICE bool find_place(const Call& a, Place& at) {
  const Int vector = Int(blockIdx.x) * THREADS + threadIdx.x, per_row = a.I / VEC;
  at.o = a.O == 1 ? 0 : vector / per_row;
  at.i = (vector - at.o * per_row) * VEC;
  at.m = at.o * a.I + at.i;
  return a.O == 1 ? at.i < a.I : at.o < a.O;
}

// One step of an input; an absent one is zero, one of stride 0 is a row of equal values.
template <class IO, int VEC, bool RARE>
SNN_DEVICE Pack<IO, VEC> load_step(const Rows& a, const char* p) {
  if (RARE && !a.p) return Pack<IO, VEC>::zero();
  if (RARE && !a.inner) {
    const float value = Pack<IO, 1>::load(p).get(0);
    float all[VEC];
#pragma unroll
    for (int j = 0; j < VEC; ++j) all[j] = value;
    return Pack<IO, VEC>::of(all);
  }
  return Pack<IO, VEC>::load(p);
}

// The first `count` of N steps; the others are zero. All of them is the case that is made fast.
template <class IO, int VEC, bool RARE, int N>
SNN_DEVICE void load_steps(Pack<IO, VEC> (&to)[N], const Rows& a, const char* p, int count) {
  const Int step = a.time * Int(sizeof(IO));
  if (count >= N) {
#pragma unroll
    for (int k = 0; k < N; ++k) to[k] = load_step<IO, VEC, RARE>(a, p + k * step);
  } else {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      to[k] = Pack<IO, VEC>::zero();
      if (k < count) to[k] = load_step<IO, VEC, RARE>(a, p + k * step);
    }
  }
}

// All steps from x to s: U of x are loaded before the first store, and the next U while these are
// computed. step(x) gives what is stored, block() follows U steps, checkpoint() keeps the state
// before step K, 2K, ....
template <class IO, int VEC, int U, bool RARE, class Step, class Block, class Checkpoint>
SNN_DEVICE void walk_forward(const Call& a, const Place& at, Step step, Block block,
                             Checkpoint checkpoint) {
  const Int x_step = a.x.time * Int(sizeof(IO)), s_step = a.s.time * Int(sizeof(IO));
  const char* x = address<IO>(a.x, at);
  char* s = address<IO>(a.s, at);
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
        step(now[k]).store(s);
        s += s_step;
      }
    }
    block();
    until -= U;
    if (until == 0 && left > U) {
      checkpoint();
      until = a.K;
    }
  }
}

// The channels of N neurons from m on; all 0 where no coefficient has more than one value.
template <int N>
struct Channels {
  Int of[N];

  SNN_DEVICE Channels(const Call& a, Int m, bool differ) {
#pragma unroll
    for (int j = 0; j < N; ++j) of[j] = differ ? (m + j) / a.channel_inner % a.C : 0;
  }
};

// A coefficient of N neurons, of which there are `count` values.
template <int N>
SNN_DEVICE void spread(float (&to)[N], const float* p, Int count, float value,
                       const Channels<N>& channel) {
#pragma unroll
  for (int j = 0; j < N; ++j) to[j] = p ? p[count > 1 ? channel.of[j] : 0] : value;
}

}  // namespace cuda
}  // namespace snn
