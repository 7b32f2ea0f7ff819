// The kernels of forward.cpp, backward.cpp, iir.cpp, bntt.cpp and interpreter.cpp, one
// namespace per instruction set.
#pragma once

#include "snncore.h"

namespace snn {

#define SNN_DECLARE(ISA)                                                       \
  namespace ISA {                                                              \
  void neuron_forward(const NeuronForward&);                                   \
  void neuron_backward(const NeuronBackward&);                                 \
  void iir_forward(const IirForward&);                                         \
  void iir_backward(const IirBackward&);                                       \
  void bntt_forward(const BnttForward&);                                       \
  void bntt_backward(const BnttBackward&);                                     \
  void program_forward(const ProgramForward&);                                 \
  void program_backward(const ProgramBackward&);                               \
  void stream(float*, const float*, const float*, int64_t count, int threads); \
  }
SNN_DECLARE(baseline)
#if defined(SNN_X86)
SNN_DECLARE(avx2)
SNN_DECLARE(avx512)
#endif
#undef SNN_DECLARE

}  // namespace snn
