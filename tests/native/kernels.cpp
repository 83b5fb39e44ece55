// Every kernel on random shapes, for a sanitizer to watch: `make sanitize`. Arrays are as long as they must be and no
// longer. Each case runs twice, on one thread and on several, over memory filled with different bytes: both must leave
// the same bits; so must quantized products on every instruction set. Whether they are right is for tests/kernels.
//
//   check_kernels [cases] [seed]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "octavo.h"
#include "parallel.h"
#include "quantized.h"

using namespace octavo;

namespace {

std::mt19937_64 randomness;
int64_t between(int64_t least, int64_t most) { return std::uniform_int_distribution<int64_t>(least, most)(randomness); }
int64_t one_of(std::initializer_list<int64_t> values) { return values.begin()[between(0, values.size() - 1)]; }
bool chance(double p) { return std::bernoulli_distribution(p)(randomness); }
DType any_dtype() { return DType(between(0, 2)); }
int64_t size_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
// Bytes that begin where a matrix may and end exactly where they should.
struct Memory {
  std::unique_ptr<uint8_t, Free> bytes;
  int64_t size;

  explicit Memory(int64_t size, int fill = 0) : size(size) {
    void* memory = nullptr;
    if (posix_memalign(&memory, ALIGNMENT, size) != 0) std::abort();
    bytes.reset(static_cast<uint8_t*>(memory));
    std::memset(memory, fill, size);
  }
  template <class T = void>
  T* as() const {
    return reinterpret_cast<T*>(bytes.get());
  }
};

uint16_t small_half() { return uint16_t(between(0, 1) << 15 | between(8, 14) << 10 | between(0, 1023)); }
Memory numbers(DType dtype, int64_t count) {
  Memory memory(count * size_of(dtype));
  for (int64_t i = 0; i < count; ++i) {
    float x = std::normal_distribution<float>()(randomness);
    if (dtype == DType::f32) memory.as<float>()[i] = x;
    if (dtype == DType::bf16) std::memcpy(memory.as<uint16_t>() + i, reinterpret_cast<char*>(&x) + 2, 2);
    if (dtype == DType::f16) memory.as<uint16_t>()[i] = small_half();
  }
  return memory;
}
Memory floats(int64_t count) { return numbers(DType::f32, count); }
// Rows of `width` elements, `stride` apart; nothing after the last one.
int64_t strided(int64_t rows, int64_t stride, int64_t width) { return rows > 0 ? (rows - 1) * stride + width : 0; }

// ---- Running and comparing ----

std::string current;  // the case, in words

[[noreturn]] void fail(const char* what) {
  std::printf("%s: %s\n", current.c_str(), what);
  std::exit(1);
}
void expect_same(const Memory& a, const Memory& b, const char* what) {
  if (a.size > 0 && std::memcmp(a.as(), b.as(), a.size) != 0) fail(what);
}

// run(out) on one thread and on several, `out` being `size` bytes of something. Returns what it wrote.
Memory both_ways(int64_t size, const std::function<void(void*)>& run) {
  Memory alone(size, 0xff), together(size, 0x5a);
  set_thread_count(1);
  run(alone.as());
  set_thread_count(int(between(2, 4)));
  run(together.as());
  expect_same(alone, together, "differs with the number of threads, or is not written");
  return alone;
}
// The same where `memory` is read as well as written: it begins as it is.
void both_ways_in_place(const Memory& memory, const std::function<void(void*)>& run) {
  both_ways(memory.size, [&](void* copy) {
    if (memory.size > 0) std::memcpy(copy, memory.as(), memory.size);
    run(copy);
  });
}

// ---- Cases ----

void check_attention() {
  DType dtype = any_dtype();
  int64_t rows = between(0, 5), kv_heads = between(1, 3), heads = kv_heads * one_of({1, 2, 3, 8, 40});
  int64_t head_size = one_of({2, 5, 16, 33, 64, 80, 128}), block_size = one_of({1, 4, 16, 32});
  std::vector<int32_t> query_start(1, 0), seq_lens;
  int64_t blocks = 0;
  for (int64_t row = 0; row < rows; ++row) {
    int64_t count = chance(0.3) ? 1 : between(0, 40), before = chance(0.2) ? between(400, 1300) : between(0, 70);
    query_start.push_back(int32_t(query_start.back() + count));
    seq_lens.push_back(int32_t(before + count));
    blocks = std::max(blocks, ceil_div(before + count, block_size));
  }
  int64_t tokens = query_start.back(), stride = heads * head_size + between(0, 9);
  std::vector<int32_t> tables(rows * blocks);
  std::iota(tables.begin(), tables.end(), 0);
  std::shuffle(tables.begin(), tables.end(), randomness);
  int64_t elements = rows * blocks * kv_heads * block_size * head_size;
  Memory q = numbers(dtype, strided(tokens, stride, heads * head_size));
  Memory k = numbers(dtype, elements), v = numbers(dtype, elements);
  int64_t window = chance(0.5) ? 0 : one_of({-1, 1, 7, 64, 100, 700});
  float softcap = chance(0.3) ? 30.f : 0.f;
  both_ways(tokens * heads * head_size * size_of(dtype), [&](void* out) {
    paged_attention({dtype, q.as(), stride, k.as(), v.as(), query_start.data(), seq_lens.data(), tables.data(), blocks,
                     out, rows, heads, kv_heads, head_size, block_size, 0.1f, window, softcap});
  });
}

void check_write_kv() {
  DType dtype = any_dtype();
  int64_t tokens = between(0, 200), kv_heads = between(1, 4), head_size = between(1, 100);
  int64_t block_size = one_of({1, 3, 16}), width = kv_heads * head_size;
  int64_t k_stride = width + between(0, 9), v_stride = width + between(0, 9);
  std::vector<int64_t> slots(round_up(tokens, block_size));
  std::iota(slots.begin(), slots.end(), 0);
  std::shuffle(slots.begin(), slots.end(), randomness);
  int64_t bytes = int64_t(slots.size()) * width * size_of(dtype);
  slots.resize(tokens);
  slots.shrink_to_fit();
  Memory k = numbers(dtype, strided(tokens, k_stride, width)), v = numbers(dtype, strided(tokens, v_stride, width));
  both_ways_in_place(Memory(2 * bytes), [&](void* out) {
    write_kv({dtype, k.as(), v.as(), k_stride, v_stride, out, static_cast<char*>(out) + bytes, slots.data(), tokens,
              kv_heads, head_size, block_size});
  });
}

void check_rotary() {
  DType dtype = any_dtype();
  int64_t tokens = between(0, 100), heads = between(1, 9), kv_heads = between(1, 3), size = 2 * between(1, 80);
  int64_t q_stride = heads * size + between(0, 9), k_stride = kv_heads * size + between(0, 9), most = 50;
  Memory table = floats(most * size), weight = floats(size);
  std::vector<int64_t> positions(tokens);
  for (int64_t& position : positions) position = between(0, most - 1);
  const float *q_weight = chance(0.5) ? weight.as<float>() : nullptr, *k_weight = q_weight;
  int64_t q_bytes = strided(tokens, q_stride, heads * size) * size_of(dtype);
  Memory k = numbers(dtype, strided(tokens, k_stride, kv_heads * size));
  both_ways_in_place(numbers(dtype, q_bytes / size_of(dtype)), [&](void* q) {
    Memory turned(k.size);
    if (k.size > 0) std::memcpy(turned.as(), k.as(), k.size);
    rotary({dtype, q, turned.as(), q_stride, k_stride, positions.data(), table.as<float>(), q_weight, k_weight, 1e-5f,
            tokens, heads, kv_heads, size});
  });
}

void check_rms_norm() {
  DType dtype = any_dtype();
  int64_t tokens = between(0, 100), width = chance(0.5) ? between(1, 70) : between(500, 1500);
  Memory x = numbers(dtype, tokens * width), residual = numbers(dtype, tokens * width), weight = floats(width);
  bool add = chance(0.5);
  both_ways(x.size, [&](void* out) {
    Memory stream(x.size);
    if (x.size > 0) std::memcpy(stream.as(), residual.as(), x.size);
    rms_norm({dtype, x.as(), add ? stream.as() : nullptr, weight.as<float>(), out, 1e-5f, tokens, width});
  });
}

void check_layer_norm() {
  DType dtype = any_dtype();
  int64_t tokens = between(0, 100), width = chance(0.5) ? between(1, 70) : between(500, 1500);
  Memory x = numbers(dtype, tokens * width), residual = numbers(dtype, tokens * width);
  Memory weight = floats(width), bias = floats(width);
  bool add = chance(0.5);
  both_ways(x.size, [&](void* out) {
    Memory stream(x.size);
    if (x.size > 0) std::memcpy(stream.as(), residual.as(), x.size);
    layer_norm(
        {dtype, x.as(), add ? stream.as() : nullptr, weight.as<float>(), bias.as<float>(), out, 1e-5f, tokens, width});
  });
}

void check_act() {
  DType dtype = any_dtype();
  int64_t tokens = between(0, 40), width = chance(0.5) ? between(1, 70) : between(500, 1500);
  Memory x = numbers(dtype, tokens * width);
  Activation activation = Activation(between(0, 3));
  both_ways(x.size, [&](void* out) { act({dtype, activation, x.as(), out, tokens, width}); });
}

void check_act_mul() {
  DType dtype = any_dtype();
  int64_t tokens = between(0, 40), width = chance(0.5) ? between(1, 70) : between(500, 1500);
  Memory x = numbers(dtype, tokens * 2 * width);
  Activation activation = Activation(between(0, 1));
  both_ways(x.size / 2, [&](void* out) { act_mul({dtype, activation, x.as(), out, tokens, width}); });
}

void check_linear() {
  DType dtype = any_dtype(), out_dtype = chance(0.3) ? DType::f32 : dtype;
  int64_t tokens = chance(0.3) ? between(60, 140) : between(0, 11), inner = between(1, 300);
  int64_t outer = chance(0.3) ? between(1000, 2500) : between(1, 90);
  int64_t stride = inner + between(0, 9);
  Memory x = numbers(dtype, strided(tokens, stride, inner)), weight = numbers(dtype, outer * inner);
  Memory bias = numbers(dtype, outer);
  const void* added = chance(0.5) ? bias.as() : nullptr;
  both_ways(tokens * outer * size_of(out_dtype), [&](void* out) {
    linear({dtype, out_dtype, x.as(), stride, weight.as(), added, out, tokens, inner, outer});
  });
}

// ---- Packed matrices ----

constexpr int GGUF_TYPES[] = {2, 3, 6, 7, 8, 12, 13, 14};

// Any bits at all, but for scales that are small numbers.
Memory gguf_rows(int type, const PackedPart& part, int64_t rows, int64_t columns) {
  int64_t width = part.scales == Scales::nested ? 256 : 32, block = gguf_row_bytes(type, width);
  Memory memory(rows * columns / width * block);
  for (int64_t i = 0; i < memory.size; ++i) memory.as<uint8_t>()[i] = uint8_t(between(0, 255));
  for (int64_t at = part.group == 16 ? block - 2 : 0; at < memory.size; at += block)
    for (int64_t i = 0; i <= part.minimums; ++i) {
      uint16_t scale = small_half();
      std::memcpy(memory.as<uint8_t>() + at + 2 * i, &scale, 2);
    }
  return memory;
}

struct Source {
  int type;  // of GGUF files; 0: codes
  PackedPart part;
};
Source any_source(int64_t columns) {
  Source source = {0, {between(1, 40), 0, 0, 0, Scales::f16, 0}};
  int type = GGUF_TYPES[between(0, 7)];
  PackedPart packing;
  if (gguf_packing(type, packing); chance(0.6) && columns % (packing.scales == Scales::nested ? 256 : 32) == 0) {
    packing.rows = source.part.rows;
    return {type, packing};
  }
  do source.part.group = int32_t(one_of({16, 32, 64, 128}));
  while (columns % source.part.group != 0);
  source.part.bits = int32_t(one_of({4, 5, 6, 8}));
  source.part.scales = Scales(between(0, 1));
  source.part.minimums = source.part.group > 16 && chance(0.5);
  return source;
}

void fill(PackedMatrix* matrix, int64_t index, const Source& source, int64_t columns) {
  const PackedPart& part = source.part;
  if (source.type) {
    std::vector<int64_t> order(part.rows);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), randomness);
    Memory rows = gguf_rows(source.type, part, part.rows, columns);
    return pack_gguf(matrix, index, source.type, rows.as<uint8_t>(), chance(0.5) ? order.data() : nullptr);
  }
  Memory codes(part.rows * columns), scales = floats(part.rows * (columns / part.group));
  Memory minimums = floats(part.rows * (columns / part.group));
  for (int64_t i = 0; i < codes.size; ++i) codes.as<uint8_t>()[i] = uint8_t(between(0, (1 << part.bits) - 1));
  pack_codes(matrix, index, columns, codes.as<uint8_t>(), scales.as<float>(),
             part.minimums ? minimums.as<float>() : nullptr);
}

