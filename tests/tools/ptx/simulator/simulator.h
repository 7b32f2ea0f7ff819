// A functional simulator of PTX thread blocks. It knows nothing of any product: it takes decoded
// instructions (decoder.py), buffers with shadow bytes, parameters and a grid, and runs them.
//
// Threads run one after the other, each up to its next synchronisation, in an order drawn from a
// seed: what the program does not order is in no order. Every register bit and every memory byte
// knows whether it is defined. An undefined bit may be computed with, but not stored to global
// memory, used as an address or branched on. Every access is checked against the buffers, their
// rights, alignment, and for races.
#pragma once

#include <string>
#include <vector>

#include "arithmetic.h"
#include "instruction.h"

namespace ptx {

constexpr u32 NOBODY = 0xffffffffu, SEVERAL = 0xffffffffu;
enum Right : u8 { READ = 1, WRITE = 2 };

// Memory of the launch's arguments, at its own address on the host.
struct Buffer {
  u64 base, bytes;
  u8* rights;   // of each byte; nullptr: `all` holds for every byte, and there is no shadow
  u8* defined;  // each byte: the host gave it a value, or the kernel did
  u8 all;
  std::vector<u32> writer, reader;  // thread + 1; 0: none
};

struct Symbol {  // a variable in shared memory
  u64 base, bytes;
};

// When a thread touched a byte of shared memory.
struct Access {
  u32 thread = NOBODY, barriers = 0, warp_barriers = 0;
};
struct SharedByte {
  u8 value = 0, undefined = 0xff;
  bool pending = false;  // an asynchronous copy to it is not complete
  Access write, read, other_read;
};

struct Copy {  // cp.async
  u64 to, from;
  int bytes;
};

enum class Waits { NOT, FOR_BLOCK, FOR_WARP, ENDED };

struct Thread {
  std::vector<Value> registers;
  size_t pc = 0;
  Waits waits = Waits::NOT;
  u32 barriers = 0, warp_barriers = 0;
  std::vector<std::vector<Copy>> copies{1};  // groups, the open one last
  u64 barrier = 0, executed = 0;
};

struct Finding {
  s64 line, block, thread, address, bytes;
  std::string text;
};

struct Counts {
  u64 instructions, global_loads, global_stores, shared_accesses, equal_stores;
};

struct Grid {
  u32 size[3], threads;
  u32 first, last;  // blocks that run
};

class Simulator {
 public:
  Simulator(const Instruction* code, size_t count, size_t registers)
      : code(code, code + count), hits(count), registers_(registers) {}

  void clear();
  void add_symbol(u64 base, u64 bytes);
  void add_buffer(Buffer buffer);
  void run(const Grid& grid, u32 seed, u64 limit);

  std::vector<Instruction> code;
  std::vector<u64> hits;  // of each instruction, over all launches
  std::vector<Finding> findings;
  Counts counts{};
  std::vector<u8> parameters;
  u64 parameter_base = 0;
  Approximation approximation;

 private:
  // block.cpp: the threads of a block, and their warps
  void run_block();
  bool pass_barrier();
  bool run_warp(u32 first);
  bool warp_is_there(u32 first, u32 t, u32 mask);
  void shuffle(const Instruction& i, u32 first, u32 mask);
  void vote(const Instruction& i, u32 first, u32 mask);
  void load_matrices(const Instruction& i, u32 first);
  u32 random();
  bool takes_part(u32 first, u32 lane, u32 mask) const;

  // execute.cpp: one thread
  void run_thread(u32 t);
  bool guard_holds(const Instruction& i, u32 t);
  bool control(const Instruction& i, u32 t);
  void execute(const Instruction& i, u32 t);
  void move(const Instruction& i, u32 t);
  void load(const Instruction& i, u32 t);
  void store(const Instruction& i, u32 t);
  void compute(const Instruction& i, u32 t);
  void select(const Instruction& i, u32 t);
  void set_predicate(const Instruction& i, u32 t);
  void convert_value(const Instruction& i, u32 t);
  u64 special(s64 which, u32 t) const;
  Value value(const Operand& operand, u32 t) const;
  void set(const Operand& operand, u32 t, Value value, int bits);

  // memory.cpp
  Buffer* find(u64 address, u64 bytes);
  bool in_symbol(u64 address, u64 bytes) const;
  void load_parameter(const Instruction& i, u32 t, u64 a, int n, u8* out, u8* undefined);
  void load_global(const Instruction& i, u32 t, u64 a, int n, u8* out, u8* undefined);
  void store_global(const Instruction& i, u32 t, u64 a, int n, const u8* in, const u8* undefined);
  void load_shared(const Instruction& i, u32 t, u64 a, int n, u8* out, u8* undefined);
  void store_shared(const Instruction& i, u32 t, u64 a, int n, const u8* in, const u8* undefined);
  void copy_async(const Instruction& i, u32 t, u64 to, u64 from, int n);
  void complete_copies(const Instruction& i, u32 t, size_t keep);
  bool ordered(const Access& before, u32 t) const;
  void note_read(const Instruction& i, u32 t, u64 a, SharedByte& byte);
  void note_write(const Instruction& i, u32 t, u64 a, SharedByte& byte, int value);
  Access now(u32 t) const { return {t, threads_[t].barriers, threads_[t].warp_barriers}; }
  SharedByte& shared(u64 address) { return shared_[address - shared_base_]; }

  void report(const Instruction& i, u32 t, const char* text, u64 address = 0, u64 bytes = 0);

  size_t registers_;
  std::vector<Buffer> buffers_;
  std::vector<Symbol> symbols_;
  std::vector<Thread> threads_;
  std::vector<SharedByte> shared_;
  u64 shared_base_ = 0, random_ = 0, limit_ = 0;
  Grid grid_{};
  u32 block_ = 0;
};

}  // namespace ptx
