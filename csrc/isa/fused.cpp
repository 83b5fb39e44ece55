// Row-wise kernels between the matrices: float32 inside, rounded once at the end.
#include "vec.h"

namespace octavo::OCTAVO_ISA {
namespace {

constexpr int64_t MAX_HEAD = 1024;

template <class T>
float mean_square(const T* x, int64_t n) {
  f32v squares{};
  for_vectors(n, [&](int64_t i, auto get, auto) {
    f32v v = get(x + i);
    squares += v * v;
  });
  return sum(squares) / float(n);
}
inline float inverse_root(float x) { return 1.f / __builtin_sqrtf(x); }

template <class T>
void rms_norm(const RMSNorm& a, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const T* x = static_cast<const T*>(a.x) + t * a.width;
    T* out = static_cast<T*>(a.out) + t * a.width;
    if (a.residual) {
      T* residual = static_cast<T*>(a.residual) + t * a.width;
      for_vectors(a.width, [&](int64_t i, auto get, auto put) { put(residual + i, get(residual + i) + get(x + i)); });
      x = residual;
    }
    float scale = inverse_root(mean_square(x, a.width) + a.eps);
    for_vectors(a.width, [&](int64_t i, auto get, auto put) { put(out + i, get(x + i) * scale * get(a.weight + i)); });
  }
}

template <class T>
void layer_norm(const LayerNorm& a, int64_t begin, int64_t end) {
  i32v lane;
  for (int i = 0; i < W; ++i) lane[i] = i;
  for (int64_t t = begin; t < end; ++t) {
    const T* x = static_cast<const T*>(a.x) + t * a.width;
    T* out = static_cast<T*>(a.out) + t * a.width;
    if (a.residual) {
      T* residual = static_cast<T*>(a.residual) + t * a.width;
      for_vectors(a.width, [&](int64_t i, auto get, auto put) { put(residual + i, get(residual + i) + get(x + i)); });
      x = residual;
    }
    f32v values{}, squares{};
    for_vectors(a.width, [&](int64_t i, auto get, auto) { values += get(x + i); });
    float mean = sum(values) / float(a.width);
    for_vectors(a.width, [&](int64_t i, auto get, auto) {
      f32v v = get(x + i) - mean;
      if (i + W > a.width) v = lane < int32_t(a.width - i) ? v : f32v{};  // lanes past the end are not of the row
      squares += v * v;
    });
    float scale = inverse_root(sum(squares) / float(a.width) + a.eps);
    for_vectors(a.width, [&](int64_t i, auto get, auto put) {
      put(out + i, (get(x + i) - mean) * scale * get(a.weight + i) + get(a.bias + i));
    });
  }
}

// Calls use(f) with the function of that name.
template <class Use>
void with_activation(Activation activation, const Use& use) {
  switch (activation) {
    case Activation::silu:
      return use([](f32v x) { return x * sigmoid(x); });
    case Activation::gelu_tanh:  // 0.5 x (1 + tanh y) = x sigmoid(2y), y = sqrt(2/pi) (x + 0.044715 x^3)
      return use([](f32v x) { return x * sigmoid(1.595769121605731f * (x + 0.044715f * x * x * x)); });
    case Activation::gelu:  // x Phi(x), by what is missing from x or from 0
      return use([](f32v x) {
        f32v size = x < 0.f ? -x : x;
        return max(x, f32v{}) - 0.5f * size * erfc(size * 0.7071067811865476f);
      });
    case Activation::relu:
      return use([](f32v x) { return x < 0.f ? f32v{} : x; });  // NaN stays
  }
}

template <class T>
void act(const Act& a, int64_t begin, int64_t end) {
  const T* x = static_cast<const T*>(a.x) + begin * a.width;
  T* out = static_cast<T*>(a.out) + begin * a.width;
  with_activation(a.activation, [&](const auto& activation) {
    for_vectors((end - begin) * a.width, [&](int64_t i, auto get, auto put) { put(out + i, activation(get(x + i))); });
  });
}
template <class T, class Fn>
void activate(const ActMul& a, int64_t begin, int64_t end, const Fn& activation) {
  for (int64_t t = begin; t < end; ++t) {
    const T* gate = static_cast<const T*>(a.gate_up) + t * 2 * a.width;
    const T* up = gate + a.width;
    T* out = static_cast<T*>(a.out) + t * a.width;
    for_vectors(a.width, [&](int64_t i, auto get, auto put) { put(out + i, activation(get(gate + i)) * get(up + i)); });
  }
}
template <class T>
void act_mul(const ActMul& a, int64_t begin, int64_t end) {
  with_activation(a.activation, [&](const auto& activation) { activate<T>(a, begin, end, activation); });
}

// Halves (x, y) of a head become (x cos - y sin, y cos + x sin): the layout of Hugging Face checkpoints.
template <class T>
void turn(T* head, int64_t size, const float* cosines, const float* weight, float eps) {
  int64_t half = size / 2;
  const float* sines = cosines + half;
  float values[MAX_HEAD];
  float scale = weight ? inverse_root(mean_square(head, size) + eps) : 1.f;
  for_vectors(size, [&](int64_t i, auto get, auto put) {
    f32v x = get(head + i);
    put(values + i, weight ? x * scale * get(weight + i) : x);
  });
  for_vectors(half, [&](int64_t i, auto get, auto put) {
    f32v x = get(values + i), y = get(values + half + i), c = get(cosines + i), s = get(sines + i);
    put(head + i, x * c - y * s);
    put(head + half + i, y * c + x * s);
  });
}
template <class T>
void rotary(const Rotary& a, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const float* row = a.table + a.positions[t] * a.head_size;
    T* q = static_cast<T*>(a.q) + t * a.q_stride;
    T* k = static_cast<T*>(a.k) + t * a.k_stride;
    for (int64_t h = 0; h < a.heads; ++h) turn(q + h * a.head_size, a.head_size, row, a.q_weight, a.eps);
    for (int64_t g = 0; g < a.kv_heads; ++g) turn(k + g * a.head_size, a.head_size, row, a.k_weight, a.eps);
  }
}

}  // namespace

