// Compares the kernels, run by the emulator, with sums in double precision.
#define CUTLINE_EMULATED
#include "../src/attention.cu"
#define attend attend_step
#define store store_step
#include "../src/step.cu"
#undef attend
#undef store
#include "../src/best.cu"
#include "../src/gelu.cu"
#include "../src/layer_norm.cu"
#include "../src/softmax.cu"

#include <random>

static std::mt19937 generator(7);
static int failures = 0;

template <typename T>
struct Numbers {
  // Aligned as the driver aligns memory.
  T* data;
  size_t size;
  explicit Numbers(size_t size) : data(static_cast<T*>(aligned_alloc(256, (size * sizeof(T) + 511) / 256 * 256))), size(size) {
    for (size_t i = 0; i < size; i++) data[i] = T();
  }
  ~Numbers() { free(data); }
  Numbers(const Numbers&) = delete;
  void random(float spread) {
    std::normal_distribution<float> normal(0.0f, spread);
    for (size_t i = 0; i < size; i++) from_float(normal(generator), data[i]);
  }
  double operator[](size_t i) const { return to_float(data[i]); }
};

template <typename T>
const char* name();
template <>
const char* name<float>() { return "f32"; }
template <>
const char* name<f16>() { return "f16"; }
template <>
const char* name<bf16>() { return "bf16"; }

template <typename T>
double tolerance() { return sizeof(T) == 4 ? 1e-5 : std::is_same<T, f16>::value ? 2e-3 : 1.6e-2; }

static void check(const char* what, double worst, double allowed) {
  const bool good = worst <= allowed;  // false for NaN
  failures += !good;
  printf("%s %-48s %.1e of %.1e\n", good ? "ok  " : "FAIL", what, worst, allowed);
}

static double far(double worst, double ours, double expected) {
  const double difference = fabs(ours - expected);
  return difference <= worst ? worst : difference;  // NaN wins
}

static unsigned blocks(int all, int each) { return unsigned((all + each - 1) / each); }

template <typename T, typename Kernel>
void test_attention(Kernel kernel, int images, int tokens, int heads, int width) {
  const size_t hidden = size_t(heads) * width;
  Numbers<T> qkv(images * tokens * 3 * hidden), out(images * tokens * hidden);
  qkv.random(1.5f);
  const float scale = 1.0f / sqrtf(float(width));
  const bool full = sizeof(T) == 4;
  emulate::launch(dim3{blocks(tokens, full ? 16 : 64), unsigned(heads), unsigned(images)}, full ? 512 : 128,
                  [&] { kernel(qkv.data, out.data, tokens, heads, width, scale); });
  double worst = 0.0;
  std::vector<double> p(tokens);
  for (int n = 0; n < images; n++)
    for (int h = 0; h < heads; h++)
      for (int q = 0; q < tokens; q += tokens > 100 ? 7 : 1) {
        auto at = [&](int token, int part) { return ((size_t(n) * tokens + token) * 3 + part) * hidden + size_t(h) * width; };
        double greatest = -1e300, sum = 0.0;
        for (int k = 0; k < tokens; k++) {
          p[k] = 0.0;
          for (int c = 0; c < width; c++) p[k] += qkv[at(q, 0) + c] * qkv[at(k, 1) + c] * scale;
          greatest = std::max(greatest, p[k]);
        }
        for (double& x : p) sum += x = exp(x - greatest);
        for (int c = 0; c < width; c++) {
          double y = 0.0;
          for (int k = 0; k < tokens; k++) y += p[k] / sum * qkv[at(k, 2) + c];
          worst = far(worst, out[(size_t(n) * tokens + q) * hidden + size_t(h) * width + c], y);
        }
      }
  char what[100];
  snprintf(what, sizeof what, "attention %s, %d x %d tokens, %d x %d", name<T>(), images, tokens, heads, width);
  check(what, worst, 2 * tolerance<T>());
}

template <typename T, typename Kernel>
void test_layer_norm(Kernel kernel, int rows, int width) {
  Numbers<T> x(size_t(rows) * width), weight(width), bias(width), y(size_t(rows) * width);
  x.random(3.0f), weight.random(1.0f), bias.random(1.0f);
  const float eps = 1e-5f;
  emulate::launch(dim3{blocks(rows, 4), 1, 1}, 128, [&] { kernel(x.data, weight.data, bias.data, y.data, rows, width, eps); });
  double worst = 0.0;
  for (int r = 0; r < rows; r++) {
    double mean = 0.0, variance = 0.0;
    for (int c = 0; c < width; c++) mean += x[r * width + c] / width;
    for (int c = 0; c < width; c++) variance += pow(x[r * width + c] - mean, 2) / width;
    for (int c = 0; c < width; c++) {
      const double expected = (x[r * width + c] - mean) / sqrt(variance + eps) * weight[c] + bias[c];
      worst = far(worst, y[r * width + c], expected);
    }
  }
  char what[100];
  snprintf(what, sizeof what, "layer norm %s, %d x %d", name<T>(), rows, width);
  check(what, worst, 3 * tolerance<T>());
}

