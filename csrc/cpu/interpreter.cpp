// Traced neurons on CPU, compiled once per instruction set (SNN_ISA): tiles, states, checkpoints
// and gradients of a program's call. The steps themselves are interpreter.h, or compiled ahead of
// time.
#include "interpreter.h"

namespace snn {
namespace SNN_ISA {
namespace {

constexpr int WIDEST = 2048, NARROWEST = 64;  // neurons of a tile
constexpr int ROW_BYTES = 4096;               // going back, longer ones would leave the cache
constexpr int L1_FLOATS = 1 << 13;            // that rows in use take of the L1 cache
constexpr int POOL_FLOATS = 1 << 17;          // 1,536 rows of NARROWEST, and the constants
constexpr int PROGRAM_TILE = WIDEST + LANES;

// The first slot of each kind.
struct Slots {
  int zero, x, state, dout, dstate, out, next, dx, before, sum, temporary;

  SNN_HD explicit Slots(const ProgramCode& c) {
    zero = c.constants;
    x = zero + 1;
    state = x + c.inputs;
    dout = state + c.states;
    dstate = dout + c.outputs;
    out = dstate + c.states;
    next = out + c.outputs;
    dx = next + c.states;
    before = dx + c.inputs;
    sum = before + c.states;
    temporary = sum + c.sums;
  }
};

// Rows of a sequence as floats: its own memory, or converted into a row of the pool.
template <class IO>
struct ProgramInput {
  InputRows<IO, PROGRAM_TILE> rows;

  SNN_HD const float* row(int64_t t, int n, float* converted) {
    const IO* from = rows.row(t);
    if constexpr (sizeof(IO) == sizeof(float)) return from;
    for (int j = 0; j < n; j += LANES) widen(from + j).store(converted + j);
    return converted;
  }
  // Row t, and row `ahead` on its way to the cache: at once, or by the compiled loop.
  SNN_HD Slot slot(int64_t t, int64_t ahead, int n, float* converted, bool compiled) {
    const IO* next = rows.ahead(ahead);
    const float* fetched = nullptr;
    if constexpr (sizeof(IO) == sizeof(float)) fetched = next;
    if (!compiled || !fetched) {
      for (int j = 0; j < n; j += 64 / sizeof(IO)) prefetch(next + j);
    }
    return {const_cast<float*>(row(t, n, converted)), LANES, false, fetched};
  }
};

template <class IO>
struct ProgramOutput {
  OutputRows<IO, PROGRAM_TILE> rows;
  IO* to;

  SNN_HD Slot start_row(int64_t t, float* converted) {
    to = rows.row(t);
    if constexpr (sizeof(IO) == sizeof(float)) return {to, LANES, rows.stream, nullptr};
    return {converted, LANES, false, nullptr};
  }
  SNN_HD void finish_row(int64_t t, int n, const float* converted, bool large) {
    if constexpr (sizeof(IO) != sizeof(float)) {
      for (int j = 0; j < n; j += LANES) put(to + j, Vec::load(converted + j), rows.stream);
    }
    rows.finish(t, large);
  }
};

// A sequence in the dtype of the call or in float32.
template <template <class> class Rows, class IO>
struct Either {
  Rows<IO> narrow;
  Rows<float> wide;
  bool is_wide;
  float* converted;

  template <class Function>
  SNN_HD auto with(Function f) {
    return is_wide ? f(wide) : f(narrow);
  }
};

// What forward and backward of a tile share.
template <class IO>
struct ProgramTile {
  const ProgramCall& q;
  const ProgramCode& code;
  const Walk& walk;
  const Slots at;
  const int64_t o, i0, m0, M;
  const int n, width;  // neurons, and floats of a row
  const bool large;
  const Loops loops;
  int64_t used = 0;
  Slot slots[MAX_PROGRAM_SLOTS];
  ProgramInput<IO> x[MAX_PROGRAM_SEQUENCES];
  float* x_row[MAX_PROGRAM_SEQUENCES];
  alignas(64) float pool[POOL_FLOATS];

