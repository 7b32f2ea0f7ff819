// libcuda_on_host: the CUDA kernels on the CPU, behind two functions for ctypes.
#include <ucontext.h>

#include <memory>

// clang-format off: the kernels' headers expect what the emulation defines
#include "emulation.h"
#include "cuda/table.h"
// clang-format on

namespace emulation {
namespace {

constexpr size_t STACK_BYTES = 256 << 10;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
  bool done = false;
};

ucontext_t scheduler;
std::vector<Fiber> fibers;
void (*body)(const void*);
const void* arguments;

void run_fiber() {
  body(arguments);
  fibers[threadIdx.x].done = true;
}

void run_block(unsigned threads) {
  if (fibers.size() < threads) fibers.resize(threads);
  copies.assign(threads, {{}});
  for (unsigned k = 0; k < threads; ++k) {
    Fiber& f = fibers[k];
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = STACK_BYTES;
    f.context.uc_link = &scheduler;
    f.done = false;
    makecontext(&f.context, run_fiber, 0);
  }
  for (bool running = true; running;) {
    running = false;
    for (unsigned k = 0; k < threads; ++k) {
      if (fibers[k].done) continue;
      threadIdx.x = k;
      swapcontext(&scheduler, &fibers[k].context);
      running |= !fibers[k].done;
    }
  }
}

template <class Arguments>
using Entry = void (*)(Arguments);

const void* entry;

template <class Arguments>
void call(const void* a) {
  reinterpret_cast<Entry<Arguments>>(const_cast<void*>(entry))(*static_cast<const Arguments*>(a));
}

const std::vector<snn::cuda::Kernel>& kernels() {
  static const auto all = [] {
    std::vector<snn::cuda::Kernel> to;
    snn::cuda::add_kernels<float>(to);
    snn::cuda::add_kernels<snn::cuda::bf16>(to);
    snn::cuda::add_kernels<snn::cuda::f16>(to);
    snn::cuda::add_reductions(to);
    return to;
  }();
  return all;
}

}  // namespace

void barrier() {
  const unsigned self = threadIdx.x;
  swapcontext(&fibers[self].context, &scheduler);
}

}  // namespace emulation

// 0: done; 1: no such kernel; 2: the arguments have another size.
extern "C" __attribute__((visibility("default"))) int launch(const char* name, unsigned blocks,
                                                             unsigned threads, const void* a,
                                                             size_t bytes) {
  using namespace emulation;
  for (const auto& kernel : kernels()) {
    if (kernel.name != name) continue;
    const bool reduction = kernel.name.find("reduce") != std::string::npos;
    if (bytes != kernel.argument_bytes) return 2;
    body = reduction ? call<snn::cuda::Reduction> : call<snn::cuda::Call>;
    entry = kernel.entry;
    arguments = a;
    const bool waits = reduction || kernel.name.find("ring") != std::string::npos;
    for (unsigned b = 0; b < blocks; ++b) {
      blockIdx.x = b;
      if (waits) {
        run_block(threads);
      } else {
        for (unsigned k = 0; k < threads; ++k) {
          threadIdx.x = k;
          body(a);
        }
      }
    }
    return 0;
  }
  return 1;
}

// Whether two sums of one type in one kernel, both in shared memory, are kept apart.
extern "C" __attribute__((visibility("default"))) bool sums_are_apart() {
  using Sums = snn::cuda::Sums<1, 1, true>;
  static Sums::Room rooms[2];
  Sums first(rooms[0]), second(rooms[1]);
  first.add(0, 0, 1.0f), second.add(0, 0, 2.0f);
  first.end_chunk(), second.end_chunk();
  float out[2];
  first.store(0, out, 0), second.store(0, out, 1);
  return out[0] == 1.0f && out[1] == 2.0f;
}

// The names of all kernels, one a line.
extern "C" __attribute__((visibility("default"))) const char* kernel_names() {
  static const std::string names = [] {
    std::string all;
    for (const auto& kernel : emulation::kernels()) all += kernel.name + "\n";
    return all;
  }();
  return names.c_str();
}
