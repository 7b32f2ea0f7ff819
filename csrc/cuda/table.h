// The kernels that are compiled ahead of time, each under the name by which NVRTC would be asked
// for it. backends/cuda/launch.py picks from these names; a test holds the two lists together.
#pragma once

#include <string>
#include <vector>

#include "iir_kernels.cuh"
#include "launch.h"
#include "ring_kernels.cuh"

namespace snn {
namespace cuda {

namespace table {

inline const char* name(float) { return "float"; }
inline const char* name(bf16) { return "snn::cuda::bf16"; }
inline const char* name(f16) { return "snn::cuda::f16"; }
inline const char* name(bool flag) { return flag ? "true" : "false"; }
inline const char* name(Reset reset) {
  static constexpr const char* NAMES[] = {"snn::Reset::hard", "snn::Reset::soft",
                                          "snn::Reset::none", "snn::Reset::trace"};
  return NAMES[int(reset)];
}
inline const char* name(Level level) {
  static constexpr const char* NAMES[] = {"snn::cuda::Level::plain", "snn::cuda::Level::rare",
                                          "snn::cuda::Level::general"};
  return NAMES[int(level)];
}

template <class... Part>
std::string join(const char* kernel, const Part&... part) {
  std::string all;
  ((all += (all.empty() ? "" : ", ") + std::string(part)), ...);
  return "snn::cuda::" + std::string(kernel) + "<" + all + ">";
}

template <class Arguments>
Kernel kernel(const std::string& name, void (*entry)(Arguments)) {
  return {name, reinterpret_cast<const void*>(entry), sizeof(Arguments)};
}

template <class IO, Reset R, int VEC, int U, Level L>
Kernel forward() {
  return kernel(join("neuron_fwd_kernel", name(IO()), name(R), std::to_string(VEC),
                     std::to_string(U), name(L)),
                &neuron_fwd_kernel<IO, R, VEC, U, L>);
}

template <class IO, Reset R, bool DETACH, int VEC, int K, Level L>
Kernel backward() {
  return kernel(join("neuron_bwd_kernel", name(IO()), name(R), name(DETACH), std::to_string(VEC),
                     std::to_string(K), name(L)),
                &neuron_bwd_kernel<IO, R, DETACH, VEC, K, L>);
}

template <class IO, Reset R>
void add_forward(std::vector<Kernel>& to) {
  constexpr int W = 16 / sizeof(IO), RING = W / 4, U = 32 / W;  // W: neurons in 16 bytes
  to.push_back(forward<IO, R, W, U, Level::plain>());
  to.push_back(forward<IO, R, W / 2, 2 * U, Level::plain>());
  if (W / 2 > 2) to.push_back(forward<IO, R, 2, 16, Level::plain>());
  to.push_back(forward<IO, R, 1, 16, Level::plain>());
  to.push_back(forward<IO, R, W, U, Level::rare>());
  to.push_back(forward<IO, R, 1, 16, Level::rare>());
  to.push_back(
      kernel(join("neuron_fwd_ring_kernel", name(IO()), name(R), std::to_string(RING), "16"),
             &neuron_fwd_ring_kernel<IO, R, RING, 16>));
}

template <class IO, Reset R, bool DETACH>
void add_backward(std::vector<Kernel>& to) {
  constexpr int RING = 4 / sizeof(IO), SHORT = 8 / sizeof(IO);
  to.push_back(backward<IO, R, DETACH, 4, 4, Level::plain>());
  to.push_back(backward<IO, R, DETACH, SHORT, 8, Level::plain>());
  to.push_back(backward<IO, R, DETACH, 2, 16, Level::plain>());
  to.push_back(backward<IO, R, DETACH, 1, 16, Level::plain>());
  to.push_back(backward<IO, R, DETACH, 1, 16, Level::rare>());
  to.push_back(kernel(
      join("neuron_bwd_ring_kernel", name(IO()), name(R), name(DETACH), std::to_string(RING), "7"),
      &neuron_bwd_ring_kernel<IO, R, DETACH, RING, 7>));
}

template <class IO, Reset R>
void add_general(std::vector<Kernel>& to) {
  to.push_back(forward<IO, R, 2, 8, Level::general>());
  to.push_back(forward<IO, R, 1, 8, Level::general>());
  to.push_back(backward<IO, R, false, 1, 8, Level::general>());
}

template <class IO, int N, int VEC>
void add_filter(std::vector<Kernel>& to) {
  const std::string orders = std::to_string(N), vec = std::to_string(VEC);
  to.push_back(kernel(join("iir_fwd_kernel", name(IO()), orders, vec, std::to_string(16 / VEC)),
                      &iir_fwd_kernel<IO, N, VEC, 16 / VEC>));
  to.push_back(kernel(join("iir_bwd_kernel", name(IO()), orders, vec, "8", name(false)),
                      &iir_bwd_kernel<IO, N, VEC, 8, false>));
  if (VEC == 1) {
    to.push_back(kernel(join("iir_bwd_kernel", name(IO()), orders, vec, "8", name(true)),
                        &iir_bwd_kernel<IO, N, 1, 8, true>));
  }
}

}  // namespace table

// All kernels of one element type.
template <class IO>
void add_kernels(std::vector<Kernel>& to) {
  table::add_forward<IO, Reset::hard>(to);
  table::add_forward<IO, Reset::soft>(to);
  table::add_forward<IO, Reset::none>(to);
  table::add_backward<IO, Reset::hard, false>(to);
  table::add_backward<IO, Reset::hard, true>(to);
  table::add_backward<IO, Reset::soft, false>(to);
  table::add_backward<IO, Reset::soft, true>(to);
  table::add_backward<IO, Reset::none, false>(to);  // nothing to detach
  table::add_general<IO, Reset::hard>(to);
  table::add_general<IO, Reset::soft>(to);
  table::add_general<IO, Reset::none>(to);
  table::add_general<IO, Reset::trace>(to);
  table::add_filter<IO, 2, 2>(to);
  table::add_filter<IO, 2, 1>(to);
  table::add_filter<IO, 4, 2>(to);
  table::add_filter<IO, 4, 1>(to);
}

inline void add_reductions(std::vector<Kernel>& to) {
  using table::kernel;
  to.push_back(kernel("snn::cuda::reduce_channels_kernel<256>", &reduce_channels_kernel<256>));
  to.push_back(kernel("snn::cuda::reduce_parts_kernel<256>", &reduce_parts_kernel<256>));
}

}  // namespace cuda
}  // namespace snn
