// The time loop on CPU, compiled once per instruction set (SNN_ISA).
//
// Neurons are cut into tiles whose state stays in the L1 cache; time runs inside a tile, so x is
// read once and s is written once. Outputs larger than the caches are streamed past them. The
// backward pass walks the checkpoints from the last to the first: it recomputes h of K steps into a
// tape in L1/L2 and then runs the adjoint over them.
//
// Only always_inline functions and names of this namespace are used: a shared inline function of
// the standard library would be linked once for all instruction sets, perhaps with AVX-512 inside.
#include <cstring>

#include "cpu.h"
#include "dispatch.h"
#include "vec.h"

namespace snn {
namespace SNN_ISA {
namespace {

constexpr int FORWARD_TILE = 2048, BACKWARD_TILE = 512, MAX_K = 16;
constexpr size_t STREAM_BYTES = size_t(1) << 20;  // outputs from here on do not fit the caches

template <class T>
SNN_HD T smaller(T a, T b) {
  return b < a ? b : a;
}

template <class T>
SNN_HD void fill(T* to, int n, T value) {
  for (int j = 0; j < n; ++j) to[j] = value;
}

// Runs body(j, full) over n neurons: full vectors, then once a partial one of n % LANES.
template <class Body>
SNN_HD void for_vectors(int n, Body body) {
  int j = 0;
  for (; j + LANES <= n; j += LANES) body(j, std::true_type());
  if (j < n) body(j, std::false_type());
}

template <bool FULL, class IO>
SNN_HD Vec read(const IO* p, int count) {
  if (FULL) return widen(p);
  alignas(64) IO part[LANES] = {};
  std::memcpy(part, p, count * sizeof(IO));
  return widen(part);
}

template <bool STREAM, bool FULL, class IO>
SNN_HD void write(IO* p, Vec a, int count) {
  if (FULL) return put<STREAM>(p, a);
  alignas(64) IO part[LANES];
  put<false>(part, a);
  std::memcpy(p, part, count * sizeof(IO));
}

// Copy past the caches to a destination of any alignment.
void stream_bytes(char* to, const char* from, size_t bytes) {
  constexpr size_t STEP = LANES * sizeof(float);
  const size_t head = smaller(bytes, (STEP - reinterpret_cast<uintptr_t>(to) % STEP) % STEP);
  std::memcpy(to, from, head);
  size_t k = head;
  for (; k + STEP <= bytes; k += STEP) {
    put<true>(reinterpret_cast<float*>(to + k),
              Vec::load(reinterpret_cast<const float*>(from + k)));
  }
  std::memcpy(to + k, from + k, bytes - k);
}

// The rows of one tile of a sequence. An input row of stride 0 becomes a row of equal values; an
// output row that is not aligned goes through a buffer when it is streamed.
template <class IO, int TILE>
struct InputRows {
  const IO* base;
  int64_t time, inner;
  alignas(64) IO constant[TILE];

  void start(const Input& a, int64_t o, int64_t i0) {
    base = a.p ? static_cast<const IO*>(a.p) + o * a.outer + i0 * a.inner : nullptr;
    time = a.time;
    inner = a.inner;
    if (!base) std::memset(constant, 0, sizeof(constant));
  }
  const IO* row(int64_t t, int n) {
    if (!base) return constant;
    const IO* p = base + t * time;
    if (inner) return p;
    const IO value = *p;
    fill(constant, n, value);
    return constant;
  }
};

template <class IO, int TILE, bool STREAM>
struct OutputRows {
  IO* base;
  int64_t time;
  bool direct;
  alignas(64) IO buffer[TILE];

  void start(const Output& a, int64_t o, int64_t i0) {
    base = a.p ? static_cast<IO*>(a.p) + o * a.outer + i0 : nullptr;
    time = a.time;
    constexpr uintptr_t STEP = LANES * sizeof(IO);
    direct = reinterpret_cast<uintptr_t>(base) % STEP == 0 && (time * sizeof(IO)) % STEP == 0;
  }
  IO* row(int64_t t) { return !STREAM || direct ? base + t * time : buffer; }
  void finish(int64_t t, int n) {
    if (STREAM && !direct) {
      stream_bytes(reinterpret_cast<char*>(base + t * time), reinterpret_cast<char*>(buffer),
                   n * sizeof(IO));
    }
  }
};

// Where in the state arrays a tile starts, and the coefficients of its neurons.
template <int TILE>
struct Coefficients {
  alignas(64) float decay[TILE], theta[TILE];

