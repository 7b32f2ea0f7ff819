// BNTT on CPU against scalar loops in float64, on odd sizes, for every instruction set of this
// machine. Run under ASan and UBSan: every buffer is exactly as large as it must be.
#include <cassert>
#include <cmath>
#include <cstdio>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "snncore.h"

namespace {

using namespace snn;
using Floats = std::vector<float>;

constexpr float NaN = std::numeric_limits<float>::quiet_NaN();
constexpr double EPS = 1e-4;

struct Random {
  uint64_t state = 1;
  float operator()() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(state >> 40) / (1 << 23) - 1.0f;
  }
};

Floats random(size_t size, Random& next, float scale = 1.0f, float shift = 0.0f) {
  Floats all(size);
  for (float& a : all) a = shift + scale * next();
  return all;
}

void close(float got, double want, double size) {
  assert(std::fabs(got - want) <= 2e-5 * (size + std::fabs(want)));
}

struct Case {
  int64_t T, rows, C, part_rows, gap;  // gap: elements between two steps; -1: all are the same
  int threads;
  bool from_output;
};

void check(const Case& a) {
  Random next;
  const int64_t step = a.rows * a.C, time = a.gap < 0 ? 0 : step + a.gap;
  const int64_t parts = (a.rows + a.part_rows - 1) / a.part_rows;
  const Floats x = random((a.T - 1) * time + step, next, 2.0f, 0.5f);
  const Floats g = random((a.T - 1) * (step + 3) + step, next);
  const Floats weight = random(a.T * a.C, next, 0.25f, 1.0f);
  Floats forward_scratch(a.T * (parts + 2) * a.C, NaN);
  Floats backward_scratch(a.T * (2 * parts + 3) * a.C, NaN);
  Floats out(a.T * step, NaN), mean(a.T * a.C, NaN), rstd = mean, dweight = mean, dx = out;
  Bntt problem{a.T, a.rows, a.C, a.part_rows, weight.data(), forward_scratch.data(), a.threads};
  bntt_forward({problem, EPS, x.data(), time, out.data(), mean.data(), rstd.data()});
  problem.scratch = backward_scratch.data();
  bntt_backward({problem, g.data(), step + 3, a.from_output ? out.data() : x.data(),
                 a.from_output ? step : time, a.from_output ? nullptr : mean.data(), rstd.data(),
                 dx.data(), dweight.data()});

  for (int64_t t = 0; t < a.T; ++t) {
    for (int64_t c = 0; c < a.C; ++c) {
      double sum = 0, squares = 0, sum_g = 0, along = 0;
      for (int64_t r = 0; r < a.rows; ++r) sum += x[t * time + r * a.C + c];
      const double centre = sum / a.rows;
      for (int64_t r = 0; r < a.rows; ++r) {
        const double d = x[t * time + r * a.C + c] - centre;
        squares += d * d;
      }
      const double by = 1 / std::sqrt(squares / a.rows + EPS), w = weight[t * a.C + c];
      close(mean[t * a.C + c], centre, 1);
      close(rstd[t * a.C + c], by, 1);
      for (int64_t r = 0; r < a.rows; ++r) {
        const double normal = (x[t * time + r * a.C + c] - centre) * by;
        sum_g += g[t * (step + 3) + r * a.C + c];
        along += g[t * (step + 3) + r * a.C + c] * normal;
        close(out[t * step + r * a.C + c], w * normal, 1);
      }
      close(dweight[t * a.C + c], along, a.rows);
      for (int64_t r = 0; r < a.rows; ++r) {
        const double normal = (x[t * time + r * a.C + c] - centre) * by;
        const double d = g[t * (step + 3) + r * a.C + c] - sum_g / a.rows - normal * along / a.rows;
        close(dx[t * step + r * a.C + c], w * by * d, w * by);
      }
    }
  }
}

}  // namespace

int main() {
  std::istringstream names(available_isas());
  int runs = 0;
  for (std::string name; names >> name;) {
    assert(use_isa(name.c_str()));
    for (int64_t C : {1, 3, 16, 21, 64}) {
      for (int64_t rows : {2, 9, 700}) {
        for (int threads : {1, 3}) {
          check({5, rows, C, (rows + threads - 1) / threads, 7, threads, rows % 2 == 0});
          check({1, rows, C, 256, 0, threads, true});
        }
      }
    }
    check({40, 1024, 32, 512, 0, 2, true});  // outputs past the caches, several groups of steps
    check({4, 3000, 64, 1000, 0, 3, true});  // too few steps for a thread each: they share each one
    check({4, 50, 16, 25, -1, 2, false});
    ++runs;
  }
  std::printf("%d instruction sets agree\n", runs);
}
