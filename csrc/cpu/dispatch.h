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

// f(std::integral_constant<Surrogate, ...>)
template <class Function>
void with_surrogate(Surrogate kind, Function f) {
  switch (kind) {
    case Surrogate::triangle:
      return f(std::integral_constant<Surrogate, Surrogate::triangle>());
    case Surrogate::rectangle:
      return f(std::integral_constant<Surrogate, Surrogate::rectangle>());
    case Surrogate::gaussian:
      return f(std::integral_constant<Surrogate, Surrogate::gaussian>());
    case Surrogate::atan:
      return f(std::integral_constant<Surrogate, Surrogate::atan>());
    case Surrogate::sigmoid:
      return f(std::integral_constant<Surrogate, Surrogate::sigmoid>());
    default:
      return f(std::integral_constant<Surrogate, Surrogate::fast_sigmoid>());
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