void write_kv_any(const WriteKV& a, int64_t begin, int64_t end) {
  int64_t bytes = a.head_size * (a.dtype == DType::f32 ? 4 : 2), element = bytes / a.head_size;
  for (int64_t t = begin; t < end; ++t)
    for (int64_t g = 0; g < a.kv_heads; ++g) {
      int64_t block = a.slots[t] / a.block_size, offset = a.slots[t] % a.block_size;
      int64_t to = ((block * a.kv_heads + g) * a.block_size + offset) * bytes;
      const char* k = static_cast<const char*>(a.k) + t * a.k_stride * element + g * bytes;
      const char* v = static_cast<const char*>(a.v) + t * a.v_stride * element + g * bytes;
      __builtin_memcpy(static_cast<char*>(a.k_cache) + to, k, bytes);
      __builtin_memcpy(static_cast<char*>(a.v_cache) + to, v, bytes);
    }
}

#define BY_DTYPE(name, Args)                                   \
  void name##_any(const Args& a, int64_t begin, int64_t end) { \
    switch (a.dtype) {                                         \
      case DType::f32:                                         \
        return name<float>(a, begin, end);                     \
      case DType::bf16:                                        \
        return name<bf16>(a, begin, end);                      \
      case DType::f16:                                         \
        return name<f16>(a, begin, end);                       \
    }                                                          \
  }
BY_DTYPE(rms_norm, RMSNorm)
BY_DTYPE(layer_norm, LayerNorm)
BY_DTYPE(act, Act)
BY_DTYPE(act_mul, ActMul)
BY_DTYPE(rotary, Rotary)

}  // namespace octavo::OCTAVO_ISA
