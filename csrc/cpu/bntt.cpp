// Batch norm with statistics of their own at every step, compiled once per instruction set
// (SNN_ISA). A group of steps that fits the caches is worked on by all threads at a time, each with
// its rows of every step, so that what the first pass over them reads the next ones find there.
//
// Products are fused into sums where PyTorch's own batch norm does so on the same machine: its bits
// are what the forward pass is asked for.
#include <omp.h>

#include "tile.h"

namespace snn {
namespace SNN_ISA {
namespace {

constexpr size_t LARGE_BYTES = size_t(1) << 22;
constexpr int SUMS = 4;                   // over rows, at once
constexpr int64_t GROUP_BYTES = 1 << 19;  // that one thread reads again

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

// One part of the rows of one step: its first value in that step, and where its sums lie.
struct Part {
  int64_t t, from, sums;
};

// N parts with as many rows. A sum over rows waits at every row for its last addition, so those of
// several parts go on at once.
template <int N>
struct Parts {
  Part at[N];
  int64_t rows, C;
};

// sums[c] = sum over rows of x, or of (x - mean)^2 where there is a mean, in each of the parts.
template <int N>
void sum_rows(const Parts<N>& parts, const float* x, int64_t x_time, const float* mean,
              float* sums) {
  const int64_t C = parts.C;
  for_channels(C, [&](int64_t c, auto zero) SNN_IN_PLACE {
    decltype(zero) a, centre[N], sum[N];
    const float* from[N];
    for (int n = 0; n < N; ++n) {
      const auto [t, first, to] = parts.at[n];
      from[n] = x + t * x_time + first + c;
      sum[n] = centre[n] = zero;
      if (mean) load(centre[n], mean + t * C + c);
    }
    for (int64_t r = 0; r < parts.rows; ++r) {
      for (int n = 0; n < N; ++n) {
        load(a, from[n] + r * C);
        if (mean) {
          a = a - centre[n];
          sum[n] = fused(a, a, sum[n]);
        } else {
          sum[n] = sum[n] + a;
        }
      }
    }
    for (int n = 0; n < N; ++n) store(sum[n], sums + parts.at[n].sums + c);
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

// sums[c] = sum over rows of g, more[c] = sum over rows of g (kept - centre), in each of the parts.
template <int N>
void sum_gradient_rows(const Parts<N>& parts, const float* g, int64_t g_time, const float* kept,
                       int64_t kept_time, const float* centre, float* sums, float* more) {
  const int64_t C = parts.C;
  for_channels(C, [&](int64_t c, auto zero) SNN_IN_PLACE {
    decltype(zero) a, b, mid[N], sum[N], along[N];
    const float *from_g[N], *from_kept[N];
    for (int n = 0; n < N; ++n) {
      const auto [t, first, to] = parts.at[n];
      from_g[n] = g + t * g_time + first + c;
      from_kept[n] = kept + t * kept_time + first + c;
      mid[n] = sum[n] = along[n] = zero;
      if (centre) load(mid[n], centre + t * C + c);
    }
    for (int64_t r = 0; r < parts.rows; ++r) {
      for (int n = 0; n < N; ++n) {
        load(a, from_g[n] + r * C);
        load(b, from_kept[n] + r * C);
        sum[n] = sum[n] + a;
        along[n] = fused(a, b - mid[n], along[n]);
      }
    }
    for (int n = 0; n < N; ++n) {
      store(sum[n], sums + parts.at[n].sums + c);
      store(along[n], more + parts.at[n].sums + c);
    }
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

// Threads that work on the same steps, and one of them. Every thread is a team of its own where
// there are steps for all of them: it then waits for no other.
struct Team {
  int64_t t0, t1;  // its steps
  int64_t index, size;

  Team(int64_t T, int thread, int threads) {
    const int64_t rounds = (T + threads - 1) / threads;
    const bool alone = 4 * rounds * threads <= 5 * T;  // threads idle for a fifth of it at most
    t0 = alone ? T * thread / threads : 0;
    t1 = alone ? T * (thread + 1) / threads : T;
    index = alone ? 0 : thread;
    size = alone ? 1 : threads;
  }

  // body(first, end) with this thread's share of 0 to count; all of the team have then done theirs.
  template <class Body>
  void share(int64_t count, Body body) const {
    body(count * index / size, count * (index + 1) / size);
    if (size > 1) {
#pragma omp barrier
    }
  }
};

// Some steps of a team.
struct Group {
  const Bntt& q;
  const Team& team;
  int64_t t0, t1;

  // body(Parts) for all parts of these steps, N at a time where as many have the same rows.
  template <int N, class Body>
  void for_parts(Body body) const {
    const int64_t count = q.parts(), rest = q.rows - (count - 1) * q.part_rows;
    const auto rows = [&](int64_t k) { return k % count < count - 1 ? q.part_rows : rest; };
    const auto part = [&](int64_t k) {
      const int64_t t = t0 + k / count, p = k % count;
      return Part{t, p * q.part_rows * q.C, (t * count + p) * q.C};
    };
    team.share((t1 - t0) * count, [&](int64_t k, int64_t end) {
      while (k < end) {
        Parts<N> many{{}, rows(k), q.C};
        int n = 0;
        for (; n < N && k + n < end && rows(k + n) == many.rows; ++n) many.at[n] = part(k + n);
        if (n == N) {
          body(many);
        } else {
          for (int i = 0; i < n; ++i) body(Parts<1>{{many.at[i]}, many.rows, q.C});
        }
        k += n;
      }
    });
  }

  // body(t, c, index of both) for all channels of these steps.
  template <class Body>
  void for_sums(Body body) const {
    team.share((t1 - t0) * q.C, [&](int64_t k, int64_t end) {
      for (k += t0 * q.C, end += t0 * q.C; k < end; ++k) body(k / q.C, k % q.C, k);
    });
  }
};

// body(Group) for all steps, as many at a time as fit the caches with this many tensors read.
template <class Body>
void for_groups(const Bntt& q, int tensors, Body body) {
  constexpr int64_t SMALL = 1 << 15;  // values that are not worth a second thread
  const int64_t step = q.rows * q.C;
  const int threads = q.T * step <= SMALL ? 1 : q.threads;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Team team(q.T, omp_get_thread_num(), omp_get_num_threads());
    const int64_t fit = GROUP_BYTES * team.size / (tensors * step * sizeof(float) + 1);
    const int64_t group = fit > 1 ? fit : 1;
    for (int64_t t = team.t0; t < team.t1; t += group) {
      body(Group{q, team, t, smaller(team.t1, t + group)});
    }
    fence_streams();
  }
}

}  // namespace

void bntt_forward(const BnttForward& a) {
  const Bntt& q = a.problem;
  const int64_t count = q.parts(), C = q.C, step = q.rows * C;
  float *sums = q.scratch, *factor = sums + q.T * count * C, *shift = factor + q.T * C;
  const bool stream = streams(q, a.out);
  for_groups(q, 1, [&](const Group& group) {
    const auto sum = [&](const float* mean) {
      group.for_parts<SUMS>([&](const auto& parts) { sum_rows(parts, a.x, a.x_time, mean, sums); });
    };
    sum(nullptr);
    group.for_sums([&](int64_t t, int64_t c, int64_t k) {
      a.mean[k] = static_cast<float>(sum_of(sums + t * count * C, count, C, c) / q.rows);
    });
    sum(a.mean);
    group.for_sums([&](int64_t t, int64_t c, int64_t k) {
      const float squares = static_cast<float>(sum_of(sums + t * count * C, count, C, c));
      const float variance = squares / static_cast<float>(q.rows);
      a.rstd[k] = static_cast<float>(1 / __builtin_sqrt(variance + a.eps));
      factor[k] = a.rstd[k] * q.weight[k];
      shift[k] = -a.mean[k] * factor[k];
    });
    group.for_parts<1>([&](const Parts<1>& parts) {
      const auto [t, from, to] = parts.at[0];
      scale_rows(a.x + t * a.x_time + from, factor + t * C, shift + t * C, parts.rows, C,
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
  for_groups(q, 2, [&](const Group& group) {
    group.for_parts<SUMS>([&](const auto& parts) {
      sum_gradient_rows(parts, a.dout, a.dout_time, a.kept, a.kept_time, a.mean, sums, more);
    });
    group.for_sums([&](int64_t t, int64_t c, int64_t k) {
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
    group.for_parts<1>([&](const Parts<1>& parts) {
      const auto [t, from, to] = parts.at[0];
      gradient_rows(a.dout + t * a.dout_time + from, a.kept + t * a.kept_time + from,
                    a.mean ? a.mean + t * C : nullptr, by + t * C, along + t * C, plus + t * C,
                    parts.rows, C, a.dx + t * step + from, stream);
    });
  });
}

}  // namespace SNN_ISA
}  // namespace snn