  static void spread(const Coefficient& a, const Problem& q, int64_t m0, int n, float* to) {
    if (a.count == 1) return fill(to, n, a.shared());
    int64_t channel = (m0 / q.channel_inner) % q.C, used = m0 % q.channel_inner;
    for (int j = 0; j < n;) {
      const int run = static_cast<int>(smaller<int64_t>(n - j, q.channel_inner - used));
      fill(to + j, run, a.p[channel]);
      j += run;
      used = 0;
      if (++channel == q.C) channel = 0;
    }
  }
  void start(const Problem& q, int64_t m0, int n) {
    spread(q.decay, q, m0, n, decay);
    spread(q.v_threshold, q, m0, n, theta);
  }
};

void load_row(float* to, const float* from, int64_t m0, int n) {
  if (from)
    std::memcpy(to, from + m0, n * sizeof(float));
  else
    std::memset(to, 0, n * sizeof(float));
}

// Tiles of at most TILE neurons, smaller where there are too few of them to go round.
template <int TILE, class Body>
void for_tiles(const Problem& q, Body body) {
  constexpr int64_t SMALL = 1 << 15;  // neuron-steps that are not worth a second thread
  const int threads = q.T * q.O * q.I <= SMALL ? 1 : q.threads;
  const int64_t per_thread = (q.O * q.I + threads - 1) / threads;
  const int64_t width = smaller<int64_t>(TILE, per_thread > 0 ? (per_thread + 63) / 64 * 64 : 64);
  const int64_t tiles_per_row = (q.I + width - 1) / width, tiles = q.O * tiles_per_row;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int64_t k = 0; k < tiles; ++k) {
      const int64_t o = k / tiles_per_row, i0 = k % tiles_per_row * width;
      body(o, i0, static_cast<int>(smaller(width, q.I - i0)));
    }
    fence_streams();
  }
}

// RARE: any of per-channel coefficients, refractory periods, recorded h, parameter gradients.
template <class IO, Reset R, bool STREAM, bool RARE>
void forward_tile(const NeuronForward& a, int64_t o, int64_t i0, int n) {
  const Problem& q = a.problem;
  const int64_t m0 = o * q.I + i0, M = q.O * q.I;
  const bool refractory = RARE && q.refractory > 0, record = RARE && a.h.p;
  const Vec v_reset(q.v_reset), period(q.refractory), decay_all(q.decay.shared()),
      theta_all(q.v_threshold.shared());
  alignas(64) float v[FORWARD_TILE + LANES], wait[RARE ? FORWARD_TILE + LANES : 1];
  InputRows<IO, FORWARD_TILE + LANES> x;
  OutputRows<IO, FORWARD_TILE + LANES, STREAM> s;
  OutputRows<float, RARE ? FORWARD_TILE + LANES : 1, STREAM> h;
  Coefficients<RARE ? FORWARD_TILE + LANES : 1> per_channel;
  x.start(q.x, o, i0);
  s.start(a.s, o, i0);
  load_row(v, q.v0, m0, n);
  if (refractory) load_row(wait, q.wait0, m0, n);
  if (RARE) per_channel.start(q, m0, n);
  if (record) h.start(a.h, o, i0);

  const int64_t rows = refractory ? 2 : 1;
  for (int64_t t = 0; t < q.T; ++t) {
    if (q.K && t && t % q.K == 0) {
      float* to = a.checkpoints + (t / q.K - 1) * rows * M + m0;
      std::memcpy(to, v, n * sizeof(float));
      if (refractory) std::memcpy(to + M, wait, n * sizeof(float));
    }
    const IO *x_row = x.row(t, n), *x_next = x.base + (t + 1 < q.T ? (t + 1) * x.time : 0);
    IO* s_row = s.row(t);
    float* h_row = record ? h.row(t) : nullptr;
    for_vectors(n, [&](int j, auto full) {
      constexpr bool FULL = decltype(full)::value;
      if (FULL) prefetch(x_next + j);
      const Vec decay = RARE ? Vec::load(per_channel.decay + j) : decay_all;
      const Vec theta = RARE ? Vec::load(per_channel.theta + j) : theta_all;
      const Vec h_t = charge(decay, Vec::load(v + j), read<FULL>(x_row + j, n - j));
      Mask fired = fire(h_t, theta);
      if (refractory) {
        const Vec w = Vec::load(wait + j);
        fired = fired & (w <= Vec(0.0f));
        wait_after(w, fired, period).store(wait + j);
      }
      reset<R>(h_t, fired, theta, v_reset).store(v + j);
      write<STREAM, FULL>(s_row + j, select(fired, Vec(1.0f), Vec(0.0f)), n - j);
      if (record) write<STREAM, FULL>(h_row + j, h_t, n - j);
    });
    s.finish(t, n);
    if (record) h.finish(t, n);
  }
  std::memcpy(a.v + m0, v, n * sizeof(float));
  if (refractory) std::memcpy(a.wait + m0, wait, n * sizeof(float));
}

// Sums over time of one parameter's gradient: float32 within K steps, float64 over them.
struct Sum {
  alignas(64) float chunk[BACKWARD_TILE + LANES];
  double total[BACKWARD_TILE];

