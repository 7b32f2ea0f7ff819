// A traced neuron: what each operation of a program means, once for every compiler, and how a
// program is handed to the CPU. snnkernels/core/program.py has the same names in the same order.
//
// F is a float or a vector of floats; a comparison gives what comparing two F gives. No #include
// but neuron.h, so that a run-time compiler needs no include path.
#pragma once

#include "neuron.h"

namespace snn {

// X(name, number of arguments)
// clang-format off
#define SNN_OPERATIONS(X)                                                                 \
  X(add, 2) X(sub, 2) X(mul, 2) X(div, 2) X(min, 2) X(max, 2) X(pow, 2)                    \
  X(ge, 2) X(gt, 2) X(le, 2) X(lt, 2) X(eq, 2) X(ne, 2) X(where, 3)                        \
  X(neg, 1) X(abs, 1) X(sign, 1) X(sqrt, 1) X(reciprocal, 1) X(exp, 1) X(log, 1) X(tanh, 1) \
  X(sigmoid, 1) X(sin, 1) X(cos, 1) X(floor, 1) X(trunc, 1) X(round, 1) X(complement, 1)
// clang-format on

// A condition as a number, and a number as a condition.
template <class F, class M>
SNN_HD F as_number(M m) {
  return select(m, F(1.0f), F(0.0f));
}
template <class F>
SNN_HD auto as_condition(F a) -> decltype(a > a) {
  return a > F(0.0f);
}

template <class F>
SNN_HD F op_add(F a, F b) {
  return a + b;
}
template <class F>
SNN_HD F op_sub(F a, F b) {
  return a - b;
}
template <class F>
SNN_HD F op_mul(F a, F b) {
  return a * b;
}
template <class F>
SNN_HD F op_div(F a, F b) {
  return a / b;
}
// NaN where either is NaN, the first of two equal ones.
template <class F>
SNN_HD F op_min(F a, F b) {
  return select(a <= b, a, select(a <= a, b, a));
}
template <class F>
SNN_HD F op_max(F a, F b) {
  return select(a >= b, a, select(a <= a, b, a));
}
template <class F>
SNN_HD F op_pow(F a, F b) {
  return power(a, b);
}
template <class F>
SNN_HD auto op_ge(F a, F b) -> decltype(a > b) {
  return a >= b;
}
template <class F>
SNN_HD auto op_gt(F a, F b) -> decltype(a > b) {
  return a > b;
}
template <class F>
SNN_HD auto op_le(F a, F b) -> decltype(a > b) {
  return a <= b;
}
template <class F>
SNN_HD auto op_lt(F a, F b) -> decltype(a > b) {
  return a < b;
}
template <class F>
SNN_HD auto op_eq(F a, F b) -> decltype(a > b) {
  return (a <= b) & (a >= b);
}
template <class F>
SNN_HD F op_ne(F a, F b) {
  return select(op_eq(a, b), F(0.0f), F(1.0f));
}
template <class F, class M>
SNN_HD F op_where(M c, F a, F b) {
  return select(c, a, b);
}
template <class F>
SNN_HD F op_neg(F a) {
  return F(-0.0f) - a;
}
template <class F>
SNN_HD F op_abs(F a) {
  return absolute(a);
}
template <class F>
SNN_HD F op_sign(F a) {
  const F zero(0.0f);
  return select(a > zero, F(1.0f), select(a < zero, F(-1.0f), zero));
}
template <class F>
SNN_HD F op_sqrt(F a) {
  return square_root(a);
}
template <class F>
SNN_HD F op_reciprocal(F a) {
  return F(1.0f) / a;
}
template <class F>
SNN_HD F op_exp(F a) {
  return exponential(a);
}
template <class F>
SNN_HD F op_log(F a) {
  return logarithm(a);
}
template <class F>
SNN_HD F op_tanh(F a) {
  return hyperbolic_tangent(a);
}
template <class F>
SNN_HD F op_sigmoid(F a) {
  return F(1.0f) / (F(1.0f) + exponential(op_neg(a)));
}
template <class F>
SNN_HD F op_sin(F a) {
  return sine(a);
}
template <class F>
SNN_HD F op_cos(F a) {
  return cosine(a);
}
template <class F>
SNN_HD F op_floor(F a) {
  return round_down(a);
}
template <class F>
SNN_HD F op_trunc(F a) {
  return round_to_zero(a);
}
template <class F>
SNN_HD F op_round(F a) {
  return round_to_even(a);
}
template <class F>
SNN_HD F op_complement(F a) {
  return F(1.0f) - a;
}

}  // namespace snn
