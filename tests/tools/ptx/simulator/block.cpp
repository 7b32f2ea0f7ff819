// The threads of a block: their order, barriers, and what a warp does together.
#include <algorithm>
#include <cstring>

#include "simulator.h"

namespace ptx {

u32 Simulator::random() {
  random_ = random_ * 6364136223846793005ull + 1442695040888963407ull;
  return u32(random_ >> 33);
}

void Simulator::run(const Grid& grid, u32 seed, u64 limit) {
  grid_ = grid;
  limit_ = limit;
  random_ = seed * 7919u + 12345;
  approximation.seed = seed;
  const u32 last = std::min(grid.last, grid.size[0] * grid.size[1] * grid.size[2]);
  std::vector<u32> order;
  for (u32 block = grid.first; block < last; ++block) order.push_back(block);
  for (size_t k = order.size(); k-- > 1;) std::swap(order[k], order[random() % (k + 1)]);
  for (u32 block : order) {
    block_ = block;
    run_block();
  }
}

void Simulator::run_block() {
  threads_.assign(grid_.threads, Thread());
  for (Thread& thread : threads_) thread.registers.assign(registers_, Value());
  u64 end = shared_base_;
  for (const Symbol& symbol : symbols_) end = std::max(end, symbol.base + symbol.bytes);
  shared_.assign(end - shared_base_, SharedByte());
  std::vector<u32> order(grid_.threads);
  for (u32 k = 0; k < grid_.threads; ++k) order[k] = k;
  do {
    bool moved = true;
    while (moved) {
      moved = false;
      for (u32 k = grid_.threads - 1; k > 0; --k) std::swap(order[k], order[random() % (k + 1)]);
      for (u32 t : order) {
        if (threads_[t].waits != Waits::NOT) continue;
        run_thread(t);
        moved = true;
      }
      for (u32 first = 0; first < grid_.threads; first += 32) moved |= run_warp(first);
    }
  } while (pass_barrier());
  for (u32 t = 0; t < grid_.threads; ++t) {
    const auto& groups = threads_[t].copies;
    if (std::any_of(groups.begin(), groups.end(), [](const auto& g) { return !g.empty(); })) {
      report(Instruction{}, t, "a thread ends with asynchronous copies that nobody waited for");
    }
  }
}

// All threads wait or have ended. False where no barrier lets them go on.
bool Simulator::pass_barrier() {
  u32 waiting = 0, ended = 0, first = 0;
  for (u32 t = grid_.threads; t-- > 0;) {
    ended += threads_[t].waits == Waits::ENDED;
    if (threads_[t].waits == Waits::FOR_BLOCK) first = t, ++waiting;
  }
  if (ended == grid_.threads) return false;
  const size_t pc = threads_[first].pc;
  const Instruction& i = code[std::min(pc, code.size() - 1)];
  if (waiting + ended < grid_.threads || !waiting) {
    report(i, first, "deadlock: threads wait for others that do not come");
    return false;
  }
  if (ended) report(i, first, "a barrier that threads which have ended do not reach");
  const u64 barrier = threads_[first].barrier;
  for (u32 t = 0; t < grid_.threads; ++t) {
    Thread& thread = threads_[t];
    if (thread.waits != Waits::FOR_BLOCK) continue;
    if (thread.pc != pc || thread.barrier != barrier) {
      report(i, t, "threads of a block wait at different barriers");
    }
    ++thread.barriers, ++thread.warp_barriers, ++thread.pc;
    thread.waits = Waits::NOT;
  }
  return true;
}

bool Simulator::takes_part(u32 first, u32 lane, u32 mask) const {
  return (mask >> lane & 1) && first + lane < grid_.threads &&
         threads_[first + lane].waits == Waits::FOR_WARP;
}

// Whether all threads of the mask have come to the instruction at which thread t waits.
bool Simulator::warp_is_there(u32 first, u32 t, u32 mask) {
  const Instruction& i = code[threads_[t].pc];
  bool all = true;
  for (u32 lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    if (first + lane >= grid_.threads) {
      report(i, t, "the mask of a warp operation names threads that do not exist");
      continue;
    }
    const Thread& other = threads_[first + lane];
    if (other.waits == Waits::ENDED) {
      report(i, t, "the mask of a warp operation names a thread that has ended");
    } else if (other.waits != Waits::FOR_WARP || other.pc != threads_[t].pc) {
      all = false;
    }
  }
  if (!(mask >> (t - first) & 1)) {
    report(i, t, "the mask of a warp operation does not name the thread itself");
  }
  return all;
}

// Operations whose threads are all there; false where there is none.
bool Simulator::run_warp(u32 first) {
  bool moved = false;
  for (u32 t = first; t < std::min(first + 32, grid_.threads); ++t) {
    if (threads_[t].waits != Waits::FOR_WARP) continue;
    const Instruction& i = code[threads_[t].pc];
    u32 mask = 0xffffffffu;
    if (i.op != LDMATRIX) {
      const Value operand = value(i.in[i.inputs - 1], t);
      if (operand.undefined) report(i, t, "the mask of a warp operation is undefined");
      mask = u32(operand.bits);
    }
    if (!warp_is_there(first, t, mask)) continue;
    if (i.op == SHFL) shuffle(i, first, mask);
    if (i.op == VOTE) vote(i, first, mask);
    if (i.op == LDMATRIX) load_matrices(i, first);
    for (u32 lane = 0; lane < 32; ++lane) {
      if (!takes_part(first, lane, mask)) continue;
      Thread& thread = threads_[first + lane];
      if (i.op == WBAR) ++thread.warp_barriers;
      thread.waits = Waits::NOT;
      ++thread.pc;
    }
    moved = true;
  }
  return moved;
}

// mode: 0 up, 1 down, 2 butterfly, 3 index.
void Simulator::shuffle(const Instruction& i, u32 first, u32 mask) {
  Value from[32];
  for (u32 lane = 0; lane < 32; ++lane) {
    if (takes_part(first, lane, mask)) from[lane] = value(i.in[0], first + lane);
  }
  for (u32 lane = 0; lane < 32; ++lane) {
    if (!takes_part(first, lane, mask)) continue;
    const u32 t = first + lane;
    const s64 b = value(i.in[1], t).bits & 31, c = value(i.in[2], t).bits;
    const s64 bound = c & 31, segment = c >> 8 & 31, self = lane;
    const s64 highest = (self & segment) | (bound & ~segment), lowest = self & segment;
    const s64 wanted = i.mode == 0   ? self - b
                       : i.mode == 1 ? self + b
                       : i.mode == 2 ? self ^ b
                                     : lowest | (b & ~segment);
    const bool inside = i.mode == 0 ? wanted >= highest : wanted <= highest;
    s64 source = inside ? wanted : self;
    if (source < 0 || source > 31 || !takes_part(first, u32(source), mask)) {
      report(i, t, "shfl reads a lane that takes no part");
      source = self;
    }
    set(i.out[0], t, from[source], 32);
    if (i.outputs > 1) set(i.out[1], t, {inside, 0}, 1);
  }
}

// mode: 0 all, 1 any, 2 uniform, 3 ballot.
void Simulator::vote(const Instruction& i, u32 first, u32 mask) {
  u32 ballot = 0;
  bool undefined = false;
  for (u32 lane = 0; lane < 32; ++lane) {
    if (!takes_part(first, lane, mask)) continue;
    const Value one = value(i.in[0], first + lane);
    ballot |= u32(one.bits & 1) << lane;
    undefined |= one.undefined & 1;
  }
  const bool all = ballot == mask, any = ballot != 0;
  const u64 result = i.mode == 0 ? all : i.mode == 1 ? any : i.mode == 2 ? all || !any : ballot;
  for (u32 lane = 0; lane < 32; ++lane) {
    if (!takes_part(first, lane, mask)) continue;
    set(i.out[0], first + lane, {result, undefined ? ~0ull : 0}, i.mode == 3 ? 32 : 1);
  }
}

// m8n8 of 16 bits, one matrix for each output; mode 1: transposed.
void Simulator::load_matrices(const Instruction& i, u32 first) {
  u8 data[32 * 16]{}, undefined[32 * 16];
  std::memset(undefined, 0xff, sizeof undefined);
  for (u32 row = 0; row < 8 * u32(i.outputs); ++row) {
    const u32 t = first + row;
    const Value address = value(i.in[0], t);
    const u64 a = address.bits + i.offset;
    if (address.undefined) report(i, t, "the address of ldmatrix is undefined");
    if (a % 16) report(i, t, "misaligned address of ldmatrix", a, 16);
    load_shared(i, t, a, 16, data + 16 * row, undefined + 16 * row);
  }
  const auto pair = [&](const u8* from, u32 lane, int matrix) {
    u16 part[2];
    for (int half = 0; half < 2; ++half) {
      const u32 along = lane % 4 * 2 + half, across = lane / 4;
      const u32 row = i.mode ? along : across, column = i.mode ? across : along;
      std::memcpy(&part[half], from + 16 * (8 * matrix + row) + 2 * column, 2);
    }
    return u64(part[0]) | u64(part[1]) << 16;
  };
  for (u32 lane = 0; lane < 32; ++lane) {
    for (int k = 0; k < i.outputs; ++k) {
      set(i.out[k], first + lane, {pair(data, lane, k), pair(undefined, lane, k)}, 32);
    }
  }
}

}  // namespace ptx
