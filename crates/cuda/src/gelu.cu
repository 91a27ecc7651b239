// The exact GELU, `x · Φ(x)`, in place and in f32. A thread takes eight numbers.
#include "common.cuh"

__device__ __forceinline__ float gelu(float x) {
  return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
}

template <typename T>
__device__ void apply(T* __restrict__ x, size_t count) {
  const size_t first = (size_t(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
  if (first + 8 <= count) {
    float v[8];
    load8(x + first, v);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = gelu(v[i]);
    store8(x + first, v);
    return;
  }
  for (size_t i = first; i < count; i++) from_float(gelu(to_float(x[i])), x[i]);
}

EXPORT gelu_f32(f32* x, size_t count) { apply(x, count); }
EXPORT gelu_f16(f16* x, size_t count) { apply(x, count); }
EXPORT gelu_bf16(bf16* x, size_t count) { apply(x, count); }
