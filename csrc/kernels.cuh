// The time loop on CUDA: device kernels only. nvcc and NVRTC compile this same text, and the tests
// run it on the CPU. neuron.h holds the equations, backends/cuda_launch.py chooses kernel and
// shape.
//
// A thread owns VEC neurons that lie side by side and walks over time with their state in
// registers. VEC divides I and every row is aligned to VEC elements, so no access is partial.
// RARE: any of per-channel coefficients, refractory periods, recorded h, parameter gradients, and
// inputs or outputs that are broadcast or absent; which of them is then asked at run time.
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

// The arguments of every neuron kernel. csrc/snncore.h says what each one holds;
// backends/cuda_launch.py: Call packs the same fields in the same order.
struct Call {
  Rows x, s, h, ds, dh, dx;
  const float *v0, *wait0, *dv;                           // [M]; nullptr: zero
  float *v, *wait, *checkpoints, *dv0, *ddecay, *dtheta;  // the gradients: nullptr: not wanted
  const float *decay, *theta;                             // [count]; nullptr: the value holds
  Int decay_count, theta_count;                           // 1, or C
  Int O, I, C, channel_inner;
  int T, K;  // K: steps between checkpoints; 0: none
  float decay_value, theta_value, v_reset, refractory, surrogate_p, surrogate_q;
  int surrogate, reserved;
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
SNN_DEVICE unsigned short float_to_half(float f) {
  unsigned short a;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(a) : "f"(f));
  return a;
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
// The 16 bits in the high half. bf16: round to nearest even on the integer side, as all backends
// do; NaN stays NaN.
SNN_DEVICE unsigned narrow(float a, bf16) {
  const unsigned b = as_bits(a);
  return a == a ? b + 0x7fff + ((b >> 16) & 1) : 0x7fc00000u;
}
SNN_DEVICE unsigned narrow(float a, f16) { return unsigned(float_to_half(a)) << 16; }
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
  SNN_DEVICE static Pack load(const char* p) { return *reinterpret_cast<const Pack*>(p); }
  SNN_DEVICE void store(char* p) const { *reinterpret_cast<Pack*>(p) = *this; }
  SNN_DEVICE float get(int j) const { return widen(cell[j / 2] >> (j % 2 * 16), IO()); }
  SNN_DEVICE void put(int j, unsigned high) {
    cell[j / 2] = static_cast<Cell>(j % 2 ? (high & 0xffff0000) | cell[j / 2] : high >> 16);
  }
  SNN_DEVICE void set(int j, float a) { put(j, narrow(a, IO())); }  // j = 0, 1, ... in this order
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
  SNN_DEVICE float get(int j) const { return cell[j]; }
  SNN_DEVICE void set(int j, float a) { cell[j] = a; }
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
    Pack<IO, VEC> all;
#pragma unroll
    for (int j = 0; j < VEC; ++j) all.set(j, value);
    return all;
  }
  return Pack<IO, VEC>::load(p);
}

// The first `count` of N steps; the others are zero.
template <class IO, int VEC, bool RARE, int N>
SNN_DEVICE void load_steps(Pack<IO, VEC> (&to)[N], const Rows& a, const char* p, int count) {
  const Int step = a.time * Int(sizeof(IO));
#pragma unroll
  for (int k = 0; k < N; ++k) {
    to[k] = Pack<IO, VEC>::zero();
    if (k < count) to[k] = load_step<IO, VEC, RARE>(a, p);
    p += step;
  }
}

// Coefficients of the VEC neurons of a thread.
template <int VEC, bool RARE>
struct Coefficients {
  static constexpr int N = RARE ? VEC : 1;
  float decay_[N], theta_[N], v_reset, period;

  SNN_DEVICE Coefficients(const Call& a, Int m) : v_reset(a.v_reset), period(a.refractory) {
    const float decay = a.decay ? *a.decay : a.decay_value;
    const float theta = a.theta ? *a.theta : a.theta_value;
#pragma unroll
    for (int j = 0; j < N; ++j) decay_[j] = decay, theta_[j] = theta;
    if (RARE && (a.decay_count > 1 || a.theta_count > 1)) {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const Int channel = (m + j) / a.channel_inner % a.C;
        if (a.decay_count > 1) decay_[j] = a.decay[channel];
        if (a.theta_count > 1) theta_[j] = a.theta[channel];
      }
    }
  }
  SNN_DEVICE float decay(int j) const { return decay_[RARE ? j : 0]; }
  SNN_DEVICE float theta(int j) const { return theta_[RARE ? j : 0]; }
  SNN_DEVICE bool refractory() const { return RARE && period > 0; }
};

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

