// The ahead-of-time build of neuron_kernels.cuh: compiled once per element type (SNN_IO), so that
// the three run side by side.
#include "table.h"

#define SNN_JOIN(a, b) a##b
#define SNN_NAME(io) SNN_JOIN(add_kernels_, io)

namespace snn {
namespace cuda {

void SNN_NAME(SNN_IO)(std::vector<Kernel>& to) {
  add_kernels<SNN_IO>(to);
#if defined(SNN_REDUCTIONS)
  add_reductions(to);
#endif
}

}  // namespace cuda
}  // namespace snn