  ProgramTile(const ProgramCall& call, int64_t outer, int64_t first, int count)
      : q(call),
        code(*call.code),
        walk(call.walk),
        at(*call.code),
        o(outer),
        i0(first),
        m0(outer * call.walk.I + first),
        M(call.walk.O * call.walk.I),
        n(count),
        width((count + LANES - 1) / LANES * LANES),
        large(past_caches<IO>(call.walk)),
        loops(code.compiled >= 0 ? compiled_loops(code.compiled) : Loops{}) {}

  SNN_HD float* take(int64_t floats) {
    float* row = pool + used;
    used += (floats + 15) / 16 * 16;
    return row;
  }
  SNN_HD void start_tile(int temporaries) {
    for (int k = 0; k <= code.constants; ++k) {
      const bool row = k < code.constants && q.constants[k].count > 1;
      float* to = take(row ? width : LANES);
      if (k == code.constants) {
        fill(to, LANES, 0.0f);
      } else if (q.constants[k].count == M && row) {
        std::memcpy(to, q.constants[k].p + m0, n * sizeof(float));
      } else {
        spread(q.constants[k], walk, m0, row ? n : LANES, to);
      }
      slots[k] = {to, row ? LANES : 0, false, to};
    }
    for (int k = 0; k < code.inputs; ++k) {
      x[k].rows.start(q.x[k], walk, o, i0, n);
      x_row[k] = sizeof(IO) == sizeof(float) ? nullptr : take(width);
    }
    for (int k = 0; k < temporaries; ++k)
      slots[at.temporary + k] = {take(width), LANES, false, nullptr};
  }
  SNN_HD void bind_inputs(int64_t t, int64_t ahead) {
    for (int k = 0; k < code.inputs; ++k) {
      slots[at.x + k] = x[k].slot(t, ahead, n, x_row[k], loops.forward);
    }
  }
  SNN_HD void bind(int first, float* const* rows, int count) {
    for (int k = 0; k < count; ++k) slots[first + k] = {rows[k], LANES, false, nullptr};
  }
  SNN_HD void load_states(float* const* to, const float* checkpoint) {
    for (int k = 0; k < code.states; ++k) {
      if (checkpoint) {
        std::memcpy(to[k], checkpoint + k * M + m0, n * sizeof(float));
      } else if (q.states[k].p) {
        std::memcpy(to[k], q.states[k].p + m0, n * sizeof(float));
      } else {
        fill(to[k], n, q.states[k].value);
      }
    }
  }
};

SNN_HD int backward_temporaries(const ProgramCode& c) {
  const int a = c.replay.temporaries, b = c.adjoint.temporaries;
  return a > b ? a : b;
}

SNN_HD void swap_rows(float** a, float** b, int count) {
  for (int k = 0; k < count; ++k) {
    float* kept = a[k];
    a[k] = b[k];
    b[k] = kept;
  }
}

template <class IO>
struct ForwardProgram : ProgramTile<IO> {
  using Tile = ProgramTile<IO>;
  using Tile::at;
  using Tile::code;
  using Tile::large;
  using Tile::n;
  using Tile::slots;
  Either<ProgramOutput, IO> out[MAX_PROGRAM_SEQUENCES];
  float *state[MAX_PROGRAM_SLOTS], *next[MAX_PROGRAM_SLOTS];

  using Tile::Tile;

