// Programs that are compiled ahead of time, once per instruction set (SNN_ISA).
#include "program_loops.h"

namespace snn {
namespace SNN_ISA {
namespace {

#define SNN_PROGRAM_LOOPS
#include "programs.h"

}  // namespace

const Loops& compiled_loops(int program) { return LOOPS[program]; }

}  // namespace SNN_ISA
}  // namespace snn
