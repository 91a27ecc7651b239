// Runs CUDA kernels on a CPU, to test them where there is no GPU: indices, synchronisation, the layout
// of a tensor core's operands, and what happens at the edges. It says nothing about speed.
//
// A thread of a block is a fiber. Fibers run one after another and change at barriers and at the
// operations of a warp, so a run is the same each time. A copy in the background arrives when it is
// waited for, and not before.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <limits.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static
#define EXPORT static void

using std::min;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace emulate {
// The halves: their bits, with conversions that round to even.
inline uint32_t bits(float x) {
  uint32_t b;
  memcpy(&b, &x, 4);
  return b;
}
inline float number(uint32_t b) {
  float x;
  memcpy(&x, &b, 4);
  return x;
}

struct Warp {
  int threads = 0, arrived = 0;
  uint64_t generation = 0;
  // What each lane brought to the operation at hand.
  uint32_t words[32][8];
  const void* rows[32];
  uint32_t results[32][8];
};

struct Copy {
  void* to;
  const void* from;
  bool inside;
};

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  bool done = false;
  unsigned thread = 0;
  std::vector<std::vector<Copy>> copies;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  ucontext_t scheduler;
  int current = 0, alive = 0, arrived = 0;
  uint64_t generation = 0;
  std::function<void()> body;
};

inline Block* block = nullptr;
inline dim3 thread_index, block_index, block_size, grid_size;

inline Fiber& fiber() { return block->fibers[block->current]; }
inline Warp& warp() { return block->warps[block->current / 32]; }
inline int lane() { return block->current % 32; }

inline void yield() { swapcontext(&fiber().context, &block->scheduler); }

inline void sync_block() {
  const uint64_t generation = block->generation;
  if (++block->arrived == block->alive) {
    block->arrived = 0;
    block->generation++;
    return;
  }
  while (block->generation == generation) yield();
}

// Waits for the whole warp; the last lane does the work for all.
template <typename F>
void together(F work) {
  Warp& all = warp();
  const uint64_t generation = all.generation;
  if (++all.arrived == all.threads) {
    all.arrived = 0;
    work(all);
    all.generation++;
    return;
  }
  while (all.generation == generation) yield();
}

inline void entry() {
  block->body();
  Fiber& mine = fiber();
  mine.done = true;
  block->alive--;
  warp().threads--;
  if (block->alive > 0 && block->arrived == block->alive) {
    fprintf(stderr, "a thread ended while the others wait for it\n");
    abort();
  }
  yield();
}

// Runs `body` in every thread of every block.
inline void launch(dim3 grid, unsigned threads, std::function<void()> body) {
  grid_size = grid;
  block_size = dim3{threads, 1, 1};
  Block all;
  block = &all;
  all.body = body;
  all.fibers.resize(threads);
  for (Fiber& one : all.fibers) one.stack.resize(96 << 10);
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++) {
        block_index = dim3{x, y, z};
        all.warps.assign((threads + 31) / 32, Warp());
        all.alive = int(threads);
        all.arrived = 0;
        for (unsigned t = 0; t < threads; t++) {
          Fiber& one = all.fibers[t];
          one.thread = t;
          one.done = false;
          one.copies.assign(1, {});
          all.warps[t / 32].threads++;
          getcontext(&one.context);
          one.context.uc_stack.ss_sp = one.stack.data();
          one.context.uc_stack.ss_size = one.stack.size();
          one.context.uc_link = &all.scheduler;
          makecontext(&one.context, entry, 0);
        }
        int idle = 0;
        while (all.alive > 0) {
          const int before = all.alive;
          const uint64_t progress = all.generation;
          for (unsigned t = 0; t < threads; t++) {
            if (all.fibers[t].done) continue;
            all.current = int(t);
            thread_index = dim3{t, 0, 0};
            swapcontext(&all.scheduler, &all.fibers[t].context);
          }
          idle = before == all.alive && progress == all.generation ? idle + 1 : 0;
          if (idle > 1000000) {
            fprintf(stderr, "the threads of a block wait for each other\n");
            abort();
          }
        }
      }
  block = nullptr;
}
}  // namespace emulate

struct f16 {
  uint16_t bits = 0x7e00;
};
struct bf16 {
  uint16_t bits = 0x7fc0;
};

inline float to_float(f16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, exponent = x.bits >> 10 & 31,
                 fraction = x.bits & 0x3ff;
  if (exponent == 31) return emulate::number(sign | 0x7f800000 | fraction << 13);
  const float size = exponent == 0 ? ldexpf(float(fraction), -24)
                                   : ldexpf(float(fraction | 0x400), int(exponent) - 25);
  return sign ? -size : size;
}
inline float to_float(bf16 x) { return emulate::number(uint32_t(x.bits) << 16); }

