// What the kernels on CPU share: rows of a tile, tiles over threads. Included once per instruction
// set, inside the anonymous namespace of each kernel file's SNN_ISA.
//
// Only always_inline functions and names of that namespace are used: a shared inline function of
// the standard library would be linked once for all instruction sets, perhaps with AVX-512 inside.
#pragma once

#include <cstring>

#include "dispatch.h"
#include "isa.h"
#include "vec.h"

namespace snn {
namespace SNN_ISA {
namespace {

// After the parameters of a lambda that is the body of a loop.
#define SNN_IN_PLACE __attribute__((always_inline))

constexpr int MAX_K = 16;
constexpr int AHEAD = 2;                          // rows that are prefetched ahead
constexpr size_t STREAM_BYTES = size_t(1) << 18;  // outputs from here on do not fit the caches

template <class T>
SNN_HD T smaller(T a, T b) {
  return b < a ? b : a;
}

template <class T>
SNN_HD void fill(T* to, int n, T value) {
  for (int j = 0; j < n; ++j) to[j] = value;
}

// Copy past the caches to a destination of any alignment.
SNN_HD void stream_bytes(char* to, const char* from, size_t bytes) {
  constexpr size_t STEP = LANES * sizeof(float);
  const size_t head = smaller(bytes, (STEP - reinterpret_cast<uintptr_t>(to) % STEP) % STEP);
  std::memcpy(to, from, head);
  size_t k = head;
  for (; k + STEP <= bytes; k += STEP) {
    put(reinterpret_cast<float*>(to + k), Vec::load(reinterpret_cast<const float*>(from + k)),
        true);
  }
  std::memcpy(to + k, from + k, bytes - k);
}

template <int SIZE, class IO>
SNN_HD void copy_parts_of(IO* to, int64_t to_step, const IO* from, int64_t from_step, int count) {
  for (int k = 0; k < count; ++k)
    std::memcpy(to + k * to_step, from + k * from_step, SIZE * sizeof(IO));
}

// Copy `count` parts of `size` elements that lie apart. Not inlined: it would stand at every row.
template <class IO>
__attribute__((noinline)) void copy_parts(IO* to, int64_t to_step, const IO* from,
                                          int64_t from_step, int size, int count) {
  switch (size) {
    case 1:
      return copy_parts_of<1>(to, to_step, from, from_step, count);
    case 2:
      return copy_parts_of<2>(to, to_step, from, from_step, count);
    case 4:
      return copy_parts_of<4>(to, to_step, from, from_step, count);
    case 8:
      return copy_parts_of<8>(to, to_step, from, from_step, count);
    case 16:
      return copy_parts_of<16>(to, to_step, from, from_step, count);
    case 32:
      return copy_parts_of<32>(to, to_step, from, from_step, count);
    default:
      for (int k = 0; k < count; ++k) {
        for (int i = 0; i < size; ++i) to[k * to_step + i] = from[k * from_step + i];
      }
  }
}

// The rows of one tile of a sequence, as whole vectors: where n is not a multiple of LANES, where
// one value stands for a row, where a streamed row is not aligned, or where a tile holds several
// short rows, a row goes through a buffer.
template <class IO, int TILE>
struct InputRows {
  const IO* base;
  int64_t outer, time, inner;
  int n, part;  // part: neurons of each short row, 0 where the tile lies in one
  alignas(64) IO buffer[TILE];

