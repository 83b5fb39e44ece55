// A row of logits becomes tokens: the best one, or draws from a distribution (octavo.h tells which).
//
// Nothing is sorted but what may be drawn. Weights are 2^((logit - best) log2(e) / temperature) in float32, summed in
// float64 in an order of their own, so a token depends on its row alone.
#include "vec.h"

namespace octavo::OCTAVO_ISA {
namespace {

// ---- Random numbers: Philox4x32-10 (Salmon et al., SC 2011) ----

double uniform(uint64_t seed, uint64_t position) {
  uint32_t c[4] = {uint32_t(position), uint32_t(position >> 32), 0, 0};
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    uint64_t left = uint64_t(0xD2511F53u) * c[0], right = uint64_t(0xCD9E8D57u) * c[2];
    uint32_t next[4] = {uint32_t(right >> 32) ^ c[1] ^ k0, uint32_t(right), uint32_t(left >> 32) ^ c[3] ^ k1,
                        uint32_t(left)};
    __builtin_memcpy(c, next, sizeof c);
  }
  return double((uint64_t(c[1]) << 32 | c[0]) >> 11) * 0x1p-53;
}

// ---- Passes over a row ----

inline bool any(i32v mask) {
  u32v bits = (u32v)mask;
  for (int n = W / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) bits[i] |= bits[i + n];
  return bits[0] != 0;
}

// NaN if there is one.
float best_of(const float* x, int64_t count) {
  f32v top = splat(-__builtin_inff()), sum{};
  for_vectors(count, [&](int64_t i, auto get, auto) {
    f32v v = get(x + i);
    bool whole = i + W <= count;
    if (!whole)
      for (int lane = int(count - i); lane < W; ++lane) v[lane] = x[i];
    sum += v != v ? v : f32v{};
    top = max(top, v);
  });
  for (int lane = 0; lane < W; ++lane)
    if (sum[lane] != sum[lane]) return sum[lane];
  return largest(top)[0];
}

int64_t first_at_least(const float* x, int64_t count, float value) {
  int64_t i = 0;
  for (; i + 4 * W <= count; i += 4 * W) {
    i32v found = load(x + i) >= splat(value);
    for (int v = 1; v < 4; ++v) found |= load(x + i + v * W) >= splat(value);
    if (any(found)) break;
  }
  while (i < count - 1 && !(x[i] >= value)) ++i;
  return i;
}

// Returns the sum of the weights; sums[s] is that of stretch s.
double weigh(const float* x, int64_t count, float best, float temperature, float least, float* weights, double* sums) {
  float scale = LOG2E / temperature;
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += SAMPLE_STRETCH) {
    int64_t size = min(SAMPLE_STRETCH, count - begin);
    f32v sum{};
    for_vectors(size, [&](int64_t i, auto get, auto put) {
      f32v weight = exp2((get(x + begin + i) - best) * scale);
      weight = weight >= splat(least) ? weight : f32v{};
      put(weights + begin + i, weight);
      if (i + W > size)
        for (int lane = int(size - i); lane < W; ++lane) weight[lane] = 0.f;
      sum += weight;
    });
    double stretch = 0;
    for (int lane = 0; lane < W; ++lane) stretch += double(sum[lane]);
    total += sums[begin / SAMPLE_STRETCH] = stretch;
  }
  return total;
}

// How many weights are at least so large.
int64_t count_from(const float* weights, int64_t count, float value) {
  i32v found{};
  int64_t i = 0, rest = 0;
  for (; i + W <= count; i += W) found -= load(weights + i) >= splat(value);
  for (; i < count; ++i) rest += weights[i] >= value;
  for (int lane = 0; lane < W; ++lane) rest += found[lane];
  return rest;
}

// The k-th largest weight: weights are not negative, so they are ordered like their bits.
float kth_largest(const float* weights, int64_t count, int64_t k) {
  uint32_t low = 0, high = bit_cast<uint32_t>(1.f);  // the k-th is in [low, high]
  while (low < high) {
    uint32_t middle = high - (high - low) / 2;
    if (count_from(weights, count, bit_cast<float>(middle)) >= k)
      low = middle;
    else
      high = middle - 1;
  }
  return bit_cast<float>(low);
}

// ---- The best ones in order: a heap of (weight, token), the larger weight first, then the smaller token ----

inline uint64_t entry(float weight, int64_t token) {
  return uint64_t(bit_cast<uint32_t>(weight)) << 32 | uint32_t(~token);
}
inline float weight_of(uint64_t entry) { return bit_cast<float>(uint32_t(entry >> 32)); }
inline int64_t token_of(uint64_t entry) { return int64_t(~uint32_t(entry)); }

