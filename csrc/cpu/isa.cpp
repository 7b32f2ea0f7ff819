// Entry points of the CPU core: choice of the instruction set at run time, and the reductions.
#include "isa.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#include "scratch.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace snn {
namespace {

#include "programs.h"

struct Isa {
  const char* name;
  bool (*runs)();
  void (*forward)(const NeuronForward&);
  void (*backward)(const NeuronBackward&);
  void (*iir_forward)(const IirForward&);
  void (*iir_backward)(const IirBackward&);
  void (*bntt_forward)(const BnttForward&);
  void (*bntt_backward)(const BnttBackward&);
  void (*program_forward)(const ProgramForward&);
  void (*program_backward)(const ProgramBackward&);
  void (*stream)(float*, const float*, const float*, int64_t, int);
};

#define SNN_KERNELS(ISA)                                                                  \
  ISA::neuron_forward, ISA::neuron_backward, ISA::iir_forward, ISA::iir_backward,         \
      ISA::bntt_forward, ISA::bntt_backward, ISA::program_forward, ISA::program_backward, \
      ISA::stream

const Isa ISAS[] = {
#if defined(SNN_X86)
    // SNN_RUNS_...: every feature that CMakeLists.txt lets the compiler use.
    {"avx512", [] { return SNN_RUNS_avx512; }, SNN_KERNELS(avx512)},
    {"avx2", [] { return SNN_RUNS_avx2; }, SNN_KERNELS(avx2)},
#endif
    {"baseline", [] { return true; }, SNN_KERNELS(baseline)},
};
#undef SNN_KERNELS

const Isa* best_isa() {
  for (const Isa& isa : ISAS) {
    if (isa.runs()) return &isa;
  }
  return nullptr;  // not reached: baseline always runs
}

std::atomic<const Isa*> chosen{best_isa()};

}  // namespace

void neuron_forward(const NeuronForward& call) { chosen.load()->forward(call); }
void neuron_backward(const NeuronBackward& call) { chosen.load()->backward(call); }
void iir_forward(const IirForward& call) { chosen.load()->iir_forward(call); }
void iir_backward(const IirBackward& call) { chosen.load()->iir_backward(call); }
void bntt_forward(const BnttForward& call) { chosen.load()->bntt_forward(call); }
void bntt_backward(const BnttBackward& call) { chosen.load()->bntt_backward(call); }
void program_forward(const ProgramForward& call) { chosen.load()->program_forward(call); }
void program_backward(const ProgramBackward& call) { chosen.load()->program_backward(call); }
void stream(float* to, const float* a, const float* b, int64_t count, int threads) {
  chosen.load()->stream(to, a, b, count, threads);
}

const char* const* program_texts() { return PROGRAM_TEXTS; }

void* thread_scratch(size_t bytes) {
  struct Block {
    void* p = nullptr;
    size_t bytes = 0;
    ~Block() { std::free(p); }
  };
  static thread_local Block block;
  if (block.bytes < bytes) {
    std::free(block.p);
    block.bytes = (bytes + 63) / 64 * 64;
    block.p = std::aligned_alloc(64, block.bytes);
    if (!block.p) throw std::bad_alloc();
  }
  return block.p;
}

const char* available_isas() {
  static const std::string names = [] {
    std::string all;
    for (const Isa& isa : ISAS) {
      if (isa.runs()) all += (all.empty() ? "" : " ") + std::string(isa.name);
    }
    return all;
  }();
  return names.c_str();
}

bool use_isa(const char* name) {
  if (!name) return chosen = best_isa(), true;
  for (const Isa& isa : ISAS) {
    if (!std::strcmp(name, isa.name) && isa.runs()) return chosen = &isa, true;
  }
  return false;
}

void reduce_channels(const float* per_neuron, int64_t M, int64_t C, int64_t channel_inner,
                     double* scratch, float* out, int threads) {
  constexpr int64_t SMALL = 1 << 16;  // neurons that are not worth a second thread
#pragma omp parallel for num_threads(threads) schedule(static) if (M > SMALL)
  for (int b = 0; b < REDUCE_BLOCKS; ++b) {
    double* sums = scratch + b * C;
    std::fill(sums, sums + C, 0.0);
    const int64_t end = M * (b + 1) / REDUCE_BLOCKS;
    for (int64_t m = M * b / REDUCE_BLOCKS; m < end;) {
      const int64_t run = std::min(end - m, channel_inner - m % channel_inner);
      double sum = 0;
      for (int64_t i = 0; i < run; ++i) sum += per_neuron[m + i];
      sums[(m / channel_inner) % C] += sum;
      m += run;
    }
  }
  for (int64_t c = 0; c < C; ++c) {
    double sum = 0;
    for (int b = 0; b < REDUCE_BLOCKS; ++b) sum += scratch[b * C + c];
    out[c] = static_cast<float>(sum);
  }
}

void advise_huge_pages(void* p, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t PAGE = 4096;
  const uintptr_t from = (reinterpret_cast<uintptr_t>(p) + PAGE - 1) / PAGE * PAGE;
  const uintptr_t to = (reinterpret_cast<uintptr_t>(p) + bytes) / PAGE * PAGE;
  if (to > from) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#else
  (void)p;
  (void)bytes;
#endif
}

}  // namespace snn
