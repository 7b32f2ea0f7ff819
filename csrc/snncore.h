// The C++ API of the core: pointers and sizes in, buffers filled. No torch, no Python, and no
// allocation: whoever calls owns every buffer, scratch included.
//
//   T  time steps
//   M  neurons = O * I, numbered in memory order: m = o * I + i, i side by side in memory
//   C  channels: neuron m has channel (m / channel_inner) % C
//   K  steps between two checkpoints of the state
//
// Element (o, t, i) of a sequence lies at o * outer + t * time + i * inner elements.
#pragma once

#include <cstddef>
#include <cstdint>

#include "neuron.h"

namespace snn {

enum class Dtype : int { float32, bfloat16, float16 };

template <class Pointer>
struct Sequence {
  Pointer p;  // nullptr: absent
  int64_t outer, time;
  int64_t inner;  // 1, or 0 where one value stands for a whole row
};
using Input = Sequence<const void*>;
using Output = Sequence<void*>;  // inner is 1

struct Coefficient {
  const float* p = nullptr;  // [count]; nullptr: value holds
  int64_t count = 1;         // 1, or C: one per channel
  float value = 0.0f;

  float shared() const { return p ? *p : value; }
};

// f[t] = sum of beta[q] x[t-q] over q = 0..Q + sum of alpha[p] f[t-p] over p = 1..P.
//
// The state is [P + Q, M]: f[t-1], ..., f[t-P], then x[t-1], ..., x[t-Q].
constexpr int MAX_ORDER = 64;  // of P and of Q

struct Filter {
  int P, Q;
  const float* alpha;   // [P, count]
  const float* beta;    // [Q + 1, count]
  int64_t count;        // 1, or C: one filter per channel
  const float* state0;  // [P + Q, M] before the first step; nullptr: zero
};

// The steps and neurons of a call.
struct Walk {
  int64_t T, O, I, C, channel_inner;
  Dtype dtype;  // of the sequences, unless they say otherwise; all else is float32
  int threads;
};

// What a call of the neuron computes; shared by forward and backward.
struct Problem : Walk {
  Reset reset;
  bool detach_reset;
  Surrogate surrogate;
  int64_t K;  // 0: keep no checkpoints
  Numbers numbers;
  int64_t refractory;  // steps; 0: none
  Coefficient decay, v_threshold;
  Coefficient gain{nullptr, 1, 1.0f};  // on the input current
  Coefficient trace_decay;             // where reset is trace
  bool has_synapse;                    // the filter stands before the gain
  Filter synapse;
  Input x;                  // dtype
  const float* v0;          // [M] before the first step; nullptr: zero
  const float* wait0;       // [M] steps still to wait; nullptr: zero
  const float* trace0;      // [M]; nullptr: zero
  bool regularise = false;  // sum up the penalty on the potentials