void check_quantized() {
  int64_t columns = chance(0.3) ? 256 * between(1, 3) : 16 * between(1, 40);
  std::vector<Source> sources(between(1, 3));
  std::vector<PackedPart> parts;
  for (Source& source : sources) parts.push_back((source = any_source(columns)).part);
  Memory memory(packed_bytes(columns, parts.data(), int64_t(parts.size())), 0xff);
  PackedMatrix* matrix = memory.as<PackedMatrix>();
  plan_matrix(matrix, columns, parts.data(), int64_t(parts.size()));
  for (size_t i = 0; i < sources.size(); ++i) fill(matrix, int64_t(i), sources[i], columns);

  DType dtype = any_dtype(), out_dtype = chance(0.3) ? DType::f32 : dtype, bias_dtype = any_dtype();
  int64_t tokens = chance(0.1) ? between(500, 600) : one_of({0, 1, 2, 3, 7, 15, 16, 17, 33, 50});
  int64_t stride = columns + between(0, 9), rows = matrix->rows;
  Memory x = numbers(dtype, strided(tokens, stride, columns)), bias = numbers(bias_dtype, rows);
  const void* added = chance(0.5) ? bias.as() : nullptr;
  std::vector<int64_t> ids(tokens);
  for (int64_t& id : ids) id = between(0, rows - 1);

  std::vector<Memory> products, vectors;
  std::string name = current;
  for (const char* const* isa = available_isas(); *isa; ++isa) {
    use_isa(*isa);
    current = name + ", " + *isa;
    products.push_back(both_ways(tokens * rows * size_of(out_dtype), [&](void* out) {
      Memory codes(quantized_bytes(tokens, columns), 0xff);
      quantize({dtype, x.as(), stride, codes.as(), tokens, columns});
      quantized_linear({out_dtype, bias_dtype, codes.as(), matrix, added, out, tokens});
    }));
    vectors.push_back(both_ways(tokens * columns * size_of(out_dtype), [&](void* out) {
      quantized_embedding({out_dtype, matrix, ids.data(), out, tokens, columns});
    }));
    expect_same(products.back(), products.front(), "a product differs from another instruction set's");
    expect_same(vectors.back(), vectors.front(), "a vector differs from another instruction set's");
  }
}

}  // namespace

int main(int count, char** arguments) {
  int64_t cases = count > 1 ? std::atoll(arguments[1]) : 100, seed = count > 2 ? std::atoll(arguments[2]) : 0;
  struct {
    const char* name;
    void (*check)();
  } const kinds[] = {{"attention", check_attention}, {"write_kv", check_write_kv},     {"rotary", check_rotary},
                     {"rms_norm", check_rms_norm},   {"layer_norm", check_layer_norm}, {"act", check_act},
                     {"act_mul", check_act_mul},     {"linear", check_linear}};
  for (int64_t i = 0; i < cases; ++i) {
    for (const char* const* isa = available_isas(); *isa; ++isa)
      for (auto& kind : kinds) {
        randomness.seed(seed + i);
        use_isa(*isa);
        current = std::string(kind.name) + ", seed " + std::to_string(seed + i) + ", " + *isa;
        kind.check();
      }
    randomness.seed(seed + i);
    current = "quantized, seed " + std::to_string(seed + i);
    check_quantized();
  }
  std::string isas;
  for (const char* const* isa = available_isas(); *isa; ++isa) isas += std::string(" ") + *isa;
  std::printf("%lld cases of each kernel on each of:%s\n", static_cast<long long>(cases), isas.c_str());
}
