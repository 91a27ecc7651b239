// Softmax of the rows of attention scores: from f32 to the type of what they are multiplied with.
#include "common.cuh"

// A warp takes a row; rows are `pitch` numbers apart. Grid: (rows / 4), blocks of four warps.
template <typename T>
__device__ void normalize_scores(const float* __restrict__ x, T* __restrict__ y, int rows, int width,
                                 int pitch) {
  const int row = blockIdx.x * 4 + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (row >= rows) return;
  const float* from = x + size_t(row) * pitch;
  T* to = y + size_t(row) * pitch;
  float greatest = -INFINITY, sum = 0.0f;
  for (int i = lane; i < width; i += WARP) greatest = fmaxf(greatest, from[i]);
  greatest = warp_max(greatest);
  for (int i = lane; i < width; i += WARP) sum += expf(from[i] - greatest);
  sum = warp_sum(sum);
  for (int i = lane; i < width; i += WARP) from_float(expf(from[i] - greatest) / sum, to[i]);
}

#define SOFTMAX(TYPE)                                                                     \
  EXPORT __launch_bounds__(128)                                                           \
      softmax_##TYPE(const float* x, TYPE* y, int rows, int width, int pitch) {           \
    normalize_scores(x, y, rows, width, pitch);                                           \
  }

SOFTMAX(f32)
SOFTMAX(f16)
SOFTMAX(bf16)