// --- few neurons, many steps ---------------------------------------------------------------------
// One warp owns 32 * VEC neurons and a ring of stages in shared memory, RING_STEPS steps each, that
// it fills 16 bytes at a time and far ahead: few threads would not keep enough loads in flight in
// their registers. Every row is aligned to 16 bytes.

template <class IO, int VEC>
struct RingTile {
  static constexpr int ROW = 32 * VEC * int(sizeof(IO));  // bytes
  static constexpr int PARTS = ROW / 16, AT_ONCE = 32 / PARTS;
  char* global;  // this lane's part of step 0
  Int step;
  int shared;  // where it goes in a stage
  bool inside;

  SNN_DEVICE RingTile(const Rows& a, const Call& q, const Place& tile, int lane) {
    const int part = lane % PARTS * 16, row = lane / PARTS;
    step = a.time * Int(sizeof(IO));
    global = address<IO>(a, tile) + part + row * step;
    shared = row * ROW + part;
    inside = tile.i * Int(sizeof(IO)) + part < q.I * Int(sizeof(IO));
  }
  // Steps t0 ... t0 + RING_STEPS - 1, as far as there are any.
  SNN_DEVICE void fetch(char* stage, int t0, int T, int lane) const {
    const char* p = global + t0 * step;
#pragma unroll
    for (int k = 0; k < RING_STEPS; k += AT_ONCE) {
      if (inside && t0 + k + lane / PARTS < T) copy_async(stage + shared + k * ROW, p);
      p += AT_ONCE * step;
    }
  }
};

SNN_DEVICE Place ring_tile(const Call& a, int width) {
  const Int tiles = (a.I + width - 1) / width;
  Place tile;
  tile.o = blockIdx.x / tiles;
  tile.i = (blockIdx.x - tile.o * tiles) * width;
  tile.m = tile.o * a.I + tile.i;
  return tile;
}

template <class IO, Reset R, int VEC, int STAGES>
__global__ void __launch_bounds__(32, 16) neuron_fwd_ring_kernel(const __grid_constant__ Call a) {
  using Tile = RingTile<IO, VEC>;
  alignas(16) __shared__ char ring[STAGES][RING_STEPS * Tile::ROW];
  const int lane = threadIdx.x;
  const Place tile = ring_tile(a, 32 * VEC),
              at = {tile.o, tile.i + lane * VEC, tile.m + lane * VEC};
  const bool inside = at.i < a.I;
  const Tile x(a.x, a, tile, lane);
  const Coefficients<VEC, false> q(a, at.m);
  float v[VEC], wait[VEC];
  load_row_or_zero(v, inside ? a.v0 : nullptr, at.m);
  load_row_or_zero(wait, nullptr, 0);
  const Int M = a.O * a.I, s_step = a.s.time * Int(sizeof(IO));
  char* s = address<IO>(a.s, at);
  float* checkpoint = a.checkpoints + at.m;

#pragma unroll 1
  for (int c = 0; c < STAGES - 1; ++c) {
    x.fetch(ring[c], c * RING_STEPS, a.T, lane);
    commit_copies();
  }
  int slot = 0;
  for (int t0 = 0; t0 < a.T; t0 += RING_STEPS) {
    wait_copies<STAGES - 2>();
    __syncwarp();  // all lanes see this stage and are done with the one before
    const int free_slot = slot == 0 ? STAGES - 1 : slot - 1;
    x.fetch(ring[free_slot], t0 + (STAGES - 1) * RING_STEPS, a.T, lane);
    commit_copies();
    if (inside) {
      if (t0 && a.K) {
        store_row(checkpoint, v);
        checkpoint += M;
      }
      Pack<IO, VEC> now[RING_STEPS];
#pragma unroll
      for (int k = 0; k < RING_STEPS; ++k) {
        now[k] = Pack<IO, VEC>::load(ring[slot] + k * Tile::ROW + lane * int(sizeof(IO)) * VEC);
      }
#pragma unroll
      for (int k = 0; k < RING_STEPS; ++k) {
        if (t0 + k < a.T) {
          forward_step<IO, R>(q, now[k], v, wait, nullptr).store(s);
          s += s_step;
        }
      }
    }
    slot = slot == STAGES - 1 ? 0 : slot + 1;
  }
  if (inside) store_state(a, at.m, v, wait, false);
}