  void start(int n) { fill(total, n, 0.0); }
  void start_chunk() { std::memset(chunk, 0, sizeof(chunk)); }
  void add(int j, Vec term) { (Vec::load(chunk + j) + term).store(chunk + j); }
  void end_chunk(int n) {
    for (int j = 0; j < n; ++j) total[j] += chunk[j];
  }
  void finish(float* to, int n) {
    for (int j = 0; j < n; ++j) to[j] = static_cast<float>(total[j]);
  }
};

template <class IO, Reset R, bool DETACH, bool STREAM, bool RARE>
void backward_tile(const NeuronBackward& a, int64_t o, int64_t i0, int n) {
  constexpr int TILE = BACKWARD_TILE + LANES;
  const Problem& q = a.problem;
  const int64_t m0 = o * q.I + i0, M = q.O * q.I, rows = RARE && q.refractory > 0 ? 2 : 1;
  const bool refractory = rows == 2, recorded = RARE && a.dh.p;
  const bool want_decay = RARE && a.ddecay_per_neuron,
             want_theta = RARE && a.dv_threshold_per_neuron;
  const Vec zero(0.0f), v_reset(q.v_reset), period(q.refractory), decay_all(q.decay.shared()),
      theta_all(q.v_threshold.shared()), surrogate_p(q.surrogate_p), surrogate_q(q.surrogate_q);
  alignas(64) float tape[MAX_K][TILE], wait_tape[RARE ? MAX_K : 1][TILE];
  alignas(64) float v[TILE], v_start[RARE ? TILE : 1], dv[TILE];
  InputRows<IO, TILE> x, ds;
  InputRows<float, RARE ? TILE : 1> dh;
  OutputRows<IO, TILE, STREAM> dx;
  Coefficients<RARE ? TILE : 1> per_channel;
  Sum ddecay, dtheta;
  x.start(q.x, o, i0);
  ds.start(a.ds, o, i0);
  dx.start(a.dx, o, i0);
  load_row(dv, a.dv, m0, n);
  if (RARE) per_channel.start(q, m0, n);
  if (recorded) dh.start(a.dh, o, i0);
  if (want_decay) ddecay.start(n);
  if (want_theta) dtheta.start(n);

  for (int64_t c = (q.T - 1) / q.K; c >= 0; --c) {
    const int64_t t0 = c * q.K, t1 = smaller(q.T, t0 + q.K);
    const float* from = c ? a.checkpoints + (c - 1) * rows * M : nullptr;
    load_row(v, c ? from : q.v0, m0, n);
    if (refractory) load_row(wait_tape[0], c ? from + M : q.wait0, m0, n);
    if (want_decay) {
      std::memcpy(v_start, v, n * sizeof(float));
      ddecay.start_chunk();
    }
    if (want_theta) dtheta.start_chunk();

    for (int64_t t = t0; t < t1; ++t) {  // h of the chunk, once more
      const int64_t k = t - t0;
      const IO *x_row = x.row(t, n), *x_next = x.base + (t + 1 < t1 ? (t + 1) * x.time : 0);
      for_vectors(n, [&](int j, auto full) {
        constexpr bool FULL = decltype(full)::value;
        if (FULL) prefetch(x_next + j);
        const Vec decay = RARE ? Vec::load(per_channel.decay + j) : decay_all;
        const Vec theta = RARE ? Vec::load(per_channel.theta + j) : theta_all;
        const Vec h_t = charge(decay, Vec::load(v + j), read<FULL>(x_row + j, n - j));
        h_t.store(tape[k] + j);
        Mask fired = fire(h_t, theta);
        if (refractory) {
          const Vec w = Vec::load(wait_tape[k] + j);
          fired = fired & (w <= zero);
          if (t + 1 < t1) wait_after(w, fired, period).store(wait_tape[k + 1] + j);
        }
        reset<R>(h_t, fired, theta, v_reset).store(v + j);
      });
    }

    for (int64_t t = t1 - 1; t >= t0; --t) {
      const int64_t k = t - t0;
      const bool carried = t + 1 < q.T || a.dv;
      const IO *ds_row = ds.row(t, n),
               *ds_next = ds.base ? ds.base + (t ? t - 1 : 0) * ds.time : ds_row;
      const float* dh_row = recorded ? dh.row(t, n) : nullptr;
      IO* dx_row = dx.row(t);
      for_vectors(n, [&](int j, auto full) {
        constexpr bool FULL = decltype(full)::value;
        if (FULL) prefetch(ds_next + j);
        const Vec decay = RARE ? Vec::load(per_channel.decay + j) : decay_all;
        const Vec theta = RARE ? Vec::load(per_channel.theta + j) : theta_all;
        const Vec h_t = Vec::load(tape[k] + j);
        Mask live = zero <= zero, fired = fire(h_t, theta);
        if (refractory) {
          live = Vec::load(wait_tape[k] + j) <= zero;
          fired = fired & live;
        }
        Vec v_before = zero;
        if (want_decay) {
          if (k == 0) {
            v_before = Vec::load(v_start + j);
          } else {
            const Vec h_before = Vec::load(tape[k - 1] + j);
            Mask fired_before = fire(h_before, theta);
            if (refractory) fired_before = fired_before & (Vec::load(wait_tape[k - 1] + j) <= zero);
            v_before = reset<R>(h_before, fired_before, theta, v_reset);
          }
        }
        const Vec f = surrogate_grad(q.surrogate, h_t - theta, surrogate_p, surrogate_q);
        const auto back = step_back<R, DETACH>(read<FULL>(ds_row + j, n - j),
                                               recorded ? read<FULL>(dh_row + j, n - j) : zero,
                                               recorded, Vec::load(dv + j), carried, h_t, fired,
                                               live, f, v_before, decay, theta, v_reset);
        back.dv.store(dv + j);
        if (want_decay) ddecay.add(j, back.ddecay);
        if (want_theta) dtheta.add(j, back.dtheta);
        if (dx.base) write<STREAM, FULL>(dx_row + j, back.dx, n - j);
      });
      if (dx.base) dx.finish(t, n);
    }
    if (want_decay) ddecay.end_chunk(n);
    if (want_theta) dtheta.end_chunk(n);
  }
  if (a.dv0) std::memcpy(a.dv0 + m0, dv, n * sizeof(float));
  if (want_decay) ddecay.finish(a.ddecay_per_neuron + m0, n);
  if (want_theta) dtheta.finish(a.dv_threshold_per_neuron + m0, n);
}

template <class IO>
bool large(const Problem& q) {
  return q.T * q.O * q.I * sizeof(IO) > STREAM_BYTES;
}

bool per_channel(const Problem& q) { return q.decay.count > 1 || q.v_threshold.count > 1; }

}  // namespace