template <typename T, typename Kernel>
void test_gelu(Kernel kernel, size_t count) {
  Numbers<T> x(count), before(count);
  x.random(2.0f);
  memcpy(before.data, x.data, count * sizeof(T));
  emulate::launch(dim3{blocks(int(count), 64 * 8), 1, 1}, 64, [&] { kernel(x.data, count); });
  double worst = 0.0;
  for (size_t i = 0; i < count; i++) worst = far(worst, x[i], before[i] * 0.5 * erfc(-before[i] / sqrt(2.0)));
  char what[100];
  snprintf(what, sizeof what, "gelu %s, %zu", name<T>(), count);
  check(what, worst, 3 * tolerance<T>());
}

template <typename T, typename Store, typename Attend>
void test_step(Store store, Attend attend, int rows, int heads, int capacity, int width) {
  const size_t hidden = size_t(heads) * width;
  Numbers<T> qkv(rows * 3 * hidden), cache(rows * 2 * capacity * hidden), before(cache.size), out(rows * hidden);
  qkv.random(0.7f);
  cache.random(1.0f);
  memcpy(before.data, cache.data, cache.size * sizeof(T));
  std::vector<uint32_t> positions(rows);
  for (int r = 0; r < rows; r++) positions[r] = r % 4 == 3 ? UINT32_MAX : (r * 13 + 5) % capacity;
  emulate::launch(dim3{3, 1, 1}, 96, [&] { store(qkv.data, positions.data(), cache.data, rows, heads, capacity, width); });
  emulate::launch(dim3{blocks(rows * heads, 4), 1, 1}, 128, [&] { attend(qkv.data, positions.data(), cache.data, out.data, rows, heads, capacity, width); });
  double worst = 0.0;
  for (int r = 0; r < rows; r++)
    for (int h = 0; h < heads; h++) {
      const size_t head = size_t(r) * heads + h;
      auto at = [&](int part, int position) { return ((head * 2 + part) * capacity + position) * width; };
      const bool token = positions[r] < uint32_t(capacity);
      for (int part = 0; part < 2; part++)
        for (int p = 0; p < capacity; p++)
          for (int c = 0; c < width; c++) {
            const bool is_new = token && uint32_t(p) == positions[r];
            const double expected = is_new ? qkv[(head * 3 + 1 + part) * width + c] : before[at(part, p) + c];
            worst = far(worst, cache[at(part, p) + c], expected);
          }
      std::vector<double> p(token ? positions[r] + 1 : 0);
      double sum = 0.0;
      for (size_t k = 0; k < p.size(); k++) {
        double score = 0.0;
        for (int c = 0; c < width; c++) score += qkv[head * 3 * width + c] * cache[at(0, int(k)) + c];
        sum += p[k] = exp(score);
      }
      for (int c = 0; c < width; c++) {
        double y = 0.0;
        for (size_t k = 0; k < p.size(); k++) y += p[k] / sum * cache[at(1, int(k)) + c];
        worst = far(worst, out[head * width + c], y);
      }
    }
  char what[100];
  snprintf(what, sizeof what, "step %s, %d rows, %d x %d, %d places", name<T>(), rows, heads, width, capacity);
  check(what, worst, 2 * tolerance<T>());
}

template <typename T, typename Kernel>
void test_softmax(Kernel kernel, int rows, int width, int pitch) {
  Numbers<float> x(size_t(rows) * pitch);
  Numbers<T> y(x.size);
  x.random(3.0f);
  emulate::launch(dim3{blocks(rows, 4), 1, 1}, 128, [&] { kernel(x.data, y.data, rows, width, pitch); });
  double worst = 0.0;
  for (int r = 0; r < rows; r++) {
    const float* row = x.data + size_t(r) * pitch;
    double sum = 0.0;
    for (int c = 0; c < width; c++) sum += exp(double(row[c]));
    for (int c = 0; c < width; c++) worst = far(worst, y[size_t(r) * pitch + c], exp(double(row[c])) / sum);
  }
  char what[100];
  snprintf(what, sizeof what, "softmax %s, %d x %d of %d", name<T>(), rows, width, pitch);
  check(what, worst, tolerance<T>());
}

