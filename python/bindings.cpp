// pybind11 module snnkernels._core: addresses and sizes in, no tensors.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "output_pool.h"
#include "program.h"
#include "snncore.h"

namespace py = pybind11;

namespace {

using Address = uintptr_t;
using Rows = std::array<int64_t, 4>;  // address, outer, time, inner

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

snn::Input input(const Rows& a) {
  return {at<const void>(static_cast<Address>(a[0])), a[1], a[2], a[3]};
}
snn::Output output(const Rows& a) {
  return {at<void>(static_cast<Address>(a[0])), a[1], a[2], a[3]};
}

// Where a coefficient lies (0: nowhere, the value holds), how many there are, and the value.
using Coefficient = std::tuple<Address, int64_t, double>;

snn::Coefficient coefficient(const Coefficient& a) {
  return {at<const float>(std::get<0>(a)), std::get<1>(a), static_cast<float>(std::get<2>(a))};
}

using Shape = std::array<int64_t, 6>;    // T, O, I, C, channel_inner, dtype
using Options = std::array<int64_t, 5>;  // reset, detach_reset, surrogate, refractory, K
using Numbers = std::array<double, sizeof(snn::Numbers) / sizeof(float)>;  // its fields
using State = std::array<Address, 2>;                                      // v, wait

snn::Walk walk(const Shape& shape, int threads) {
  return {shape[0], shape[1], shape[2], shape[3], shape[4], static_cast<snn::Dtype>(shape[5]),
          threads};
}

using Filter = std::array<int64_t, 6>;  // P, Q, alpha, beta, count, state0

snn::Filter filter(const Filter& a) {
  return {static_cast<int>(a[0]),
          static_cast<int>(a[1]),
          at<const float>(a[2]),
          at<const float>(a[3]),
          a[4],
          at<const float>(a[5])};
}

// What the plain neuron does without: gain, decay of the trace, synapse, trace before the first
// step, whether the penalty is summed up.
using General = std::tuple<Coefficient, Coefficient, std::optional<Filter>, Address, bool>;

snn::Problem problem(const Shape& shape, const Options& options, const Numbers& numbers,
                     const Coefficient& decay, const Coefficient& v_threshold, const Rows& x,
                     const State& state, int threads, const General& general) {
  snn::Problem q{};
  static_cast<snn::Walk&>(q) = walk(shape, threads);
  q.reset = static_cast<snn::Reset>(options[0]);
  q.detach_reset = options[1] != 0;
  q.surrogate = static_cast<snn::Surrogate>(options[2]);
  q.refractory = options[3];
  q.K = options[4];
  float fields[std::tuple_size<Numbers>()];
  std::transform(numbers.begin(), numbers.end(), fields,
                 [](double number) { return static_cast<float>(number); });
  std::memcpy(&q.numbers, fields, sizeof(fields));
  q.decay = coefficient(decay);
  q.v_threshold = coefficient(v_threshold);
  q.x = input(x);
  q.v0 = at<const float>(state[0]);
  q.wait0 = at<const float>(state[1]);
  q.gain = coefficient(std::get<0>(general));
  q.trace_decay = coefficient(std::get<1>(general));
  q.has_synapse = std::get<2>(general).has_value();
  if (q.has_synapse) q.synapse = filter(*std::get<2>(general));
  q.trace0 = at<const float>(std::get<3>(general));
  q.regularise = std::get<4>(general);
  return q;
}

void forward(const Shape& shape, const Options& options, const Numbers& numbers,
             const Coefficient& decay, const Coefficient& v_threshold, const Rows& x,
             const State& state, int threads, const General& general, const Rows& s, const Rows& h,
             const State& state_out, Address checkpoints, Address trace, Address synapse,
             Address penalty) {
  snn::NeuronForward a{};
  a.problem = problem(shape, options, numbers, decay, v_threshold, x, state, threads, general);
  a.s = output(s);
  a.h = output(h);
  a.v = at<float>(state_out[0]);
  a.wait = at<float>(state_out[1]);
  a.checkpoints = at<float>(checkpoints);
  a.trace = at<float>(trace);
  a.synapse = at<float>(synapse);
  a.penalty = at<float>(penalty);
  py::gil_scoped_release release;
  snn::neuron_forward(a);
}

void backward(const Shape& shape, const Options& options, const Numbers& numbers,
              const Coefficient& decay, const Coefficient& v_threshold, const Rows& x,
              const State& state, int threads, const General& general, Address checkpoints,
              const Rows& ds, const Rows& dh, Address dv, const Rows& dx, Address dv0,
              Address ddecay, Address dv_threshold, Address dtrace, Address dsynapse,
              Address dtrace0, Address dsynapse0, Address dgain, Address dtrace_decay,
              Address dcoefficients, Address dpenalty) {
  snn::NeuronBackward a{};
  a.problem = problem(shape, options, numbers, decay, v_threshold, x, state, threads, general);
  a.checkpoints = at<const float>(checkpoints);
  a.ds = input(ds);
  a.dh = input(dh);
  a.dv = at<const float>(dv);
  a.dx = output(dx);
  a.dv0 = at<float>(dv0);
  a.ddecay_per_neuron = at<float>(ddecay);
  a.dv_threshold_per_neuron = at<float>(dv_threshold);
  a.dtrace = at<const float>(dtrace);
  a.dsynapse = at<const float>(dsynapse);
  a.dtrace0 = at<float>(dtrace0);
  a.dsynapse0 = at<float>(dsynapse0);
  a.dgain_per_neuron = at<float>(dgain);
  a.dtrace_decay_per_neuron = at<float>(dtrace_decay);
  a.dcoefficients_per_neuron = at<float>(dcoefficients);
  a.dpenalty = at<const float>(dpenalty);
  py::gil_scoped_release release;
  snn::neuron_backward(a);
}

void iir_forward(const Shape& shape, int threads, const Filter& f_of, const Rows& x, const Rows& f,
                 Address state, int64_t K, Address checkpoints) {
  const snn::IirForward a{
      walk(shape, threads),  filter(f_of), input(x), output(f), at<float>(state), K,
      at<float>(checkpoints)};
  py::gil_scoped_release release;
  snn::iir_forward(a);
}

void iir_backward(const Shape& shape, int threads, const Filter& f_of, const Rows& df,
                  Address dstate, const Rows& dx, Address dstate0, Address dcoefficients,
                  const Rows& x, int64_t K, Address checkpoints) {
  const snn::IirBackward a{walk(shape, threads),        filter(f_of), input(df),
                           at<const float>(dstate),     output(dx),   at<float>(dstate0),
                           at<float>(dcoefficients),    input(x),     K,
                           at<const float>(checkpoints)};
  py::gil_scoped_release release;
  snn::iir_backward(a);
}

// A program in the form that the CPU runs, with its instructions.
struct Code {
  using Part = std::pair<std::vector<std::array<int, 7>>, int>;  // instructions, temporaries