inline void swap(uint64_t& a, uint64_t& b) {
  uint64_t c = a;
  a = b, b = c;
}
void sink(uint64_t* heap, int64_t size, int64_t at) {
  for (int64_t child; (child = 2 * at + 1) < size; at = child) {
    if (child + 1 < size && heap[child + 1] > heap[child]) ++child;
    if (heap[at] >= heap[child]) return;
    swap(heap[at], heap[child]);
  }
}
// Sorts the heap's best to its end; returns it.
inline uint64_t pop(uint64_t* heap, int64_t& size) {
  swap(heap[0], heap[--size]);
  sink(heap, size, 0);
  return heap[size];
}

int64_t collect(const float* weights, int64_t count, float least, uint64_t* heap) {
  int64_t size = 0;
  auto take = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      if (weights[i] >= least && weights[i] > 0.f) heap[size++] = entry(weights[i], i);
  };
  int64_t i = 0;
  for (; i + 4 * W <= count; i += 4 * W) {
    i32v found = load(weights + i) >= splat(least);
    for (int v = 1; v < 4; ++v) found |= load(weights + i + v * W) >= splat(least);
    if (any(found)) take(i, i + 4 * W);
  }
  take(i, count);
  for (int64_t at = size / 2; at-- > 0;) sink(heap, size, at);
  return size;
}

// ---- Draws ----

// The first token whose running sum of weights, in the vocabulary's order, is beyond the target.
int64_t draw_any(const float* weights, int64_t count, const double* sums, double target) {
  double sum = 0;
  int64_t begin = 0, last = 0;
  for (; begin + SAMPLE_STRETCH < count && sum + sums[begin / SAMPLE_STRETCH] <= target; begin += SAMPLE_STRETCH)
    sum += sums[begin / SAMPLE_STRETCH];
  for (int64_t i = begin; i < count; ++i) {
    if (weights[i] == 0.f) continue;
    last = i;
    if ((sum += double(weights[i])) > target) break;
  }
  return last;
}

// From the best ones, which stand at the end of the heap, best last.
int64_t draw_best(const uint64_t* best, int64_t count, double target) {
  double sum = 0;
  for (int64_t i = count; i-- > 0;)
    if ((sum += double(weight_of(best[i]))) > target) return token_of(best[i]);
  return token_of(best[0]);
}

// Pops what may be drawn: the k best, or as many of them as have the wanted share, and one at least. Returns how many;
// mass: their sum.
int64_t pop_best(uint64_t* heap, int64_t size, int64_t k, double wanted, double& mass) {
  int64_t kept = 0;
  for (mass = 0; kept < k && size > 0 && (kept == 0 || mass < wanted); ++kept)
    mass += double(weight_of(pop(heap, size)));
  return kept;
}

void draw(const Sample& a, int64_t row, float best, const SampleRoom& room) {
  constexpr double ALL = __builtin_inf();
  int64_t count = a.vocabulary, k = a.top_k[row] > 0 ? min(a.top_k[row], count) : count;
  double top_p = double(a.top_p[row]), mass;
  mass = weigh(a.logits + row * a.stride, count, best, a.temperature[row], a.min_p[row], room.weights, room.sums);
  int64_t size = 0, kept = 0;
  if (k < count) {
    size = collect(room.weights, count, kth_largest(room.weights, count, k), room.heap);
    kept = pop_best(room.heap, size, k, ALL, mass);
    if (top_p < 1) {  // they are sorted now: the nucleus is their beginning
      double wanted = top_p * mass;
      int64_t sorted = kept;
      for (kept = 0, mass = 0; kept < sorted && (kept == 0 || mass < wanted); ++kept)
        mass += double(weight_of(room.heap[size - 1 - kept]));
    }
  } else if (top_p < 1) {
    double least =
        (1 - top_p) * mass / double(count);  // all that is smaller is together less than what may be left out
    size = collect(room.weights, count, float(0.999 * least), room.heap);
    kept = pop_best(room.heap, size, count, top_p * mass, mass);
  }
  for (int64_t i = a.first_draw[row]; i < a.first_draw[row + 1]; ++i) {
    double target = uniform(a.seeds[i], uint64_t(a.positions[row])) * mass;
    a.tokens[i] =
        kept > 0 ? draw_best(room.heap + size - kept, kept, target) : draw_any(room.weights, count, room.sums, target);
  }
}

}  // namespace

void sample_any(const Sample& a, int64_t row, const SampleRoom& room) {
  const float* x = a.logits + row * a.stride;
  float best = a.peaks[row] = best_of(x, a.vocabulary);
  if (a.first_draw[row] == a.first_draw[row + 1]) return;
  if (best - best == 0.f && a.temperature[row] > 0.f) return draw(a, row, best, room);
  int64_t token = best - best == 0.f ? first_at_least(x, a.vocabulary, best) : 0;
  for (int64_t i = a.first_draw[row]; i < a.first_draw[row + 1]; ++i) a.tokens[i] = token;
}

}  // namespace octavo::OCTAVO_ISA
