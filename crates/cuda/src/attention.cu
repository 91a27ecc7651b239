// Softmax attention over all tokens of an image, from packed queries, keys and values:
// `qkv` is [images, tokens, 3, heads, width], `out` is [images, tokens, heads, width].
//
// Scores and softmax are in f32; nothing but `out` is written to memory. f16 and bf16 run on tensor
// cores, f32 on ordinary ones.
#include "common.cuh"

// log2(e): exp2 is an instruction, exp is not.
constexpr float LOG2E = 1.4426950408889634f;

// A block of four warps takes 64 queries of one head, a warp 16 of them. Keys and values pass through
// shared memory in tiles; while one is used, the next is copied. `D` is `width`, rounded up.
//
// Grid: (tokens / 64, heads, images). `width` is a multiple of 8, and `qkv` aligned to 16 bytes.
template <typename T, int D>
__device__ void attend(const T* __restrict__ qkv, T* __restrict__ out, int tokens, int heads,
                       int width, float scale) {
  constexpr int KEYS = D <= 64 ? 64 : 32;
  // Eight more than needed, so that the eight rows of a matrix lie in different banks.
  constexpr int STRIDE = D + 8;
  alignas(16) __shared__ T keys[2][KEYS * STRIDE];
  alignas(16) __shared__ T values[2][KEYS * STRIDE];

  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  // A lane holds parts of the rows `group` and `group` + 8 of a matrix product's result.
  const int group = lane / 4, quad = lane % 4;
  const int first = blockIdx.x * 64 + warp * 16;
  const bool active = first < tokens;
  const size_t row = 3 * size_t(heads) * width;
  const T* image = qkv + blockIdx.z * size_t(tokens) * row + size_t(blockIdx.y) * width;
  const size_t to_keys = size_t(heads) * width, to_values = 2 * to_keys;

  uint32_t q[D / 16][4];
#pragma unroll
  for (int k = 0; k < D / 16; k++) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int token = first + group + (i & 1) * 8, column = k * 16 + 2 * quad + (i >> 1) * 8;
      const bool inside = token < tokens && column < width;
      q[k][i] = inside ? *reinterpret_cast<const uint32_t*>(image + token * row + column) : 0u;
    }
  }

  auto copy_tile = [&](int tile) {
    const int stage = tile % 2;
    for (int i = threadIdx.x; i < KEYS * (D / 8); i += 4 * WARP) {
      const int key = i / (D / 8), column = i % (D / 8) * 8, token = tile * KEYS + key;
      const bool inside = token < tokens && column < width;
      const T* from = inside ? image + token * row + column : image;
      copy16(&keys[stage][key * STRIDE + column], from + to_keys, inside);
      copy16(&values[stage][key * STRIDE + column], from + to_values, inside);
    }
    end_copies();
  };

  float o[D / 8][4] = {};
  float greatest[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
  const float factor = scale * LOG2E;
  const int tiles = (tokens + KEYS - 1) / KEYS;
  copy_tile(0);
  for (int tile = 0; tile < tiles; tile++) {
    if (tile + 1 < tiles) {
      copy_tile(tile + 1);
      wait_for_copies<1>();
    } else {
      wait_for_copies<0>();
    }
    __syncthreads();
    if (active) {
      const T* k_tile = keys[tile % 2];
      const T* v_tile = values[tile % 2];
      // Keys of this tile; those behind are zeros.
      const int count = min(KEYS, tokens - tile * KEYS);

      float s[KEYS / 8][4] = {};
#pragma unroll
      for (int j = 0; j < KEYS / 16; j++) {
        if (j * 16 >= count) break;
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
          uint32_t b[4];
          const int key = j * 16 + lane / 16 * 8 + lane % 8;
          load_matrices(b, &k_tile[key * STRIDE + k * 16 + lane / 8 % 2 * 8]);
          multiply(s[2 * j], q[k], b[0], b[1], T());
          multiply(s[2 * j + 1], q[k], b[2], b[3], T());
        }
      }

      float now[2] = {greatest[0], greatest[1]};
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const bool inside = j * 8 + 2 * quad + (i & 1) < count;
          s[j][i] = inside ? s[j][i] * factor : -INFINITY;
          now[i >> 1] = fmaxf(now[i >> 1], s[j][i]);
        }
      }
      float correction[2];
#pragma unroll
      for (int r = 0; r < 2; r++) {
        now[r] = fmaxf(now[r], __shfl_xor_sync(0xffffffffu, now[r], 1));
        now[r] = fmaxf(now[r], __shfl_xor_sync(0xffffffffu, now[r], 2));
        correction[r] = exp2f(greatest[r] - now[r]);
        greatest[r] = now[r];
        sum[r] *= correction[r];
      }
#pragma unroll
      for (int n = 0; n < D / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) o[n][i] *= correction[i >> 1];
      }
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          s[j][i] = exp2f(s[j][i] - now[i >> 1]);
          sum[i >> 1] += s[j][i];
        }
      }

