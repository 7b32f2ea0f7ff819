// Batch norm with statistics of their own at every step, compiled once per instruction set
// (SNN_ISA). A group of steps that fits the caches is worked on by all threads at a time, each with
// its rows of every step, so that what the first pass over them reads the next ones find there.
//
// Products are fused into sums where PyTorch's own batch norm does so on the same machine: its bits
// are what the forward pass is asked for.
#include "cpu_tile.h"

namespace snn {
namespace SNN_ISA {
namespace {

constexpr size_t LARGE_BYTES = size_t(1) << 22;
constexpr int64_t GROUP_BYTES = 1 << 18;  // of one thread's rows of one tensor

// a * b + c, rounded once where the machine can.
SNN_HD Vec fused(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a.v, b.v, c.v);
#elif defined(__AVX2__) && defined(__FMA__)
  return _mm256_fmadd_ps(a.v, b.v, c.v);
#else
  return a * b + c;
#endif
}
SNN_HD float fused(float a, float b, float c) {
#if defined(__FMA__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

SNN_HD void load(Vec& a, const float* p) { a = Vec::load(p); }
SNN_HD void load(float& a, const float* p) { a = *p; }
SNN_HD void store(Vec a, float* p, bool stream = false) { put(p, a, stream); }
SNN_HD void store(float a, float* p, bool = false) { *p = a; }

// Whether an output goes past the caches: it is larger than they are, and its vectors are aligned.
bool streams(const Bntt& q, const float* to) {
  constexpr size_t STEP = LANES * sizeof(float);
  return q.T * q.rows * q.C * sizeof(float) > LARGE_BYTES && q.C % LANES == 0 &&
         reinterpret_cast<uintptr_t>(to) % STEP == 0;
}

// body(c, value) for all channels c; value is as many of them as are taken at once.
template <class Body>
SNN_HD void for_channels(int64_t C, Body body) {
  int64_t c = 0;
  for (; c + LANES <= C; c += LANES) body(c, Vec(0.0f));
  for (; c < C; ++c) body(c, 0.0f);
}

// sums[c] = sum over rows of x, or of (x - mean)^2 where there is a mean.
void sum_rows(const float* x, const float* mean, int64_t rows, int64_t C, float* sums) {
  for_channels(C, [&](int64_t c, auto sum) SNN_IN_PLACE {
    auto a = sum, centre = sum;
    if (mean) load(centre, mean + c);
    for (int64_t r = 0; r < rows; ++r) {
      load(a, x + r * C + c);
      if (mean) {
        const auto d = a - centre;
        sum = fused(d, d, sum);
      } else {
        sum = sum + a;
      }
    }
    store(sum, sums + c);
  });
}

// out = x * factor + shift
void scale_rows(const float* x, const float* factor, const float* shift, int64_t rows, int64_t C,
                float* out, bool stream) {
  for_channels(C, [&](int64_t c, auto a) SNN_IN_PLACE {
    auto by = a, plus = a;
    load(by, factor + c);
    load(plus, shift + c);
    for (int64_t r = 0; r < rows; ++r) {
      load(a, x + r * C + c);
      store(fused(a, by, plus), out + r * C + c, stream);
    }
  });
}

// sums[c] = sum over rows of g, more[c] = sum over rows of g (kept - centre).
void sum_gradient_rows(const float* g, const float* kept, const float* centre, int64_t rows,
                       int64_t C, float* sums, float* more) {
  for_channels(C, [&](int64_t c, auto sum) SNN_IN_PLACE {
    auto a = sum, b = sum, mid = sum, along = sum;
    if (centre) load(mid, centre + c);
    for (int64_t r = 0; r < rows; ++r) {
      load(a, g + r * C + c);
      load(b, kept + r * C + c);
      sum = sum + a;
      along = fused(a, b - mid, along);
    }
    store(sum, sums + c);
    store(along, more + c);
  });
}

// dx = by g + along (kept - centre) + plus
void gradient_rows(const float* g, const float* kept, const float* centre, const float* by,
                   const float* along, const float* plus, int64_t rows, int64_t C, float* dx,
                   bool stream) {
  for_channels(C, [&](int64_t c, auto a) SNN_IN_PLACE {
    auto b = a, mid = a, k0 = a, k1 = a, k2 = a;
    if (centre) load(mid, centre + c);
    load(k0, by + c);
    load(k1, along + c);
    load(k2, plus + c);
    for (int64_t r = 0; r < rows; ++r) {
      load(a, g + r * C + c);
      load(b, kept + r * C + c);
      store(fused(k0, a, fused(k1, b - mid, k2)), dx + r * C + c, stream);
    }
  });
}

// The sum of channel c over the parts of one step.
SNN_HD double sum_of(const float* parts, int64_t count, int64_t C, int64_t c) {
  double sum = 0;
  for (int64_t p = 0; p < count; ++p) sum += parts[p * C + c];
  return sum;
}

// body(t, where the part begins in step t, its rows, where its sums lie), all parts of some steps.
template <class Body>
void for_parts(const Bntt& q, int64_t t0, int64_t t1, Body body) {
  const int64_t count = q.parts();
#pragma omp for schedule(static)
  for (int64_t p = 0; p < count; ++p) {
    const int64_t r0 = p * q.part_rows, r1 = smaller(q.rows, r0 + q.part_rows);
    for (int64_t t = t0; t < t1; ++t) body(t, r0 * q.C, r1 - r0, (t * count + p) * q.C);
  }
}

// body(t, c, index of both).
template <class Body>
void for_sums(const Bntt& q, int64_t t0, int64_t t1, Body body) {
#pragma omp for schedule(static)
  for (int64_t t = t0; t < t1; ++t) {
    for (int64_t c = 0; c < q.C; ++c) body(t, c, t * q.C + c);
  }
}

template <class Body>
void for_groups(const Bntt& q, Body body) {
  constexpr int64_t SMALL = 1 << 15;  // values that are not worth a second thread
  const int64_t step = q.rows * q.C;
  const int threads = q.T * step <= SMALL ? 1 : q.threads;
  const int64_t fit = GROUP_BYTES * threads / (step * sizeof(float) + 1), group = fit > 1 ? fit : 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    for (int64_t t0 = 0; t0 < q.T; t0 += group) body(t0, smaller(q.T, t0 + group));
    fence_streams();
  }
}

}  // namespace

void bntt_forward(const BnttForward& a) {
  const Bntt& q = a.problem;
  const int64_t count = q.parts(), C = q.C, step = q.rows * C;
  float *sums = q.scratch, *factor = sums + q.T * count * C, *shift = factor + q.T * C;
  const bool stream = streams(q, a.out);
  for_groups(q, [&](int64_t t0, int64_t t1) {
    for_parts(q, t0, t1, [&](int64_t t, int64_t from, int64_t rows, int64_t to) {
      sum_rows(a.x + t * a.x_time + from, nullptr, rows, C, sums + to);
    });
    for_sums(q, t0, t1, [&](int64_t t, int64_t c, int64_t k) {
      a.mean[k] = static_cast<float>(sum_of(sums + t * count * C, count, C, c) / q.rows);
    });
    for_parts(q, t0, t1, [&](int64_t t, int64_t from, int64_t rows, int64_t to) {
      sum_rows(a.x + t * a.x_time + from, a.mean + t * C, rows, C, sums + to);
    });
    for_sums(q, t0, t1, [&](int64_t t, int64_t c, int64_t k) {
      const float squares = static_cast<float>(sum_of(sums + t * count * C, count, C, c));
      const float variance = squares / static_cast<float>(q.rows);
      a.rstd[k] = static_cast<float>(1 / __builtin_sqrt(variance + a.eps));
      factor[k] = a.rstd[k] * q.weight[k];
      shift[k] = -a.mean[k] * factor[k];
    });
    for_parts(q, t0, t1, [&](int64_t t, int64_t from, int64_t rows, int64_t) {
      scale_rows(a.x + t * a.x_time + from, factor + t * C, shift + t * C, rows, C,
                 a.out + t * step + from, stream);
    });
  });
}

void bntt_backward(const BnttBackward& a) {
  const Bntt& q = a.problem;
  const int64_t count = q.parts(), C = q.C, step = q.rows * C;
  float *sums = q.scratch, *more = sums + q.T * count * C;
  float *by = more + q.T * count * C, *along = by + q.T * C, *plus = along + q.T * C;
  const bool stream = streams(q, a.dx);
  for_groups(q, [&](int64_t t0, int64_t t1) {
    for_parts(q, t0, t1, [&](int64_t t, int64_t from, int64_t rows, int64_t to) {
      sum_gradient_rows(a.dout + t * a.dout_time + from, a.kept + t * a.kept_time + from,
                        a.mean ? a.mean + t * C : nullptr, rows, C, sums + to, more + to);
    });
    for_sums(q, t0, t1, [&](int64_t t, int64_t c, int64_t k) {
      const double sum = sum_of(sums + t * count * C, count, C, c);
      // The normalised value is factor (kept - mean).
      const double factor = a.mean ? a.rstd[k] : 1.0 / q.weight[k];
      const double total = factor * sum_of(more + t * count * C, count, C, c);
      const double scale = double(q.weight[k]) * a.rstd[k];
      a.dweight[k] = static_cast<float>(total);
      by[k] = static_cast<float>(scale);
      along[k] = static_cast<float>(-scale * factor * total / q.rows);
      plus[k] = static_cast<float>(-scale * sum / q.rows);
    });
    for_parts(q, t0, t1, [&](int64_t t, int64_t from, int64_t rows, int64_t) {
      gradient_rows(a.dout + t * a.dout_time + from, a.kept + t * a.kept_time + from,
                    a.mean ? a.mean + t * C : nullptr, by + t * C, along + t * C, plus + t * C,
                    rows, C, a.dx + t * step + from, stream);
    });
  });
}

}  // namespace SNN_ISA
}  // namespace snn
