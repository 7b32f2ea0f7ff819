// The kernels of the ahead-of-time build, for code that no CUDA compiler sees.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace snn {
namespace cuda {

struct Kernel {
  std::string name;   // as NVRTC would be asked for it
  const void* entry;  // what cudaLaunchKernel takes
  size_t argument_bytes;
};

void add_kernels_float(std::vector<Kernel>& to);
void add_kernels_bf16(std::vector<Kernel>& to);
void add_kernels_f16(std::vector<Kernel>& to);  // and the reductions

inline std::vector<Kernel> kernels() {
  std::vector<Kernel> all;
  add_kernels_float(all);
  add_kernels_bf16(all);
  add_kernels_f16(all);
  return all;
}

}  // namespace cuda
}  // namespace snn
