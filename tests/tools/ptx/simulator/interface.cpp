// libptx_simulator: the simulator behind functions for ctypes; machine.py calls them.
#include <algorithm>
#include <cstring>

#include "simulator.h"

using namespace ptx;

#define PTX_EXPORT extern "C" __attribute__((visibility("default")))
#define PTX_TEXT_OF(...) #__VA_ARGS__
#define PTX_TEXT(list) PTX_TEXT_OF(list)

// The names that both sides share, each list a line.
PTX_EXPORT const char* simulator_names() {
  return PTX_TEXT(PTX_OPERATIONS) "\n" PTX_TEXT(PTX_TYPES) "\n" PTX_TEXT(PTX_COMPARISONS);
}

PTX_EXPORT Simulator* simulator_new(const Instruction* code, u64 count, u64 registers) {
  return new Simulator(code, count, registers);
}
PTX_EXPORT void simulator_free(Simulator* s) { delete s; }
PTX_EXPORT void simulator_clear(Simulator* s) { s->clear(); }
PTX_EXPORT void simulator_add_symbol(Simulator* s, u64 base, u64 bytes) {
  s->add_symbol(base, bytes);
}

// rights and defined: one of each byte; nullptr: `all` holds for every byte.
PTX_EXPORT void simulator_add_buffer(Simulator* s, u64 base, u64 bytes, u8* rights, u8* defined,
                                     u8 all) {
  s->add_buffer({base, bytes, rights, defined, all, {}, {}});
}

struct Run {
  const u8* parameters;
  u64 bytes, parameter_base, limit;
  Grid grid;
  u32 seed;
  s32 ulps;
};

PTX_EXPORT void simulator_run(Simulator* s, const Run* run) {
  s->parameters.assign(run->parameters, run->parameters + run->bytes);
  s->parameter_base = run->parameter_base;
  s->approximation.ulps = run->ulps;
  s->run(run->grid, run->seed, run->limit);
}

// False behind the last finding. numbers: line, block, thread, address, bytes.
PTX_EXPORT bool simulator_finding(const Simulator* s, u64 k, s64* numbers, const char** text) {
  if (k >= s->findings.size()) return false;
  const Finding& f = s->findings[k];
  const s64 found[] = {f.line, f.block, f.thread, f.address, f.bytes};
  std::copy(std::begin(found), std::end(found), numbers);
  *text = f.text.c_str();
  return true;
}

PTX_EXPORT void simulator_counts(const Simulator* s, Counts* counts) { *counts = s->counts; }
PTX_EXPORT void simulator_hits(const Simulator* s, u64* hits) {
  std::copy(s->hits.begin(), s->hits.end(), hits);
}
