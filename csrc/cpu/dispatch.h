// Run-time options to template parameters: the only switches of the core.
#pragma once

#include <type_traits>

#include "snncore.h"

namespace snn {

template <class T>
struct Type {
  using type = T;
};

template <Reset R>
using ResetConstant = std::integral_constant<Reset, R>;

// f(ResetConstant<...>)
template <class Function>
void with_reset(Reset reset, Function f) {
  switch (reset) {
    case Reset::hard:
      return f(ResetConstant<Reset::hard>());
    case Reset::soft:
      return f(ResetConstant<Reset::soft>());
    case Reset::none:
      return f(ResetConstant<Reset::none>());
    default:
      return f(ResetConstant<Reset::trace>());
  }
}

// f(Type<float>()), f(Type<Bf16>()) or f(Type<F16>())
template <class Bf16, class F16, class Function>
void with_dtype(Dtype dtype, Function f) {
  switch (dtype) {
    case Dtype::float32:
      return f(Type<float>());
    case Dtype::bfloat16:
      return f(Type<Bf16>());
    default:
      return f(Type<F16>());
  }
}

}  // namespace snn
