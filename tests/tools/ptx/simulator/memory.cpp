// Global and shared memory: who may touch which byte, whether it is defined, and in which order.
#include <algorithm>
#include <cstring>

#include "simulator.h"

namespace ptx {

void Simulator::report(const Instruction& i, u32 t, const char* text, u64 address, u64 bytes) {
  constexpr size_t MOST = 40;
  for (const auto& known : findings) {
    if (known.line == i.line && known.text == text) return;
  }
  if (findings.size() < MOST) {
    findings.push_back({i.line, block_, t, s64(address), s64(bytes), text});
  }
}

void Simulator::clear() {
  buffers_.clear();
  symbols_.clear();
  findings.clear();
  counts = {};
}

void Simulator::add_symbol(u64 base, u64 bytes) {
  shared_base_ = symbols_.empty() ? base : std::min(shared_base_, base);
  symbols_.push_back({base, bytes});
}

void Simulator::add_buffer(Buffer buffer) {
  if (buffer.rights) buffer.writer.resize(buffer.bytes), buffer.reader.resize(buffer.bytes);
  const auto before = [](u64 base, const Buffer& b) { return base < b.base; };
  buffers_.insert(std::upper_bound(buffers_.begin(), buffers_.end(), buffer.base, before),
                  std::move(buffer));
}

Buffer* Simulator::find(u64 address, u64 bytes) {
  const auto after = [](u64 a, const Buffer& b) { return a < b.base; };
  auto next = std::upper_bound(buffers_.begin(), buffers_.end(), address, after);
  if (next == buffers_.begin()) return nullptr;
  Buffer& b = *--next;
  return address + bytes <= b.base + b.bytes ? &b : nullptr;
}

void Simulator::load_parameter(const Instruction& i, u32 t, u64 a, int n, u8* out, u8* undefined) {
  const u64 offset = a - parameter_base;
  if (offset % std::min(n, 16)) report(i, t, "misaligned load of parameters", a, n);
  if (offset + n > parameters.size()) {
    report(i, t, "load outside of the parameters", a, n);
    return;
  }
  std::memcpy(out, parameters.data() + offset, n);
  std::memset(undefined, 0, n);
}

void Simulator::load_global(const Instruction& i, u32 t, u64 a, int n, u8* out, u8* undefined) {
  ++counts.global_loads;
  Buffer* b = find(a, n);
  if (!b) {
    report(i, t, "load outside of every buffer", a, n);
    return;
  }
  if (!b->rights) {
    if (!(b->all & READ)) report(i, t, "load of bytes that belong to no argument", a, n);
    std::memcpy(out, reinterpret_cast<void*>(a), n);
    std::memset(undefined, 0, n);
    return;
  }
  const u32 me = block_ * grid_.threads + t + 1;
  for (int k = 0; k < n; ++k) {
    const u64 at = a + k - b->base;
    if (!(b->rights[at] & READ)) {
      report(i, t, "load of bytes that belong to no argument", a + k, n);
      continue;
    }
    if (b->writer[at] && b->writer[at] != me) {
      report(i, t, "race: global load of what another thread wrote", a + k, n);
    }
    b->reader[at] = b->reader[at] == 0 || b->reader[at] == me ? me : SEVERAL;
    out[k] = *reinterpret_cast<u8*>(a + k);
    undefined[k] = b->defined[at] ? 0 : 0xff;
  }
}

void Simulator::store_global(const Instruction& i, u32 t, u64 a, int n, const u8* in,
                             const u8* undefined) {
  ++counts.global_stores;
  Buffer* b = find(a, n);
  if (!b) {
    report(i, t, "store outside of every buffer", a, n);
    return;
  }
  if (std::any_of(undefined, undefined + n, [](u8 u) { return u != 0; })) {
    report(i, t, "store of undefined bits to global memory", a, n);
  }
  if (!b->rights) {
    if (!(b->all & WRITE)) report(i, t, "store to bytes that are no output", a, n);
    std::memcpy(reinterpret_cast<void*>(a), in, n);
    return;
  }
  const u32 me = block_ * grid_.threads + t + 1;
  for (int k = 0; k < n; ++k) {
    const u64 at = a + k - b->base;
    u8& byte = *reinterpret_cast<u8*>(a + k);
    if (!(b->rights[at] & WRITE)) {
      report(i, t, "store to bytes that are no output", a + k, n);
      continue;
    }
    if (b->writer[at] && b->writer[at] != me) {
      report(i, t,
             in[k] == byte ? "race: two threads store the same global byte (equal values)"
                           : "race: two threads store different values to a global byte",
             a + k, n);
    }
    if (b->reader[at] && b->reader[at] != me) {
      report(i, t, "race: global store to what another thread read", a + k, n);
    }
    b->writer[at] = me;
    byte = in[k];
    b->defined[at] = 1;
  }
}

bool Simulator::in_symbol(u64 address, u64 bytes) const {
  return std::any_of(symbols_.begin(), symbols_.end(), [=](const Symbol& s) {
    return address >= s.base && address + bytes <= s.base + s.bytes;
  });
}

// Whether a barrier lies between an access and what thread t does now.
bool Simulator::ordered(const Access& before, u32 t) const {
  if (before.thread == NOBODY || before.thread == t) return true;
  if (threads_[t].barriers > before.barriers) return true;
  return before.thread / 32 == t / 32 && threads_[t].warp_barriers > before.warp_barriers;
}

void Simulator::note_read(const Instruction& i, u32 t, u64 a, SharedByte& byte) {
  if (!ordered(byte.write, t)) {
    report(i, t, "race: shared load of what another thread wrote, no barrier between", a,
           byte.write.thread);
  }
  (ordered(byte.read, t) ? byte.read : byte.other_read) = now(t);
}

// value: what is stored; -1: an asynchronous copy's.
void Simulator::note_write(const Instruction& i, u32 t, u64 a, SharedByte& byte, int value) {
  if (!ordered(byte.write, t)) {
    // Threads that hold the same value may all store it, as Triton's replicated layouts do.
    if (value == byte.value && !byte.undefined) {
      ++counts.equal_stores;
    } else {
      report(i, t, "race: two threads store to a shared byte, no barrier between", a,
             byte.write.thread);
    }
  }
  for (const Access& read : {byte.read, byte.other_read}) {
    if (!ordered(read, t)) {
      report(i, t, "race: shared store to what another thread read, no barrier between", a,
             read.thread);
    }
  }
  byte.write = now(t);
  byte.read = byte.other_read = Access();
}

void Simulator::load_shared(const Instruction& i, u32 t, u64 a, int n, u8* out, u8* undefined) {
  ++counts.shared_accesses;
  if (!in_symbol(a, n)) {
    report(i, t, "load outside of shared memory", a, n);
    return;
  }
  for (int k = 0; k < n; ++k) {
    SharedByte& byte = shared(a + k);
    if (byte.pending) {
      report(i, t, "shared load of bytes whose asynchronous copy is not complete", a + k, n);
    }
    note_read(i, t, a + k, byte);
    out[k] = byte.value;
    undefined[k] = byte.undefined;
  }
}

void Simulator::store_shared(const Instruction& i, u32 t, u64 a, int n, const u8* in,
                             const u8* undefined) {
  ++counts.shared_accesses;
  if (!in_symbol(a, n)) {
    report(i, t, "store outside of shared memory", a, n);
    return;
  }
  for (int k = 0; k < n; ++k) {
    SharedByte& byte = shared(a + k);
    if (byte.pending) {
      report(i, t, "shared store to bytes whose asynchronous copy is not complete", a + k, n);
    }
    note_write(i, t, a + k, byte, in[k]);
    byte.value = in[k];
    byte.undefined = undefined[k];
  }
}

void Simulator::copy_async(const Instruction& i, u32 t, u64 to, u64 from, int n) {
  if (to % n) report(i, t, "misaligned shared address of cp.async", to, n);
  if (from % n) report(i, t, "misaligned global address of cp.async", from, n);
  if (!in_symbol(to, n)) {
    report(i, t, "cp.async outside of shared memory", to, n);
    return;
  }
  for (int k = 0; k < n; ++k) {
    SharedByte& byte = shared(to + k);
    if (byte.pending) report(i, t, "two asynchronous copies to one place", to + k, n);
    note_write(i, t, to + k, byte, -1);
    byte.pending = true;
    byte.undefined = byte.value = 0xff;
  }
  threads_[t].copies.back().push_back({to, from, n});
}

// cp.async.wait_group: all but the newest `keep` groups of the thread are read now, and not before.
void Simulator::complete_copies(const Instruction& i, u32 t, size_t keep) {
  auto& groups = threads_[t].copies;
  while (groups.size() > keep + 1) {
    for (const Copy& copy : groups.front()) {
      u8 data[16]{}, undefined[16];
      std::memset(undefined, 0xff, sizeof undefined);
      load_global(i, t, copy.from, copy.bytes, data, undefined);
      for (int k = 0; k < copy.bytes; ++k) {
        SharedByte& byte = shared(copy.to + k);
        byte.pending = false;
        byte.value = data[k];
        byte.undefined = undefined[k];
        byte.write = now(t);
      }
    }
    groups.erase(groups.begin());
  }
}

}  // namespace ptx
