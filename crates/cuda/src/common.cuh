// What the kernels share: number formats, vectors of eight, and sums over a warp.
//
// With CUTLINE_EMULATED a C++ compiler compiles the kernels for a CPU; see emulator/.
#pragma once

#ifdef CUTLINE_EMULATED
#include "emulate.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

using f16 = __half;
using bf16 = __nv_bfloat16;

#define EXPORT extern "C" __global__ void

__device__ __forceinline__ float to_float(f16 x) { return __half2float(x); }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void from_float(float x, f16& to) { to = __float2half_rn(x); }
__device__ __forceinline__ void from_float(float x, bf16& to) { to = __float2bfloat16_rn(x); }

// Copies 16 bytes to shared memory in the background, or zeros if they are not `inside`.
__device__ __forceinline__ void copy16(void* to, const void* from, bool inside) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  const int bytes = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `N` of this thread's groups of copies are under way.
template <int N>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Loads four matrices of 8 × 8 halves; each lane gives the address of one row.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

// The same, each matrix transposed.
__device__ __forceinline__ void load_transposed(uint32_t (&to)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

// c += a b on a tensor core: [16 × 16] · [16 × 8]. `tag` only names the type of the halves.
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1, f16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1, bf16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

using f32 = float;

constexpr int WARP = 32;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ void from_float(float x, float& to) { to = x; }

// Eight numbers, moved 16 bytes at a time.
template <typename T>
struct alignas(16) Eight {
  T at[8];
};

template <typename T>
__device__ __forceinline__ void load8(const T* from, float (&to)[8]) {
  const Eight<T> some = *reinterpret_cast<const Eight<T>*>(from);
#pragma unroll
  for (int i = 0; i < 8; i++) to[i] = to_float(some.at[i]);
}

template <typename T>
__device__ __forceinline__ void store8(T* to, const float (&from)[8]) {
  Eight<T> some;
#pragma unroll
  for (int i = 0; i < 8; i++) from_float(from[i], some.at[i]);
  *reinterpret_cast<Eight<T>*>(to) = some;
}

// Two halves in a register, `low` first in memory.
template <typename T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  T halves[2];
  from_float(low, halves[0]);
  from_float(high, halves[1]);
  uint32_t both;
  memcpy(&both, halves, 4);
  return both;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int offset = WARP / 2; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  }
  return x;
}