static void test_best(int rows, int length, int count, int threads) {
  Numbers<float> x(size_t(rows) * length), out(size_t(rows) * (2 * count + 2));
  x.random(4.0f);
  // Many equal ones.
  for (size_t i = 0; i < x.size; i++) x.data[i] = roundf(x.data[i] * 4.0f) / 4.0f;
  if (rows > 2) x.data[length + length / 2] = NAN, x.data[2 * length + length - 1] = INFINITY;
  emulate::launch(dim3{unsigned(rows), 1, 1}, threads, [&] { best_f32(x.data, out.data, length, count); });
  double worst = 0.0;
  for (int r = 0; r < rows; r++) {
    const float* to = out.data + r * (2 * count + 2);
    const bool finite = rows <= 2 || r == 0 || r > 2;
    if (isnan(to[2 * count + 1]) == finite) worst = NAN;
    if (!finite) continue;
    std::vector<int> order(length);
    for (int i = 0; i < length; i++) order[i] = i;
    const float* row = x.data + size_t(r) * length;
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return row[a] > row[b]; });
    double sum = 0.0;
    for (int i = 0; i < length; i++) sum += exp(double(row[i]) - row[order[0]]);
    worst = far(worst, to[2 * count] / sum, 1.0);
    for (int n = 0; n < count; n++) {
      worst = far(worst, to[n], order[n]);
      worst = far(worst, to[count + n], row[order[n]]);
    }
  }
  char what[100];
  snprintf(what, sizeof what, "best %d of %d, %d rows", count, length, rows);
  check(what, worst, 1e-5);
}

int main() {
  for (int tokens : {1, 15, 64, 65, 145}) test_attention<f16>(attention_f16_64, 2, tokens, 2, 64);
  test_attention<f16>(attention_f16_64, 1, 577, 1, 64);
  test_attention<bf16>(attention_bf16_64, 1, 100, 2, 64);
  test_attention<f16>(attention_f16_64, 1, 70, 3, 40);
  test_attention<f16>(attention_f16_32, 2, 50, 3, 32);
  test_attention<bf16>(attention_bf16_32, 1, 129, 2, 16);
  test_attention<f16>(attention_f16_96, 1, 75, 2, 96);
  test_attention<bf16>(attention_bf16_96, 1, 33, 2, 80);
  test_attention<f16>(attention_f16_128, 1, 97, 2, 128);
  test_attention<bf16>(attention_bf16_128, 1, 31, 1, 104);
  for (int width : {8, 64, 80, 128}) test_attention<float>(attention_f32, 2, 37, 2, width);
  for (int width : {8, 768, 1024}) {
    test_layer_norm<float>(layer_norm_f32_1024, 5, width);
    test_layer_norm<f16>(layer_norm_f16_1024, 5, width);
    test_layer_norm<bf16>(layer_norm_bf16_1024, 5, width);
  }
  for (int width : {1032, 2048}) {
    test_layer_norm<float>(layer_norm_f32_2048, 2, width);
    test_layer_norm<f16>(layer_norm_f16_2048, 2, width);
    test_layer_norm<bf16>(layer_norm_bf16_2048, 2, width);
  }
  for (size_t count : {size_t(1), size_t(512), size_t(1029)}) {
    test_gelu<float>(gelu_f32, count);
    test_gelu<f16>(gelu_f16, count);
    test_gelu<bf16>(gelu_bf16, count);
  }
  for (int width : {8, 64, 128}) {
    test_step<float>(step_store_f32, step_attend_f32, 5, 3, 40, width);
    test_step<f16>(step_store_f16, step_attend_f16, 5, 3, 40, width);
    test_step<bf16>(step_store_bf16, step_attend_bf16, 5, 3, 70, width);
  }
  test_softmax<float>(softmax_f32, 6, 577, 580);
  test_softmax<f16>(softmax_f16, 6, 577, 584);
  test_softmax<bf16>(softmax_bf16, 6, 5, 8);
  test_best(4, 3000, 4, 1024);
  test_best(4, 700, 32, 1024);
  test_best(1, 3, 3, 1024);
  test_best(4, 500, 500, 128);
  if (failures > 0) {
    printf("%d tests failed\n", failures);
    return 1;
  }
  printf("all kernels are right\n");
  return 0;
}