  // The rows of a state that is kept: v, then these where they are used.
  int64_t wait_row() const { return 1; }
  int64_t trace_row() const { return 1 + (refractory > 0); }
  int64_t synapse_row() const { return trace_row() + (reset == Reset::trace); }
  int64_t state_rows() const { return synapse_row() + (has_synapse ? synapse.P : 0); }
};

struct NeuronForward {
  Problem problem;
  Output s;                  // dtype
  Output h;                  // float32; p == nullptr: not recorded
  float* v;                  // [M] after the last step
  float* wait;               // [M], where refractory > 0
  float* checkpoints;        // [(T - 1) / K, state_rows, M]: the state before step K, 2K, ...; of
                             // the synapse its outputs alone
  float* trace = nullptr;    // [M], where reset is trace
  float* synapse = nullptr;  // [P + Q, M], where there is one
  float* penalty = nullptr;  // [M] summed over time, where regularise
};

struct NeuronBackward {
  Problem problem;
  const float* checkpoints;  // as written by the forward call
  Input ds;                  // dtype; p == nullptr: zero
  Input dh;                  // float32; gradient on the recorded h
  const float* dv;           // [M] on the state after the last step; nullptr: nothing arrives
  Output dx;                 // dtype; p == nullptr: not wanted
  float* dv0;                // [M]; nullptr: not wanted
  float* ddecay_per_neuron;  // [M] summed over time; nullptr: not wanted
  float* dv_threshold_per_neuron;
  const float* dtrace = nullptr;    // [M], as dv
  const float* dsynapse = nullptr;  // [P + Q, M], as dv
  float* dtrace0 = nullptr;         // as dv0
  float* dsynapse0 = nullptr;
  float* dgain_per_neuron = nullptr;
  float* dtrace_decay_per_neuron = nullptr;
  float* dcoefficients_per_neuron = nullptr;  // [P + Q + 1, M]: of the synapse's alpha, then beta
  const float* dpenalty = nullptr;  // one value, on the sum of every neuron; nullptr: zero
};

void neuron_forward(const NeuronForward& call);
void neuron_backward(const NeuronBackward& call);

// A traced neuron. A program in the form in which the CPU runs it, with rows of neurons as values.
//
// Rows are known by slots, in this order: constants (count 1, C or M each) and one that is zero;
// inputs; states before the step; gradients on the outputs; gradients on the states after the step;
// outputs; states after the step; gradients on the inputs; gradients on the states before the step;
// sums of the gradients of parameters; temporaries.
struct ProgramInstruction {
  int operation;   // of csrc/program.h, or one of cpu/interpreter.h made of two of them
  int to;          // slot of the result
  int also;        // slot of an output that the result goes to as well; -1: none
  int a, b, c, d;  // slots of the arguments
};

struct ProgramPart {
  const ProgramInstruction* instructions;
  int count;
  int temporaries;  // rows
};

struct ProgramCode {
  int constants, inputs, states, outputs, sums;
  ProgramPart forward, replay, adjoint;  // replay: forward without the outputs
  int compiled = -1;                     // of the programs that are compiled ahead of time
};

struct ProgramState {
  const float* p;  // [M]; nullptr: value holds
  float value;
};

template <class Sequence>
struct ProgramSequence {
  Sequence at;
  bool wide;  // float32, whatever the dtype of the call
};

constexpr int MAX_PROGRAM_SEQUENCES = 8;  // inputs, outputs
constexpr int MAX_PROGRAM_SLOTS = 1024;

struct ProgramCall {
  Walk walk;
  const ProgramCode* code;
  const Coefficient* constants;  // [constants]
  const Input* x;                // [inputs], dtype
  const ProgramState* states;    // [states] before the first step
  int64_t K;                     // 0: keep no checkpoints
};

struct ProgramForward {
  ProgramCall call;
  const ProgramSequence<Output>* outputs;  // [outputs]
  float* const* states;                    // [states], each [M], after the last step
  float* checkpoints;                      // [(T - 1) / K, states, M]
};

struct ProgramBackward {
  ProgramCall call;
  const float* checkpoints;
  const ProgramSequence<Input>* doutputs;  // [outputs]; p == nullptr: zero
  const float* const* dstates;             // [states]; nullptr: zero
  const Output* dx;                        // [inputs], dtype; p == nullptr: not wanted
  float* const* dstates0;                  // [states]; nullptr: not wanted
  float* const* sums;                      // [sums], each [M]; nullptr: not wanted
};

// The texts of the programs that are compiled ahead of time, in the order of their numbers, then
// nullptr. Of such a program every gradient is computed, also where it is not wanted.
const char* const* program_texts();

void program_forward(const ProgramForward& call);
void program_backward(const ProgramBackward& call);

struct IirForward {
  Walk walk;
  Filter filter;
  Input x;             // dtype
  Output f;            // dtype
  float* state;        // [P + Q, M] after the last step
  int64_t K;           // 0: keep no checkpoints
  float* checkpoints;  // [(T - 1) / K, P, M]: the last P outputs before step K, 2K, ...
};

struct IirBackward {
  Walk walk;
  Filter filter;
  Input df;             // dtype; p == nullptr: zero
  const float* dstate;  // [P + Q, M]; nullptr: nothing arrives
  Output dx;            // dtype; p == nullptr: not wanted
  float* dstate0;       // [P + Q, M]; nullptr: not wanted
  // Only for the gradients of the coefficients, [P + Q + 1, M]: of alpha, then of beta, summed over
  // time; nullptr: not wanted, and neither are x, K and the checkpoints.
  float* dcoefficients_per_neuron;
  Input x;
  int64_t K;
  const float* checkpoints;
};

void iir_forward(const IirForward& call);
void iir_backward(const IirBackward& call);

// Batch norm over [T, rows, C], the channels side by side in memory, with mean and variance of its
// own at every step: out = weight (x - mean) rstd, rstd = 1 / sqrt(var + eps).
//
// Sums over the rows are taken part by part in float32, and over the parts in float64.
struct Bntt {
  int64_t T, rows, C, part_rows;
  const float* weight;  // [T, C]
  float* scratch;       // forward [T, parts + 2, C], backward [T, 2 * parts + 3, C]
  int threads;

  int64_t parts() const { return (rows + part_rows - 1) / part_rows; }
};

struct BnttForward {
  Bntt problem;
  double eps;
  const float* x;
  int64_t x_time;  // elements between two steps
  float* out;      // [T, rows, C]
  float* mean;     // [T, C]
  float* rstd;     // [T, C]
};

struct BnttBackward {
  Bntt problem;
  const float* dout;
  int64_t dout_time;
  const float* kept;  // x, or out where mean is nullptr; then no weight may be 0
  int64_t kept_time;
  const float* mean;
  const float* rstd;
  float* dx;       // [T, rows, C]
  float* dweight;  // [T, C]
};

void bntt_forward(const BnttForward& call);
void bntt_backward(const BnttBackward& call);

// The ceilings that the kernels are measured against, by the same stores past the caches:
// to[k] = a[k], and to[k] = a[k] + b[k] where b is not nullptr. Pointers aligned to 64 bytes.
void stream(float* to, const float* a, const float* b, int64_t count, int threads);

// out[c] = sum over the neurons of channel c, in float64 and in an order that depends on neither
// the threads nor the ISA. scratch: [REDUCE_BLOCKS, C].
constexpr int REDUCE_BLOCKS = 64;
void reduce_channels(const float* per_neuron, int64_t M, int64_t C, int64_t channel_inner,
                     double* scratch, float* out, int threads);

// The instruction sets that this build holds and this machine runs, best first, separated by
// spaces; the kernels use the first one, or the one set here (nullptr: the first again). Returns
// false where the name is not among them.
const char* available_isas();
bool use_isa(const char* name);

// Ask for huge pages behind a fresh buffer: faulting in 4 KiB pages costs more than the kernels do.
void advise_huge_pages(void* p, size_t bytes);

}  // namespace snn
