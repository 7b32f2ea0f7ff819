// The time loop on CUDA for few neurons and many steps.
//
// One warp owns 32 * VEC neurons and a ring of stages in shared memory, RING_STEPS steps each, that
// it fills 16 bytes at a time and far ahead: few threads would not keep enough loads in flight in
// their registers. Every row is aligned to 16 bytes.
#pragma once

#include "neuron_kernels.cuh"

namespace snn {
namespace cuda {

template <class IO, int VEC>
struct RingTile {
  static constexpr int ROW = 32 * VEC * int(sizeof(IO));  // bytes
  static constexpr int PARTS = ROW / 16, AT_ONCE = 32 / PARTS;
  char* global;  // this lane's part of step 0
  Int step;
  int shared;  // where it goes in a stage
  bool inside;

  SNN_DEVICE RingTile(const Rows& a, const Call& q, const Place& tile, int lane) {
    const int part = lane % PARTS * 16, row = lane / PARTS;
    step = a.time * Int(sizeof(IO));
    global = address<IO>(a, tile) + part + row * step;
    shared = row * ROW + part;
    inside = tile.i * Int(sizeof(IO)) + part < q.I * Int(sizeof(IO));
  }
  // Steps t0 ... t0 + RING_STEPS - 1, as far as there are any.
  SNN_DEVICE void fetch(char* stage, int t0, int T, int lane) const {
    const char* p = global + t0 * step;
#pragma unroll
    for (int k = 0; k < RING_STEPS; k += AT_ONCE) {
      if (inside && t0 + k + lane / PARTS < T) copy_async(stage + shared + k * ROW, p);
      p += AT_ONCE * step;
    }
  }
};

SNN_DEVICE Place ring_tile(const Call& a, int width) {
  const Int tiles = (a.I + width - 1) / width;
  Place tile;
  tile.o = blockIdx.x / tiles;
  tile.i = (blockIdx.x - tile.o * tiles) * width;
  tile.m = tile.o * a.I + tile.i;
  return tile;
}

template <class IO, Reset R, int VEC, int STAGES>
__global__ void __launch_bounds__(32, 16) neuron_fwd_ring_kernel(const __grid_constant__ Call a) {
  using Tile = RingTile<IO, VEC>;
  alignas(16) __shared__ char ring[STAGES][RING_STEPS * Tile::ROW];
  const int lane = threadIdx.x;
  const Place tile = ring_tile(a, 32 * VEC),
              at = {tile.o, tile.i + lane * VEC, tile.m + lane * VEC};
  const bool inside = at.i < a.I;
  const Tile x(a.x, a, tile, lane);
  const Coefficients<VEC, Level::plain> q(a, at.m);
  State<R, VEC, Level::plain> state;
  state.start(a, q, at.m, inside);
  const Int M = a.O * a.I, s_step = a.s.time * Int(sizeof(IO));
  char* s = address<IO>(a.s, at);
  float* checkpoint = a.checkpoints + at.m;

#pragma unroll 1
  for (int c = 0; c < STAGES - 1; ++c) {
    x.fetch(ring[c], c * RING_STEPS, a.T, lane);
    commit_copies();
  }
  int slot = 0;
  for (int t0 = 0; t0 < a.T; t0 += RING_STEPS) {
    wait_copies<STAGES - 2>();
    __syncwarp();  // all lanes see this stage and are done with the one before
    const int free_slot = slot == 0 ? STAGES - 1 : slot - 1;
    x.fetch(ring[free_slot], t0 + (STAGES - 1) * RING_STEPS, a.T, lane);
    commit_copies();
    if (inside) {
      if (t0 && a.K) state.save(a, q, M, checkpoint);
      Pack<IO, VEC> now[RING_STEPS];
#pragma unroll
      for (int k = 0; k < RING_STEPS; ++k) {
        now[k] = Pack<IO, VEC>::load(ring[slot] + k * Tile::ROW + lane * int(sizeof(IO)) * VEC);
      }
#pragma unroll
      for (int k = 0; k < RING_STEPS; ++k) {
        if (t0 + k < a.T) {
          float h[VEC];
          forward_step<IO>(q, now[k], state, h).store(s);
          s += s_step;
        }
      }
    }
    slot = slot == STAGES - 1 ? 0 : slot + 1;
  }
  if (inside) state.finish(a, q, at.m);
}

// A stage holds x and ds of one chunk and the state before it. K is RING_STEPS.
template <class IO, Reset R, bool DETACH, int VEC, int STAGES>
__global__ void __launch_bounds__(32, 16) neuron_bwd_ring_kernel(const __grid_constant__ Call a) {
  using Tile = RingTile<IO, VEC>;
  constexpr int K = RING_STEPS, STREAM = K * Tile::ROW, STATE = 32 * VEC * 4;
  alignas(16) __shared__ char ring[STAGES][2 * STREAM + STATE];
  const int lane = threadIdx.x;
  const Place tile = ring_tile(a, 32 * VEC),
              at = {tile.o, tile.i + lane * VEC, tile.m + lane * VEC};
  const bool inside = at.i < a.I;
  const Tile x(a.x, a, tile, lane), ds(a.ds, a, tile, lane);
  const Coefficients<VEC, Level::plain> q(a, at.m);
  State<R, VEC, Level::plain> state0, state;
  state0.start(a, q, at.m, inside);
  state = state0;
  typename NeuronSums<VEC, Level::plain>::Room room;
  Adjoint<VEC, Level::plain> to(a, at.m, room, inside);
  const int last = (a.T - 1) / K;
  const Int M = a.O * a.I, dx_step = K * a.dx.time * Int(sizeof(IO));
  char* dx = address<IO>(a.dx, at) + last * dx_step;
  const bool holds_state = lane * 4 < 32 * VEC && tile.i + lane * 4 < a.I;

  const auto fetch = [&](int slot, int c) {
    if (c < 0) return;
    x.fetch(ring[slot], c * K, a.T, lane);
    ds.fetch(ring[slot] + STREAM, c * K, a.T, lane);
    if (c && holds_state) {
      copy_async(ring[slot] + 2 * STREAM + lane * 16,
                 a.checkpoints + (c - 1) * M + tile.m + lane * 4);
    }
  };
#pragma unroll 1
  for (int c = 0; c < STAGES - 1; ++c) {
    fetch(c, last - c);
    commit_copies();
  }
  int slot = 0;
  for (int c = last; c >= 0; --c) {
    wait_copies<STAGES - 2>();
    __syncwarp();  // all lanes see this stage and are done with the one before
    fetch(slot == 0 ? STAGES - 1 : slot - 1, c - (STAGES - 1));
    commit_copies();
    if (inside) {
      const char* mine = ring[slot] + lane * int(sizeof(IO)) * VEC;
      Pack<IO, VEC> x_steps[K], ds_steps[K];
#pragma unroll
      for (int k = 0; k < K; ++k) {
        x_steps[k] = Pack<IO, VEC>::load(mine + k * Tile::ROW);
        ds_steps[k] = Pack<IO, VEC>::load(mine + STREAM + k * Tile::ROW);
      }
      if (c) {
        load_row(state.v, reinterpret_cast<const float*>(ring[slot] + 2 * STREAM) + lane * VEC);
      } else {
        state = state0;
      }
      const int n = c == last ? a.T - c * K : K;
      backward_chunk<IO, R, DETACH>(a, q, at.m, n, a.T - c * K - n, c != last || a.dv, x_steps,
                                    ds_steps, nullptr, dx, state, to);
      dx -= dx_step;
    }
    slot = slot == STAGES - 1 ? 0 : slot + 1;
  }
  if (inside) to.finish(a, q, at.m);
}

}  // namespace cuda
}  // namespace snn