  SNN_HD void start(const Input& a, const Walk& q, int64_t o, int64_t i0, int count) {
    base = a.p ? static_cast<const IO*>(a.p) + o * a.outer + i0 * a.inner : nullptr;
    outer = a.outer;
    time = a.time;
    inner = a.inner;
    n = count;
    part = count > q.I ? static_cast<int>(q.I) : 0;
    if (!base || n % LANES) std::memset(buffer, 0, sizeof(buffer));
  }
  SNN_HD const IO* row(int64_t t) {
    if (!base) return buffer;
    const IO* p = base + t * time;
    if (part && inner) {
      copy_parts(buffer, part, p, outer, part, n / part);
    } else if (part) {
      for (int k = 0; k < n; k += part, p += outer) fill(buffer + k, part, *p);
    } else if (!inner) {
      fill(buffer, n, *p);
    } else if (n % LANES) {
      std::memcpy(buffer, p, n * sizeof(IO));
    } else {
      return p;
    }
    return buffer;
  }
  // An address to prefetch from; row t must exist.
  SNN_HD const IO* ahead(int64_t t) const {
    return base && inner && !part ? base + t * time : buffer;
  }
};

template <class IO, int TILE>
struct OutputRows {
  IO* base;
  int64_t outer, time;
  int n, part;
  bool stream, direct;
  alignas(64) IO buffer[TILE];

  SNN_HD void start(const Output& a, const Walk& q, int64_t o, int64_t i0, int count,
                    bool past_caches) {
    constexpr uintptr_t STEP = LANES * sizeof(IO);
    base = a.p ? static_cast<IO*>(a.p) + o * a.outer + i0 : nullptr;
    outer = a.outer;
    time = a.time;
    n = count;
    part = count > q.I ? static_cast<int>(q.I) : 0;
    const bool aligned = !(reinterpret_cast<uintptr_t>(base) % STEP || time * sizeof(IO) % STEP);
    direct = !part && n % LANES == 0 && (aligned || !past_caches);
    stream = past_caches && direct;
  }
  SNN_HD IO* row(int64_t t) { return direct ? base + t * time : buffer; }
  SNN_HD void finish(int64_t t, bool past_caches) {
    if (direct) return;
    if (part) return copy_parts(base + t * time, outer, buffer, part, part, n / part);
    char *to = reinterpret_cast<char*>(base + t * time), *from = reinterpret_cast<char*>(buffer);
    if (past_caches) {
      stream_bytes(to, from, n * sizeof(IO));
    } else {
      std::memcpy(to, from, n * sizeof(IO));
    }
  }
};

// The coefficient of each of n neurons from m0 on.
SNN_HD void spread(const Coefficient& a, const Walk& q, int64_t m0, int n, float* to) {
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

SNN_HD void load_row(float* to, const float* from, int64_t m0, int n) {
  if (from)
    std::memcpy(to, from + m0, n * sizeof(float));
  else
    std::memset(to, 0, n * sizeof(float));
}

// Tiles of at most `most` neurons, smaller where there are too few of them to go round. Rows that
// fill only a part of a tile share one.
template <class Body>
void for_tiles(const Walk& q, int64_t most, Body body) {
  constexpr int64_t SMALL = 1 << 15;  // neuron-steps that are not worth a second thread
  const int threads = q.T * q.O * q.I <= SMALL ? 1 : q.threads;
  const int64_t per_thread = (q.O * q.I + threads - 1) / threads;
  const int64_t width = smaller<int64_t>(most, per_thread > 0 ? (per_thread + 63) / 64 * 64 : 64);
  constexpr int64_t SHORT = 32;
  const int64_t shared = q.I <= SHORT && width > q.I ? width / q.I : 1;
  const int64_t tiles_per_row = (q.I + width - 1) / width;
  const int64_t tiles = (q.O + shared - 1) / shared * tiles_per_row;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int64_t k = 0; k < tiles; ++k) {
      const int64_t o = k / tiles_per_row * shared, i0 = k % tiles_per_row * width;
      const int64_t n = shared > 1 ? smaller(shared, q.O - o) * q.I : smaller(width, q.I - i0);
      body(o, i0, static_cast<int>(n));
    }
    fence_streams();
  }
}

template <class IO>
SNN_HD bool past_caches(const Walk& q) {
  return q.T * q.O * q.I * sizeof(IO) > STREAM_BYTES;
}

}  // namespace
}  // namespace SNN_ISA
}  // namespace snn
