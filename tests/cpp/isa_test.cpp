// The choice of the instruction set, on processors that lack one feature each.
#include <cassert>
#include <cstdio>
#include <cstring>

const char* missing = "";
#define __builtin_cpu_supports(feature) (std::strcmp(feature, missing) != 0)
#include "cpu/isa.cpp"

int main() {
  const char* const needed[][8] = {
      {"avx512", "avx512f", "avx512bw", "avx512vl", "avx512dq", "f16c", "fma"},
      {"avx2", "avx2", "f16c", "fma"},
      {"baseline"},
  };
  for (const snn::Isa& isa : snn::ISAS) {
    for (const auto& names : needed) {
      if (std::strcmp(isa.name, names[0])) continue;
      missing = "none of them";
      assert(isa.runs());
      for (int k = 1; k < 8 && names[k]; ++k) {
        missing = names[k];
        assert(!isa.runs() && "compiled for a feature that nobody asks for");
      }
    }
  }
  std::puts("every instruction set asks for the features that it is compiled for");
  return 0;
}
