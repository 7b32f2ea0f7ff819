// pybind11 module snnkernels._cuda: launches the kernels that were compiled ahead of time. Nothing
// here synchronises or allocates on the device.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda/launch.h"

namespace py = pybind11;

namespace {

const std::unordered_map<std::string, snn::cuda::Kernel>& kernels() {
  static const auto all = [] {
    std::unordered_map<std::string, snn::cuda::Kernel> by_name;
    for (const auto& kernel : snn::cuda::kernels()) by_name[kernel.name] = kernel;
    return by_name;
  }();
  return all;
}

void check(cudaError_t status, const std::string& what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(what + ": " + cudaGetErrorString(status));
}

void launch(const std::string& name, unsigned blocks, unsigned threads, const py::bytes& arguments,
            uintptr_t stream) {
  const auto found = kernels().find(name);
  if (found == kernels().end()) throw std::invalid_argument("this build holds no kernel " + name);
  const std::string copy = arguments;  // outlives the GIL
  if (copy.size() != found->second.argument_bytes) {
    throw std::invalid_argument("this build and backends/cuda/launch.py disagree about " + name);
  }
  void* parameters[] = {const_cast<char*>(copy.data())};
  py::gil_scoped_release release;
  check(cudaLaunchKernel(found->second.entry, dim3(blocks), dim3(threads), parameters, 0,
                         reinterpret_cast<cudaStream_t>(stream)),
        "launch of " + name);
}

int version(cudaError_t (*ask)(int*), const char* what) {
  int number = 0;
  check(ask(&number), what);
  return number;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "The CUDA kernels of snnkernels: see csrc/cuda and snnkernels/backends/cuda/launch.py.";
  m.def("launch", &launch);
  m.def("kernel_names", [] {
    std::vector<std::string> names;
    for (const auto& kernel : snn::cuda::kernels()) names.push_back(kernel.name);
    return names;
  });
  m.def(
      "driver_version", [] { return version(cudaDriverGetVersion, "driver version"); },
      "1000 * major + 10 * minor; 0: no driver");
  m.def("runtime_version", [] { return version(cudaRuntimeGetVersion, "runtime version"); });
}
