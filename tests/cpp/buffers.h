// What the tests of the CPU kernels share: random numbers, sequences in memory with gaps whose
// bytes are known, comparisons.
#pragma once

#include <cassert>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "halves.h"
#include "snncore.h"

namespace snn {

struct Random {
  uint64_t state;
  uint32_t bits() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 33);
  }
  int below(int n) { return static_cast<int>(bits() % static_cast<uint32_t>(n)); }
  float uniform(float low, float high) {
    return low + (high - low) * static_cast<float>(below(1 << 20)) / (1 << 20);
  }
};

inline constexpr uint16_t POISON = 0x7fa5;  // a NaN in all three types, twice in a float32

// A sequence [T, O, I] with a gap behind each row and step, `offset` elements off alignment.
struct Memory {
  Dtype dtype;
  int64_t T, O, I, outer, time, inner;
  int offset;
  std::vector<uint16_t> words;

  Memory(Dtype dtype, int64_t T, int64_t O, int64_t I, int gap, int offset)
      : dtype(dtype),
        T(T),
        O(O),
        I(I),
        outer(I + gap),
        time(O * (I + gap) + gap),
        inner(1),
        offset(offset) {
    words.assign((T * time + offset) * size() / 2, POISON);
  }
  int64_t size() const { return dtype == Dtype::float32 ? 4 : 2; }
  char* data() { return reinterpret_cast<char*>(words.data()) + offset * size(); }
  int64_t at(int64_t t, int64_t m) const { return m / I * outer + t * time + m % I * inner; }
  float get(int64_t t, int64_t m) {
    const char* p = data() + at(t, m) * size();
    if (dtype == Dtype::float32) {
      float a;
      std::memcpy(&a, p, 4);
      return a;
    }
    uint16_t a;
    std::memcpy(&a, p, 2);
    return widen(a, dtype);
  }
  void set(int64_t t, int64_t m, float a) {
    char* p = data() + at(t, m) * size();
    const uint16_t half = dtype == Dtype::float32 ? uint16_t(0) : narrow(a, dtype);
    std::memcpy(p, dtype == Dtype::float32 ? static_cast<const void*>(&a) : &half, size());
  }
  void erase() {
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t m = 0; m < O * I; ++m) {
        for (int64_t k = 0; k < size(); k += 2)
          std::memcpy(data() + at(t, m) * size() + k, &POISON, 2);
      }
    }
  }
  void fill(Random& random, float low, float high) {
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t m = 0; m < O * I; ++m) set(t, m, random.uniform(low, high));
    }
  }
  Input input() { return {data(), outer, time, inner}; }
  Output output() { return {data(), outer, time, 1}; }
};

inline void same(float got, float want, const char* what, int64_t t, int64_t m) {
  if (bits_of(got) == bits_of(want) || (std::isnan(got) && std::isnan(want))) return;
  std::fprintf(stderr, "%s at t=%ld m=%ld: %.9g, expected %.9g\n", what, long(t), long(m),
               double(got), double(want));
  assert(false && "the kernel differs from the scalar loop");
}

inline void close(float got, float want, const char* what, int64_t t, int64_t m) {
  if (std::fabs(got - want) <= 1e-5f * (1 + std::fabs(want))) return;
  same(got, want, what, t, m);
}

}  // namespace snn
