// Working memory of one thread, on the heap: OpenMP's threads may have small stacks.
#pragma once

#include <cstddef>

#include "neuron.h"

namespace snn {

// Aligned to a cache line; the thread's until it asks again. Kept until the thread ends.
void* thread_scratch(size_t bytes);

// What a kernel works with at one tile: `new` places it there, and nothing frees it.
struct InScratch {
  SNN_HD static void* operator new(size_t bytes) { return thread_scratch(bytes); }
};

}  // namespace snn
