// Layer normalisation of rows: `y = (x − mean) / √(variance + eps) · weight + bias`. The row stays in
// registers, so the variance is that of the differences from the mean, in f32.
#include "common.cuh"

// A warp takes a row. Grid: (rows / 4), blocks of four warps. `width` is a multiple of 8, and at most
// 256 · `VECTORS`.
template <typename T, int VECTORS>
__device__ void normalize(const T* __restrict__ x, const T* __restrict__ weight,
                          const T* __restrict__ bias, T* __restrict__ y, int rows, int width,
                          float eps) {
  const int row = blockIdx.x * 4 + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (row >= rows) return;
  const T* from = x + size_t(row) * width;
  T* to = y + size_t(row) * width;

  float v[VECTORS][8];
  float sum = 0.0f;
#pragma unroll
  for (int n = 0; n < VECTORS; n++) {
    const int column = (n * WARP + lane) * 8;
    if (column >= width) continue;
    load8(from + column, v[n]);
#pragma unroll
    for (int i = 0; i < 8; i++) sum += v[n][i];
  }
  const float mean = warp_sum(sum) / width;
  float squares = 0.0f;
#pragma unroll
  for (int n = 0; n < VECTORS; n++) {
    if ((n * WARP + lane) * 8 >= width) continue;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      v[n][i] -= mean;
      squares += v[n][i] * v[n][i];
    }
  }
  const float factor = 1.0f / sqrtf(warp_sum(squares) / width + eps);
#pragma unroll
  for (int n = 0; n < VECTORS; n++) {
    const int column = (n * WARP + lane) * 8;
    if (column >= width) continue;
    float w[8], b[8];
    load8(weight + column, w);
    load8(bias + column, b);
#pragma unroll
    for (int i = 0; i < 8; i++) v[n][i] = v[n][i] * factor * w[i] + b[i];
    store8(to + column, v[n]);
  }
}

#define LAYER_NORM(TYPE)                                                                        \
  EXPORT __launch_bounds__(128)                                                                 \
      layer_norm_##TYPE##_1024(const TYPE* x, const TYPE* weight, const TYPE* bias, TYPE* y,    \
                               int rows, int width, float eps) {                                \
    normalize<TYPE, 4>(x, weight, bias, y, rows, width, eps);                                   \
  }                                                                                             \
  EXPORT __launch_bounds__(128)                                                                 \
      layer_norm_##TYPE##_2048(const TYPE* x, const TYPE* weight, const TYPE* bias, TYPE* y,    \
                               int rows, int width, float eps) {                                \
    normalize<TYPE, 8>(x, weight, bias, y, rows, width, eps);                                   \
  }

LAYER_NORM(f32)
LAYER_NORM(f16)
LAYER_NORM(bf16)