  snn::ProgramCode code{};
  std::vector<snn::ProgramInstruction> instructions[3];

  Code(const std::array<int, 5>& counts, const std::array<Part, 3>& parts, int compiled) {
    code.compiled = compiled;
    code.constants = counts[0];
    code.inputs = counts[1];
    code.states = counts[2];
    code.outputs = counts[3];
    code.sums = counts[4];
    snn::ProgramPart* const to[] = {&code.forward, &code.replay, &code.adjoint};
    for (int k = 0; k < 3; ++k) {
      for (const auto& i : parts[k].first)
        instructions[k].push_back({i[0], i[1], i[2], i[3], i[4], i[5], i[6]});
      *to[k] = {instructions[k].data(), static_cast<int>(parts[k].first.size()), parts[k].second};
    }
  }
  Code(const Code&) = delete;
};

using Starts = std::vector<std::pair<Address, double>>;  // [M] at the address, or the value
using EitherRows = std::vector<std::pair<Rows, bool>>;   // of a sequence; whether it is float32

// The arguments that both directions share, and what they point to.
struct ProgramArguments {
  snn::ProgramCall call;
  std::vector<snn::Coefficient> constants;
  std::vector<snn::Input> x;
  std::vector<snn::ProgramState> states;

  ProgramArguments(const Code& code, const Shape& shape, int threads, int64_t K,
                   const std::vector<Coefficient>& values, const std::vector<Rows>& inputs,
                   const Starts& starts) {
    for (const Coefficient& value : values) constants.push_back(coefficient(value));
    for (const Rows& rows : inputs) x.push_back(input(rows));
    for (const auto& start : starts)
      states.push_back({at<const float>(start.first), static_cast<float>(start.second)});
    call = {walk(shape, threads), &code.code, constants.data(), x.data(), states.data(), K};
  }
};

template <class T>
std::vector<T*> pointers(const std::vector<Address>& addresses) {
  std::vector<T*> to;
  for (const Address address : addresses) to.push_back(at<T>(address));
  return to;
}

void program_forward(const Code& code, const Shape& shape, int threads, int64_t K,
                     const std::vector<Coefficient>& constants, const std::vector<Rows>& x,
                     const Starts& starts, const EitherRows& outputs,
                     const std::vector<Address>& states, Address checkpoints) {
  const ProgramArguments a(code, shape, threads, K, constants, x, starts);
  std::vector<snn::ProgramSequence<snn::Output>> out;
  for (const auto& rows : outputs) out.push_back({output(rows.first), rows.second});
  const auto after = pointers<float>(states);
  py::gil_scoped_release release;
  snn::program_forward({a.call, out.data(), after.data(), at<float>(checkpoints)});
}

void program_backward(const Code& code, const Shape& shape, int threads, int64_t K,
                      const std::vector<Coefficient>& constants, const std::vector<Rows>& x,
                      const Starts& starts, Address checkpoints, const EitherRows& doutputs,
                      const std::vector<Address>& dstates, const std::vector<Rows>& dx,
                      const std::vector<Address>& dstates0, const std::vector<Address>& sums) {
  const ProgramArguments a(code, shape, threads, K, constants, x, starts);
  std::vector<snn::ProgramSequence<snn::Input>> dout;
  for (const auto& rows : doutputs) dout.push_back({input(rows.first), rows.second});
  std::vector<snn::Output> to;
  for (const Rows& rows : dx) to.push_back(output(rows));
  const auto arriving = pointers<const float>(dstates);
  const auto before = pointers<float>(dstates0), totals = pointers<float>(sums);
  py::gil_scoped_release release;
  snn::program_backward({a.call, at<const float>(checkpoints), dout.data(), arriving.data(),
                         to.data(), before.data(), totals.data()});
}

using BnttShape = std::array<int64_t, 4>;  // T, rows, C, rows of a part

snn::Bntt bntt(const BnttShape& shape, Address weight, Address scratch, int threads) {
  return {shape[0],           shape[1], shape[2], shape[3], at<const float>(weight),
          at<float>(scratch), threads};
}

void bntt_forward(const BnttShape& shape, Address weight, Address scratch, int threads, double eps,
                  Address x, int64_t x_time, Address out, Address mean, Address rstd) {
  const snn::BnttForward a{bntt(shape, weight, scratch, threads),
                           eps,
                           at<const float>(x),
                           x_time,
                           at<float>(out),
                           at<float>(mean),
                           at<float>(rstd)};
  py::gil_scoped_release release;
  snn::bntt_forward(a);
}

void bntt_backward(const BnttShape& shape, Address weight, Address scratch, int threads,
                   Address dout, int64_t dout_time, Address kept, int64_t kept_time, Address mean,
                   Address rstd, Address dx, Address dweight) {
  const snn::BnttBackward a{bntt(shape, weight, scratch, threads),
                            at<const float>(dout),
                            dout_time,
                            at<const float>(kept),
                            kept_time,
                            at<const float>(mean),
                            at<const float>(rstd),
                            at<float>(dx),
                            at<float>(dweight)};
  py::gil_scoped_release release;
  snn::bntt_backward(a);
}

void reduce_channels(Address per_neuron, int64_t M, int64_t C, int64_t channel_inner,
                     Address scratch, Address out, int threads) {
  py::gil_scoped_release release;
  snn::reduce_channels(at<const float>(per_neuron), M, C, channel_inner, at<double>(scratch),
                       at<float>(out), threads);
}

void stream(Address to, Address a, Address b, int64_t count, int threads) {
  py::gil_scoped_release release;
  snn::stream(at<float>(to), at<const float>(a), at<const float>(b), count, threads);
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ core of snnkernels: see csrc/snncore.h.";
  m.attr("REDUCE_BLOCKS") = snn::REDUCE_BLOCKS;
  m.def("neuron_forward", &forward);
  m.def("neuron_backward", &backward);
  m.attr("MAX_ORDER") = snn::MAX_ORDER;
  m.def("iir_forward", &iir_forward);
  m.def("iir_backward", &iir_backward);
  py::class_<Code>(m, "Program")
      .def(py::init<const std::array<int, 5>&, const std::array<Code::Part, 3>&, int>());
  py::list operations;
#define SNN_NAME(NAME, ARITY) operations.append(#NAME);
  SNN_OPERATIONS(SNN_NAME)
#undef SNN_NAME
  m.attr("OPERATIONS") = py::tuple(operations);
  m.attr("MAX_PROGRAM_SEQUENCES") = snn::MAX_PROGRAM_SEQUENCES;
  m.attr("MAX_PROGRAM_SLOTS") = snn::MAX_PROGRAM_SLOTS;
  py::list programs;
  for (auto text = snn::program_texts(); *text; ++text) programs.append(*text);
  m.attr("PROGRAMS") = py::tuple(programs);
  m.def("program_forward", &program_forward);
  m.def("program_backward", &program_backward);
  m.def("bntt_forward", &bntt_forward);
  m.def("bntt_backward", &bntt_backward);
  m.def("reduce_channels", &reduce_channels);
  m.def("stream", &stream, py::arg("to"), py::arg("a"), py::arg("b"), py::arg("count"),
        py::arg("threads"));
  m.def("available_isas", &snn::available_isas);
  m.def("use_isa", &snn::use_isa, py::arg("name").none(true));
  py::class_<snn::Block>(m, "Block", py::buffer_protocol())
      .def(py::init<size_t>(), py::arg("bytes"))
      .def_buffer([](const snn::Block& block) {
        return py::buffer_info(static_cast<uint8_t*>(block.data()),
                               static_cast<py::ssize_t>(block.bytes));
      });
  m.def("release_blocks", [] { return snn::Blocks::all().release(); });
}
