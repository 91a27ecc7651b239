// The self-attention of a decoding step. `qkv` is [rows, heads, 3, width]: one new token a row. `cache`
// is [rows, heads, 2, capacity, width], keys and then values. `positions` says for each row where its
// token is; a row with a number behind the cache has no token.
#include "common.cuh"


// Writes the new keys and values into the cache. A thread takes one number.
template <typename T>
__device__ void store(const T* __restrict__ qkv, const uint32_t* __restrict__ positions,
                      T* __restrict__ cache, int rows, int heads, int capacity, int width) {
  const int pair = 2 * width, all = rows * heads * pair;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < all; i += gridDim.x * blockDim.x) {
    const int head = i / pair, part = i % pair / width, column = i % width;
    const uint32_t position = positions[head / heads];
    if (position >= uint32_t(capacity)) continue;
    const size_t line = (size_t(head) * 2 + part) * capacity + position;
    cache[line * width + column] = qkv[(size_t(head) * 3 + 1 + part) * width + column];
  }
}

// Attends to the positions up to the row's own, which is in the cache already. `out` is
// [rows, heads, width]; zeros for a row without token. A warp takes a head of a row; a lane takes a key
// for the scores, and every 32nd column for the result. The queries are scaled already.
//
// Grid: (rows · heads / 4), blocks of four warps. `width` is a multiple of 8, and at most 128.
template <typename T>
__device__ void attend(const T* __restrict__ qkv, const uint32_t* __restrict__ positions,
                       const T* __restrict__ cache, T* __restrict__ out, int rows, int heads,
                       int capacity, int width) {
  constexpr int MAX_WIDTH = 128;
  __shared__ float queries[4][MAX_WIDTH];
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int head = blockIdx.x * 4 + warp;
  if (head >= rows * heads) return;
  const uint32_t position = positions[head / heads];
  const int count = position < uint32_t(capacity) ? int(position) + 1 : 0;
  for (int c = lane; c < width; c += WARP) {
    queries[warp][c] = to_float(qkv[size_t(head) * 3 * width + c]);
  }
  __syncwarp();

  const T* keys = cache + size_t(head) * 2 * capacity * width;
  const T* values = keys + size_t(capacity) * width;
  float o[MAX_WIDTH / WARP] = {};
  float greatest = -INFINITY, sum = 0.0f;
  for (int tile = 0; tile < count; tile += WARP) {
    const int some = min(WARP, count - tile);
    float score = -INFINITY;
    if (lane < some) {
      score = 0.0f;
      for (int c = 0; c < width; c += 8) {
        float k[8];
        load8(keys + size_t(tile + lane) * width + c, k);
#pragma unroll
        for (int i = 0; i < 8; i++) score += queries[warp][c + i] * k[i];
      }
    }
    const float now = fmaxf(greatest, warp_max(score));
    const float correction = expf(greatest - now), p = expf(score - now);
    greatest = now;
    sum = sum * correction + warp_sum(p);
#pragma unroll
    for (int i = 0; i < MAX_WIDTH / WARP; i++) o[i] *= correction;
    for (int key = 0; key < some; key++) {
      const float weight = __shfl_sync(0xffffffffu, p, key);
#pragma unroll
      for (int i = 0; i < MAX_WIDTH / WARP; i++) {
        const int column = lane + i * WARP;
        if (column < width) o[i] += weight * to_float(values[size_t(tile + key) * width + column]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < MAX_WIDTH / WARP; i++) {
    const int column = lane + i * WARP;
    if (column < width) from_float(count == 0 ? 0.0f : o[i] / sum, out[size_t(head) * width + column]);
  }
}

#define STEP(TYPE)                                                                               \
  EXPORT step_store_##TYPE(const TYPE* qkv, const uint32_t* positions, TYPE* cache, int rows,    \
                           int heads, int capacity, int width) {                                 \
    store(qkv, positions, cache, rows, heads, capacity, width);                                  \
  }                                                                                              \
  EXPORT __launch_bounds__(128)                                                                  \
      step_attend_##TYPE(const TYPE* qkv, const uint32_t* positions, const TYPE* cache,          \
                         TYPE* out, int rows, int heads, int capacity, int width) {              \
    attend(qkv, positions, cache, out, rows, heads, capacity, width);                            \
  }

STEP(f32)
STEP(f16)
STEP(bf16)