#pragma unroll
      for (int j = 0; j < KEYS / 16; j++) {
        if (j * 16 >= count) break;
        // The result of one product is laid out as the left side of the next.
        const uint32_t p[4] = {pack<T>(s[2 * j][0], s[2 * j][1]), pack<T>(s[2 * j][2], s[2 * j][3]),
                               pack<T>(s[2 * j + 1][0], s[2 * j + 1][1]),
                               pack<T>(s[2 * j + 1][2], s[2 * j + 1][3])};
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
          uint32_t b[4];
          load_transposed(b, &v_tile[(j * 16 + lane % 16) * STRIDE + n * 16 + lane / 16 * 8]);
          multiply(o[2 * n], p, b[0], b[1], T());
          multiply(o[2 * n + 1], p, b[2], b[3], T());
        }
      }
    }
    __syncthreads();
  }
  if (!active) return;

#pragma unroll
  for (int r = 0; r < 2; r++) {
    sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
    sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
    const int token = first + group + r * 8;
    if (token >= tokens) continue;
    const float inverse = 1.0f / sum[r];
    T* to = out + ((blockIdx.z * size_t(tokens) + token) * heads + blockIdx.y) * width;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
      const int column = n * 8 + 2 * quad;
      if (column < width) {
        *reinterpret_cast<uint32_t*>(to + column) =
            pack<T>(o[n][2 * r] * inverse, o[n][2 * r + 1] * inverse);
      }
    }
  }
}

#define ATTENTION(TYPE, D)                                                                     \
  EXPORT __launch_bounds__(128) attention_##TYPE##_##D(const TYPE* qkv, TYPE* out, int tokens, \
                                                       int heads, int width, float scale) {    \
    attend<TYPE, D>(qkv, out, tokens, heads, width, scale);                                    \
  }

ATTENTION(f16, 32)
ATTENTION(f16, 64)
ATTENTION(f16, 96)
ATTENTION(f16, 128)
ATTENTION(bf16, 32)
ATTENTION(bf16, 64)
ATTENTION(bf16, 96)
ATTENTION(bf16, 128)

// In f32: a block of 16 warps takes as many queries of one head. In a tile of 32 keys a lane takes one
// key for the scores, and every 32nd column for the result.
//
// Grid: (tokens / 16, heads, images). `width` is at most 128.
EXPORT __launch_bounds__(512)
    attention_f32(const float* qkv, float* out, int tokens, int heads, int width, float scale) {
  constexpr int QUERIES = 16, MAX_WIDTH = 128;
  // One more than the width, so that the lanes read from different banks.
  constexpr int STRIDE = MAX_WIDTH + 1;
  __shared__ float queries[QUERIES * MAX_WIDTH];
  __shared__ float keys[WARP * STRIDE];
  __shared__ float values[WARP * STRIDE];

  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int first = blockIdx.x * QUERIES;
  const size_t row = 3 * size_t(heads) * width;
  const float* image = qkv + blockIdx.z * size_t(tokens) * row + size_t(blockIdx.y) * width;
  const size_t to_keys = size_t(heads) * width, to_values = 2 * to_keys;

  for (int i = threadIdx.x; i < QUERIES * width; i += QUERIES * WARP) {
    const int query = i / width, column = i % width;
    const bool inside = first + query < tokens;
    queries[query * MAX_WIDTH + column] = inside ? image[(first + query) * row + column] * scale : 0.0f;
  }
  float o[MAX_WIDTH / WARP] = {};
  float greatest = -INFINITY, sum = 0.0f;
  for (int tile = 0; tile < tokens; tile += WARP) {
    const int count = min(WARP, tokens - tile);
    __syncthreads();
    for (int i = threadIdx.x; i < count * width; i += QUERIES * WARP) {
      const int key = i / width, column = i % width;
      const float* from = image + (tile + key) * row + column;
      keys[key * STRIDE + column] = from[to_keys];
      values[key * STRIDE + column] = from[to_values];
    }
    __syncthreads();
    float score = -INFINITY;
    if (lane < count) {
      score = 0.0f;
      for (int c = 0; c < width; c++) score += queries[warp * MAX_WIDTH + c] * keys[lane * STRIDE + c];
    }
    const float now = fmaxf(greatest, warp_max(score));
    const float correction = expf(greatest - now), p = expf(score - now);
    greatest = now;
    sum = sum * correction + warp_sum(p);
#pragma unroll
    for (int i = 0; i < MAX_WIDTH / WARP; i++) o[i] *= correction;
    for (int key = 0; key < count; key++) {
      const float weight = __shfl_sync(0xffffffffu, p, key);
#pragma unroll
      for (int i = 0; i < MAX_WIDTH / WARP; i++) {
        const int column = lane + i * WARP;
        if (column < width) o[i] += weight * values[key * STRIDE + column];
      }
    }
  }
  const int token = first + warp;
  if (token >= tokens) return;
  float* to = out + ((blockIdx.z * size_t(tokens) + token) * heads + blockIdx.y) * width;
#pragma unroll
  for (int i = 0; i < MAX_WIDTH / WARP; i++) {
    const int column = lane + i * WARP;
    if (column < width) to[column] = o[i] / sum;
  }
}