inline void from_float(float x, f16& to) {
  const uint16_t sign = uint16_t(emulate::bits(x) >> 16 & 0x8000);
  const float size = fabsf(x);
  if (isnan(x)) {
    to.bits = 0x7e00;
  } else if (size >= 65520.0f) {
    to.bits = sign | 0x7c00;
  } else {
    int exponent = 0;
    frexpf(size, &exponent);
    exponent = size == 0.0f ? -24 : std::max(exponent - 11, -24);
    // In units of the last place; rintf rounds to even.
    const uint32_t units = uint32_t(rintf(ldexpf(size, -exponent)));
    to.bits = uint16_t(sign | (uint32_t(exponent + 24) * 1024 + units));
  }
}
inline void from_float(float x, bf16& to) {
  const uint32_t b = emulate::bits(x);
  to.bits = isnan(x) ? 0x7fc0 : uint16_t((b + 0x7fff + (b >> 16 & 1)) >> 16);
}

#define threadIdx emulate::thread_index
#define blockIdx emulate::block_index
#define blockDim emulate::block_size
#define gridDim emulate::grid_size

inline void __syncthreads() { emulate::sync_block(); }
inline void __syncwarp() {
  emulate::together([](emulate::Warp&) {});
}

template <typename T>
T exchange(T x, int source) {
  const int lane = emulate::lane();
  memcpy(&emulate::warp().words[lane][0], &x, 4);
  emulate::together([](emulate::Warp& all) { memcpy(all.results, all.words, sizeof all.words); });
  T y;
  memcpy(&y, &emulate::warp().results[source][0], 4);
  // Nobody starts the next operation before all have read.
  emulate::together([](emulate::Warp&) {});
  return y;
}
template <typename T>
T __shfl_xor_sync(unsigned, T x, int mask) {
  return exchange(x, emulate::lane() ^ mask);
}
template <typename T>
T __shfl_sync(unsigned, T x, int lane) {
  return exchange(x, lane);
}

inline void copy16(void* to, const void* from, bool inside) {
  emulate::fiber().copies.back().push_back({to, from, inside});
}
inline void end_copies() { emulate::fiber().copies.emplace_back(); }
template <int N>
void wait_for_copies() {
  auto& groups = emulate::fiber().copies;
  // The last group is still open.
  while (groups.size() > N + 1) {
    for (const emulate::Copy& copy : groups.front()) {
      if (copy.inside) {
        memcpy(copy.to, copy.from, 16);
      } else {
        memset(copy.to, 0, 16);
      }
    }
    groups.erase(groups.begin());
  }
}

inline void load_matrices(uint32_t (&to)[4], const void* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
    fprintf(stderr, "ldmatrix of an address that is not aligned\n");
    abort();
  }
  emulate::warp().rows[emulate::lane()] = row;
  emulate::together([transposed](emulate::Warp& all) {
    for (int lane = 0; lane < 32; lane++) {
      for (int m = 0; m < 4; m++) {
        uint16_t pair[2];
        for (int i = 0; i < 2; i++) {
          // Lane l holds row l / 4, columns 2 (l mod 4) and the next one.
          int r = lane / 4, c = 2 * (lane % 4) + i;
          if (transposed) std::swap(r, c);
          pair[i] = static_cast<const uint16_t*>(all.rows[m * 8 + r])[c];
        }
        memcpy(&all.results[lane][m], pair, 4);
      }
    }
  });
  memcpy(to, emulate::warp().results[emulate::lane()], 16);
  emulate::together([](emulate::Warp&) {});
}
inline void load_matrices(uint32_t (&to)[4], const void* row) { load_matrices(to, row, false); }
inline void load_transposed(uint32_t (&to)[4], const void* row) { load_matrices(to, row, true); }

// mma.m16n8k16, by the tables of the PTX manual.
template <typename T>
void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, T) {
  emulate::Warp& mine = emulate::warp();
  const int lane = emulate::lane();
  memcpy(mine.words[lane], a, 16);
  mine.words[lane][4] = b0;
  mine.words[lane][5] = b1;
  emulate::together([](emulate::Warp& all) {
    float left[16][16], right[16][8];
    for (int lane = 0; lane < 32; lane++) {
      const int group = lane / 4, quad = lane % 4;
      T halves[12];
      memcpy(halves, all.words[lane], 24);
      for (int i = 0; i < 8; i++) {
        const int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
        const int column = quad * 2 + (i & 1) + (i >= 4 ? 8 : 0);
        left[row][column] = to_float(halves[i]);
      }
      for (int i = 0; i < 4; i++) {
        const int row = quad * 2 + (i & 1) + (i >= 2 ? 8 : 0);
        right[row][group] = to_float(halves[8 + i]);
      }
    }
    for (int lane = 0; lane < 32; lane++) {
      for (int i = 0; i < 4; i++) {
        const int row = lane / 4 + (i < 2 ? 0 : 8), column = lane % 4 * 2 + (i & 1);
        float sum = 0.0f;
        for (int k = 0; k < 16; k++) sum += left[row][k] * right[k][column];
        memcpy(&all.results[lane][i], &sum, 4);
      }
    }
  });
  for (int i = 0; i < 4; i++) c[i] += emulate::number(emulate::warp().results[lane][i]);
  emulate::together([](emulate::Warp&) {});
}
