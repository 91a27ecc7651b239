// The greatest numbers of a row, and what the probabilities of all of them need.
//
// `x` is [rows, length]. `out` is [rows, 2 · count + 2]: the indices of the greatest numbers in
// descending order, of equal ones the first; the numbers; Σ exp(x − greatest); and 0, or NaN if a
// number of the row is not finite. Indices are exact in f32 up to 2²⁴.
#include "common.cuh"

struct Best {
  float value;
  int index;
};

// Whether `a` comes before `b`.
__device__ __forceinline__ bool before(Best a, Best b) {
  return a.value > b.value || (a.value == b.value && a.index < b.index);
}

__device__ __forceinline__ Best warp_best(Best best) {
#pragma unroll
  for (int offset = WARP / 2; offset > 0; offset /= 2) {
    const Best other = {__shfl_xor_sync(0xffffffffu, best.value, offset),
                        __shfl_xor_sync(0xffffffffu, best.index, offset)};
    if (before(other, best)) best = other;
  }
  return best;
}

// A block of 1,024 threads takes a row. Each thread keeps the best of every 1,024th number; the thread
// whose number was taken looks for its next one. Grid: (rows). `count` is at most `length`.
EXPORT __launch_bounds__(1024) best_f32(const float* x, float* out, int length, int count) {
  __shared__ Best bests[WARP];
  __shared__ float sums[WARP];
  __shared__ int finite;
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int warps = blockDim.x / WARP;
  const float* row = x + size_t(blockIdx.x) * length;
  float* to = out + size_t(blockIdx.x) * (2 * count + 2);
  if (threadIdx.x == 0) finite = 1;
  __syncthreads();

  // The first number behind `last` in the order, among those of this thread.
  auto next = [&](Best last) {
    Best best = {-INFINITY, INT_MAX};
    for (int i = threadIdx.x; i < length; i += blockDim.x) {
      const Best one = {row[i], i};
      if (before(last, one) && before(one, best)) best = one;
    }
    return best;
  };
  for (int i = threadIdx.x; i < length; i += blockDim.x) {
    if (!isfinite(row[i])) finite = 0;
  }
  Best mine = next({INFINITY, -1});
  float greatest = 0.0f;
  for (int n = 0; n < count; n++) {
    const Best of_warp = warp_best(mine);
    if (lane == 0) bests[warp] = of_warp;
    __syncthreads();
    const Best best = warp_best(lane < warps ? bests[lane] : Best{-INFINITY, INT_MAX});
    if (n == 0) greatest = best.value;
    if (threadIdx.x == 0) {
      to[n] = float(best.index);
      to[count + n] = best.value;
    }
    if (best.index == mine.index) mine = next(best);
    __syncthreads();
  }

  float sum = 0.0f;
  for (int i = threadIdx.x; i < length; i += blockDim.x) sum += expf(row[i] - greatest);
  sum = warp_sum(sum);
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    float all = 0.0f;
    for (int i = 0; i < warps; i++) all += sums[i];
    to[2 * count] = all;
    to[2 * count + 1] = finite ? 0.0f : NAN;
  }
}