// A stage holds x and ds of one chunk and the state before it. K is RING_STEPS.
template <class IO, Reset R, bool DETACH, int VEC, int STAGES>
__global__ void __launch_bounds__(32, 16) neuron_bwd_ring_kernel(const __grid_constant__ Call a) {
  using Tile = RingTile<IO, VEC>;
  constexpr int K = RING_STEPS, STREAM = K * Tile::ROW, STATE = 32 * VEC * 4;
  alignas(16) __shared__ char ring[STAGES][2 * STREAM + STATE];
  const int lane = threadIdx.x;
  const Place tile = ring_tile(a, 32 * VEC),
              at = {tile.o, tile.i + lane * VEC, tile.m + lane * VEC};
  const bool inside = at.i < a.I;
  const Tile x(a.x, a, tile, lane), ds(a.ds, a, tile, lane);
  const Coefficients<VEC, false> q(a, at.m);
  float v[VEC], wait[VEC], dv[VEC], v0[VEC];
  load_row_or_zero(v0, inside ? a.v0 : nullptr, at.m);
  load_row_or_zero(dv, inside ? a.dv : nullptr, at.m);
  load_row_or_zero(wait, nullptr, 0);
  Sums<VEC, false> sums;
  const int last = (a.T - 1) / K;
  const Int M = a.O * a.I, dx_step = K * a.dx.time * Int(sizeof(IO));
  char* dx = address<IO>(a.dx, at) + last * dx_step;
  const bool holds_state = lane * 4 < 32 * VEC && tile.i + lane * 4 < a.I;

  const auto fetch = [&](int slot, int c) {
    if (c < 0) return;
    x.fetch(ring[slot], c * K, a.T, lane);
    ds.fetch(ring[slot] + STREAM, c * K, a.T, lane);
    if (c && holds_state) {
      copy_async(ring[slot] + 2 * STREAM + lane * 16,
                 a.checkpoints + (c - 1) * M + tile.m + lane * 4);
    }
  };
#pragma unroll 1
  for (int c = 0; c < STAGES - 1; ++c) {
    fetch(c, last - c);
    commit_copies();
  }
  int slot = 0;
  for (int c = last; c >= 0; --c) {
    wait_copies<STAGES - 2>();
    __syncwarp();  // all lanes see this stage and are done with the one before
    fetch(slot == 0 ? STAGES - 1 : slot - 1, c - (STAGES - 1));
    commit_copies();
    if (inside) {
      const char* mine = ring[slot] + lane * int(sizeof(IO)) * VEC;
      Pack<IO, VEC> x_steps[K], ds_steps[K];
#pragma unroll
      for (int k = 0; k < K; ++k) {
        x_steps[k] = Pack<IO, VEC>::load(mine + k * Tile::ROW);
        ds_steps[k] = Pack<IO, VEC>::load(mine + STREAM + k * Tile::ROW);
      }
      if (c) {
        load_row(v, reinterpret_cast<const float*>(ring[slot] + 2 * STREAM) + lane * VEC);
      } else {
#pragma unroll
        for (int j = 0; j < VEC; ++j) v[j] = v0[j];
      }
      const int n = c == last ? a.T - c * K : K;
      backward_chunk<IO, R, DETACH>(a, q, n, c != last || a.dv, x_steps, ds_steps, nullptr, dx, v,
                                    wait, dv, sums);
      dx -= dx_step;
    }
    slot = slot == STAGES - 1 ? 0 : slot + 1;
  }
  if (inside) store_gradients(a, at.m, dv, sums);
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