void neuron_forward(const NeuronForward& a) {
  const Problem& q = a.problem;
  with_dtype<bf16, f16>(q.dtype, [&](auto io) {
    using IO = typename decltype(io)::type;
    with_reset(q.reset, [&](auto reset) {
      with_flag(large<IO>(q), [&](auto stream) {
        with_flag(per_channel(q) || q.refractory > 0 || a.h.p, [&](auto rare) {
          for_tiles<FORWARD_TILE>(q, [&](int64_t o, int64_t i0, int n) {
            forward_tile<IO, reset.value, stream.value, rare.value>(a, o, i0, n);
          });
        });
      });
    });
  });
}

void neuron_backward(const NeuronBackward& a) {
  const Problem& q = a.problem;
  const bool rare_option = per_channel(q) || q.refractory > 0 || a.dh.p || a.ddecay_per_neuron ||
                           a.dv_threshold_per_neuron;
  with_dtype<bf16, f16>(q.dtype, [&](auto io) {
    using IO = typename decltype(io)::type;
    with_reset(q.reset, [&](auto reset) {
      with_flag(q.detach_reset, [&](auto detach) {
        with_flag(large<IO>(q), [&](auto stream) {
          with_flag(rare_option, [&](auto rare) {
            for_tiles<BACKWARD_TILE>(q, [&](int64_t o, int64_t i0, int n) {
              backward_tile<IO, reset.value, detach.value, stream.value, rare.value>(a, o, i0, n);
            });
          });
        });
      });
    });
  });
}

void stream(float* to, const float* a, const float* b, int64_t count, int threads) {
  constexpr int64_t BLOCK = 4096;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t k = 0; k < count; k += BLOCK) {
      for_vectors(static_cast<int>(smaller(BLOCK, count - k)), [&](int j, auto full) {
        constexpr bool FULL = decltype(full)::value;
        const int left = static_cast<int>(smaller(BLOCK, count - k)) - j;
        Vec sum = read<FULL>(a + k + j, left);
        if (b) sum = sum + read<FULL>(b + k + j, left);
        write<true, FULL>(to + k + j, sum, left);
      });
    }
    fence_streams();
  }
}

}  // namespace SNN_ISA
}  // namespace snn
