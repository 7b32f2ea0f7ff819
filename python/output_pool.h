// Memory for large outputs on the CPU, used again by later ones. A page of fresh memory is cleared
// by the system on its first touch, and on a virtual machine it may have to be supplied by the host
// first: both take many times as long as the kernel that fills it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <mutex>
#include <new>
#include <vector>

#include "snncore.h"

namespace snn {

// All blocks of the process. Idle ones are kept, but never more than would make all blocks together
// larger than those in use have been at one time.
class Blocks {
 public:
  struct Memory {
    void* p;
    size_t bytes;
  };

  static Blocks& all() {
    static Blocks* blocks = new Blocks;  // never destroyed: tensors may outlive static objects
    return *blocks;
  }

  Memory take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    // The latest that fits and of which at most an eighth stays unused: it may still be in a cache.
    const auto found = std::find_if(idle_.rbegin(), idle_.rend(), [&](const Memory& m) {
      return m.bytes >= bytes && m.bytes - bytes <= bytes / 8;
    });
    Memory memory;
    if (found != idle_.rend()) {
      memory = *found;
      idle_.erase(std::next(found).base());
    } else {
      memory = fresh((bytes + PAGE - 1) / PAGE * PAGE);
    }
    used_ += memory.bytes;
    return memory;
  }

  void give(Memory memory) {
    const std::lock_guard<std::mutex> lock(mutex_);
    used_ -= memory.bytes;
    idle_.push_back(memory);
  }

  // Gives idle blocks back to the system; returns how many bytes.
  size_t release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    most_ = used_;
    return shrink(0);
  }

 private:
  static constexpr size_t PAGE = 4096, LARGE_PAGE = size_t(1) << 21;

  Memory fresh(size_t bytes) {
    const size_t most = std::max(most_, used_ + bytes);
    shrink(most - used_ - bytes);
    void* p = ::operator new(bytes, align(bytes), std::nothrow);
    if (!p) {
      shrink(0);
      p = ::operator new(bytes, align(bytes));
    }
    if (bytes >= LARGE_PAGE) advise_huge_pages(p, bytes);
    most_ = most;
    return {p, bytes};
  }

  // Frees the blocks that have been idle longest until at most so many bytes of them are left.
  size_t shrink(size_t left) {
    size_t idle = 0, freed = 0;
    for (const Memory& m : idle_) idle += m.bytes;
    auto end = idle_.begin();
    for (; end != idle_.end() && idle - freed > left; ++end) {
      ::operator delete(end->p, align(end->bytes));
      freed += end->bytes;
    }
    idle_.erase(idle_.begin(), end);
    return freed;
  }

  static std::align_val_t align(size_t bytes) {
    return std::align_val_t(bytes >= 2 * LARGE_PAGE ? LARGE_PAGE : PAGE);
  }

  std::mutex mutex_;
  std::vector<Memory> idle_;  // the longest idle first
  size_t used_ = 0, most_ = 0;
};

// Memory of one tensor, for as long as its storage lives.
class Block {
 public:
  explicit Block(size_t bytes) : bytes(bytes), memory_(Blocks::all().take(bytes)) {}
  ~Block() { Blocks::all().give(memory_); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void* data() const { return memory_.p; }
  const size_t bytes;

 private:
  Blocks::Memory memory_;
};

}  // namespace snn