  void run(const ProgramForward& a) {
    const int64_t T = this->walk.T, K = this->q.K;
    this->start_tile(code.forward.temporaries);
    for (int k = 0; k < code.outputs; ++k) {
      out[k].is_wide = a.outputs[k].wide;
      out[k].converted = this->take(this->width);
      out[k].with([&](auto& to) SNN_IN_PLACE {
        to.rows.start(a.outputs[k].at, this->walk, this->o, this->i0, n, large);
      });
    }
    for (int k = 0; k < code.states; ++k) {
      state[k] = this->take(this->width);
      next[k] = this->take(this->width);
    }
    this->load_states(state, nullptr);
    for (int64_t t = 0; t < T; ++t) {
      if (K && t && t % K == 0) save(a.checkpoints + (t / K - 1) * code.states * this->M, this->M);
      this->bind_inputs(t, smaller(t + AHEAD, T - 1));
      this->bind(at.state, state, code.states);
      this->bind(at.next, next, code.states);
      for (int k = 0; k < code.outputs; ++k) {
        slots[at.out + k] =
            out[k].with([&](auto& to) SNN_IN_PLACE { return to.start_row(t, out[k].converted); });
      }
      run_part(code.forward, this->loops.forward, slots, n);
      for (int k = 0; k < code.outputs; ++k) {
        out[k].with([&](auto& to) SNN_IN_PLACE { to.finish_row(t, n, out[k].converted, large); });
      }
      swap_rows(state, next, code.states);
    }
    for (int k = 0; k < code.states; ++k)
      std::memcpy(a.states[k] + this->m0, state[k], n * sizeof(float));
  }
  SNN_HD void save(float* to, int64_t step) {
    for (int k = 0; k < code.states; ++k)
      std::memcpy(to + k * step + this->m0, state[k], n * sizeof(float));
  }
};

template <class IO>
struct BackwardProgram : ProgramTile<IO> {
  using Tile = ProgramTile<IO>;
  using Tile::at;
  using Tile::code;
  using Tile::large;
  using Tile::n;
  using Tile::slots;
  Either<ProgramInput, IO> dout[MAX_PROGRAM_SEQUENCES];
  ProgramOutput<IO> dx[MAX_PROGRAM_SEQUENCES];
  float* dx_row[MAX_PROGRAM_SEQUENCES];
  float *tape[MAX_K][MAX_PROGRAM_SLOTS], *carried[MAX_PROGRAM_SLOTS], *before[MAX_PROGRAM_SLOTS];
  float* sum[MAX_PROGRAM_SLOTS];
  double* total[MAX_PROGRAM_SLOTS];

  using Tile::Tile;

  void run(const ProgramBackward& a) {
    const int64_t T = this->walk.T, K = this->q.K;
    this->start_tile(backward_temporaries(code));
    start(a);
    for (int64_t chunk = (T - 1) / K; chunk >= 0; --chunk) {
      const int64_t first = chunk * K, end = smaller(T, first + K);
      this->load_states(tape[0],
                        chunk ? a.checkpoints + (chunk - 1) * code.states * this->M : nullptr);
      for (int64_t t = first; t + 1 < end; ++t) {
        this->bind_inputs(t, smaller(t + AHEAD, end - 1));
        this->bind(at.state, tape[t - first], code.states);
        this->bind(at.next, tape[t - first + 1], code.states);
        run_part(code.replay, this->loops.replay, slots, n);
      }
      for (int64_t t = end - 1; t >= first; --t) adjoint(a, t, tape[t - first]);
      for (int k = 0; k < code.sums; ++k) {
        for (int j = 0; j < n; ++j) total[k][j] += sum[k][j];
        std::memset(sum[k], 0, this->width * sizeof(float));
      }
    }
    for (int k = 0; k < code.states; ++k) {
      if (a.dstates0[k]) std::memcpy(a.dstates0[k] + this->m0, carried[k], n * sizeof(float));
    }
    for (int k = 0; k < code.sums; ++k) {
      if (!a.sums[k]) continue;
      float* to = a.sums[k] + this->m0;
      for (int j = 0; j < n; ++j) to[j] = static_cast<float>(total[k][j]);
    }
  }

  SNN_HD void start(const ProgramBackward& a) {
    const int width = this->width;
    for (int k = 0; k < code.outputs; ++k) {
      dout[k].is_wide = a.doutputs[k].wide;
      dout[k].converted = this->take(width);
      if (!a.doutputs[k].at.p) fill(dout[k].converted, width, 0.0f);
      dout[k].with([&](auto& from) SNN_IN_PLACE {
        from.rows.start(a.doutputs[k].at, this->walk, this->o, this->i0, n);
      });
    }
    for (int k = 0; k < code.inputs; ++k) {
      dx[k].rows.start(a.dx[k], this->walk, this->o, this->i0, n, large);
      dx_row[k] = this->take(width);
    }
    for (int k = 0; k < code.states; ++k) {
      carried[k] = this->take(width);
      before[k] = this->take(width);
      load_row(carried[k], a.dstates[k], this->m0, n);
      for (int64_t t = 0; t < smaller(this->q.K, this->walk.T); ++t) tape[t][k] = this->take(width);
    }
    for (int k = 0; k < code.sums; ++k) {
      sum[k] = this->take(width);
      std::memset(sum[k], 0, width * sizeof(float));
      total[k] = reinterpret_cast<double*>(this->take(2 * width));
      fill(total[k], n, 0.0);
    }
    this->bind(at.sum, sum, code.sums);
  }

