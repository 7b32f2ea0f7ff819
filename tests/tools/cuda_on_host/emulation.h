// Enough of CUDA to compile neuron_kernels.cuh with a C++ compiler and run its blocks on the CPU.
//
// The threads of a block are fibers. Each runs until it meets a barrier; when all that are still
// running wait there, all go on. Asynchronous copies land as late as they may, at the wait for
// them, so a read that is not ordered behind its wait sees the poison that was there before.
#pragma once

#include <cstring>
#include <vector>

#define SNN_ISA baseline
#include "cpu/vec.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __shared__ static
#define __launch_bounds__(...)

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
inline Index threadIdx, blockIdx;

namespace emulation {

void barrier();  // gives way to the other fibers until all have come here

struct Copy {
  void* to;
  const void* from;
};
// Of each thread: its groups of copies that have not landed, the last one still open.
inline std::vector<std::vector<std::vector<Copy>>> copies;

inline std::vector<std::vector<Copy>>& groups() { return copies[threadIdx.x]; }

constexpr unsigned char POISON = 0xff;  // NaN in every element type

}  // namespace emulation

inline void __syncthreads() { emulation::barrier(); }
inline void __syncwarp() { emulation::barrier(); }

namespace snn {
namespace cuda {

inline float half_to_float(unsigned short a) { return baseline::half_to_float(a); }
inline unsigned floats_to_half(float low, float high) {
  return baseline::float_to_half(low) | unsigned(baseline::float_to_half(high)) << 16;
}
inline unsigned floats_to_bf16(float low, float high) {
  const auto rounded = [](float a) {
    unsigned bits;
    std::memcpy(&bits, &a, 4);
    return a == a ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fffu;
  };
  return rounded(low) | rounded(high) << 16;
}
inline void keep_word(unsigned&) {}

inline void copy_async(void* shared, const void* global) {
  std::memset(shared, emulation::POISON, 16);
  emulation::groups().back().push_back({shared, global});
}
inline void commit_copies() { emulation::groups().emplace_back(); }
template <int PENDING>
void wait_copies() {
  auto& groups = emulation::groups();
  while (groups.size() > PENDING + 1) {
    for (const auto& copy : groups.front()) std::memcpy(copy.to, copy.from, 16);
    groups.erase(groups.begin());
  }
}

}  // namespace cuda
}  // namespace snn