  SNN_HD void adjoint(const ProgramBackward& a, int64_t t, float* const* states) {
    const int64_t ahead = t < AHEAD ? 0 : t - AHEAD;
    this->bind_inputs(t, ahead);
    this->bind(at.state, states, code.states);
    this->bind(at.dstate, carried, code.states);
    this->bind(at.before, before, code.states);
    for (int k = 0; k < code.outputs; ++k) {
      if (!a.doutputs[k].at.p) {  // a whole row of zeros: compiled loops read on from its start
        slots[at.dout + k] = {dout[k].converted, LANES, false, dout[k].converted};
        continue;
      }
      slots[at.dout + k] = dout[k].with([&](auto& from) SNN_IN_PLACE {
        return from.slot(t, ahead, n, dout[k].converted, this->loops.forward);
      });
    }
    for (int k = 0; k < code.inputs; ++k)
      slots[at.dx + k] =
          a.dx[k].p ? dx[k].start_row(t, dx_row[k]) : Slot{dx_row[k], LANES, false, nullptr};
    run_part(code.adjoint, this->loops.adjoint, slots, n);
    for (int k = 0; k < code.inputs; ++k) {
      if (a.dx[k].p) dx[k].finish_row(t, n, dx_row[k], large);
    }
    swap_rows(carried, before, code.states);
  }
};

// Neurons of a tile, `widest` at most: as many as let the rows of one step stay in the L1 cache,
// where they are passed over again and again, and all rows in the pool. tape: rows that are used
// now and then.
SNN_HD int program_width(const ProgramCall& q, int hot, int tape, int widest) {
  int constants = LANES;
  for (int k = 0; k < q.code->constants; ++k) {
    if (q.constants[k].count > 1) {
      ++hot;
    } else {
      constants += LANES;
    }
  }
  const int fits = (POOL_FLOATS - constants - 16) / (hot + tape);
  const int cached = q.code->compiled >= 0 ? widest : L1_FLOATS / hot;
  const int width = smaller(smaller(fits, cached), widest) / NARROWEST * NARROWEST;
  return width > NARROWEST ? width : NARROWEST;
}

}  // namespace

void program_forward(const ProgramForward& a) {
  const ProgramCall& q = a.call;
  const ProgramCode& c = *q.code;
  const int hot = 2 * c.states + c.forward.temporaries + c.inputs + c.outputs;
  with_dtype<bf16, f16>(q.walk.dtype, [&](auto io) {
    using IO = typename decltype(io)::type;
    for_tiles(q.walk, program_width(q, hot, 0, WIDEST),
              [&](int64_t o, int64_t i0, int n) { ForwardProgram<IO>(q, o, i0, n).run(a); });
  });
}

void program_backward(const ProgramBackward& a) {
  const ProgramCall& q = a.call;
  const ProgramCode& c = *q.code;
  const int hot = 3 * c.states + backward_temporaries(c) + 2 * c.inputs + c.outputs + c.sums;
  const int tape = static_cast<int>(q.K) * c.states + 2 * c.sums;
  with_dtype<bf16, f16>(q.walk.dtype, [&](auto io) {
    using IO = typename decltype(io)::type;
    constexpr int widest = ROW_BYTES / sizeof(IO);
    for_tiles(q.walk, program_width(q, hot, tape, widest),
              [&](int64_t o, int64_t i0, int n) { BackwardProgram<IO>(q, o, i0, n).run(a); });
  });
}

}  // namespace SNN_ISA
}  // namespace snn
