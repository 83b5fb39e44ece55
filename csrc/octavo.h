// The compiled kernels: raw pointers in, results written in place; nothing here knows Python or torch.
//
// Two levels. The functions below split their work between threads (attention.cpp, fused.cpp, linear.cpp) and run on
// any CPU. The arithmetic they call is serial, stands in isa/ and is compiled once per instruction set; `kernels()`
// is the table of the best one this CPU has. A row's result never depends on the other rows, on how its prompt was
// cut into chunks or on the number of threads.
//
// Letters: T tokens, R sequences, H query heads, G key/value heads, D head size, E row width, strides in elements.
#pragma once

#include <cstdint>

namespace octavo {

enum class DType : int { f32 = 0, bf16 = 1, f16 = 2 };
enum class Activation : int { silu = 0, gelu_tanh = 1, gelu = 2, relu = 3 };

struct Attention {
  DType dtype;
  const void* q;     // [T, H, D]
  int64_t q_stride;  // between tokens
  const void* k;     // [blocks, G, block_size, D]
  const void* v;
  const int32_t* query_start;   // [R + 1]
  const int32_t* seq_lens;      // [R]
  const int32_t* block_tables;  // [R, table_stride]
  int64_t table_stride;
  void* out;  // [T, H, D] contiguous
  int64_t rows, heads, kv_heads, head_size, block_size;
  float scale;
  int64_t window;  // keys a query sees, itself the last; 0: all up to itself; -1: all of its row's, later ones too
  float softcap;   // 0: none
};
void paged_attention(const Attention&);

struct WriteKV {
  DType dtype;
  const void* k;  // [T, G, D]
  const void* v;
  int64_t k_stride, v_stride;
  void* k_cache;  // [blocks, G, block_size, D]
  void* v_cache;
  const int64_t* slots;  // [T]
  int64_t tokens, kv_heads, head_size, block_size;
};
void write_kv(const WriteKV&);

struct Rotary {
  DType dtype;
  void* q;  // [T, H, D], turned in place
  void* k;  // [T, G, D]
  int64_t q_stride, k_stride;
  const int64_t* positions;  // [T]
  const float* table;        // [positions, D]: D/2 cosines, then D/2 sines
  const float* q_weight;     // [D]: RMS norm of each head before the turn; null: none
  const float* k_weight;
  float eps;
  int64_t tokens, heads, kv_heads, head_size;
};
void rotary(const Rotary&);

struct RMSNorm {
  DType dtype;
  const void* x;        // [T, E] contiguous
  void* residual;       // [T, E]: += x first, then normed; null: x is normed
  const float* weight;  // [E]
  void* out;            // [T, E]
  float eps;
  int64_t tokens, width;
};
void rms_norm(const RMSNorm&);

struct LayerNorm {
  DType dtype;
  const void* x;        // [T, E] contiguous
  void* residual;       // [T, E]: += x first, then normed; null: x is normed
  const float* weight;  // [E]
  const float* bias;    // [E]
  void* out;            // [T, E]
  float eps;
  int64_t tokens, width;
};
void layer_norm(const LayerNorm&);

struct Act {
  DType dtype;
  Activation activation;
  const void* x;  // [T, E] contiguous
  void* out;      // [T, E]
  int64_t tokens, width;
};
void act(const Act&);

struct ActMul {
  DType dtype;
  Activation activation;
  const void* gate_up;  // [T, 2E]
  void* out;            // [T, E]: activation(gate) * up
  int64_t tokens, width;
};
void act_mul(const ActMul&);

struct Linear {
  DType dtype, out_dtype;  // out: dtype or f32
  const void* x;           // [T, in]
  int64_t x_stride;
  const void* weight;  // [out, in] contiguous
  const void* bias;    // [out] or null
  void* out;           // [T, out]
  int64_t tokens, in_features, out_features;
};
void linear(const Linear&);
// Rows from which on torch's product is the quicker one.
int64_t linear_rows(DType);

// One row of logits each: its best token if the temperature is 0, else draws by temperature, min-p, top-k, top-p in
// that order. A draw takes the token at a number from 0 to 1 of the cumulative distribution, best first where top-k or
// top-p restrict it, else in the vocabulary's order; the number is keyed by seed and position.
struct Sample {
  const float* logits;  // [rows, stride]
  int64_t stride, rows, vocabulary;
  const float *temperature, *min_p, *top_p;  // [rows]
  const int64_t* top_k;                      // [rows]; 0 or less: all
  const int64_t* positions;                  // [rows]
  const int64_t* first_draw;                 // [rows + 1]
  const uint64_t* seeds;                     // [draws]
  int64_t* tokens;                           // [draws]; of a row whose best logit is not finite, anything
  float* peaks;                              // [rows]: best logits; NaN if there is a NaN in a row
};
void sample(const Sample&);
inline constexpr int64_t SAMPLE_STRETCH = 1024;  // weights summed up together
struct SampleRoom {
  float* weights;  // [vocabulary]
  double* sums;    // of stretches
  uint64_t* heap;  // [vocabulary]
};

struct Quantize;  // quantized.h

// Serial kernels of one instruction set.
struct AttentionTile {
  int64_t row, kv_head;
  int64_t token, tokens;  // consecutive tokens of the row
  int64_t position;       // of the first token
};
// What attention over some keys leaves: per packed query row the largest score m, the sum l of 2^(score - m) and the
// values weighted alike. Stored as m[M] l[M] o[M][width].
struct AttentionKernels {
  int64_t tile_rows;  // packed query rows that are best taken together
  // Asks memory for the first CHUNK of some keys: blocks lie far apart, and no processor looks ahead from one to
  // another.
  void (*fetch)(const Attention&, const AttentionTile&, int64_t key_begin, int64_t key_end);
  void (*attend)(const Attention&, const AttentionTile&, int64_t key_begin, int64_t key_end, float* state,
                 float* scratch);
  void (*merge)(float* state, const float* part, int64_t rows, int64_t width);
  void (*finish)(const Attention&, const AttentionTile&, const float* state);
};
const AttentionKernels& attention_kernels();

struct Kernels {
  const char* isa;
  int64_t lanes;
  void (*write_kv)(const WriteKV&, int64_t begin, int64_t end);
  void (*rotary)(const Rotary&, int64_t begin, int64_t end);
  void (*rms_norm)(const RMSNorm&, int64_t begin, int64_t end);
  void (*layer_norm)(const LayerNorm&, int64_t begin, int64_t end);
  void (*act)(const Act&, int64_t begin, int64_t end);
  void (*act_mul)(const ActMul&, int64_t begin, int64_t end);
  int64_t (*pack_rows)(const Linear&, float* packed);  // widens x once for all threads; returns the packed row width
  void (*linear)(const Linear&, const float* packed, int64_t width, int64_t begin, int64_t end);
  void (*quantize)(const Quantize&, int64_t begin, int64_t end);
  void (*sample)(const Sample&, int64_t row, const SampleRoom&);
};
const Kernels& kernels();

// The product of any number of bfloat16 rows, for at least `side` outputs. x is packed in tiles of `side` rows and
// multiplied with panels of as many outputs.
struct TiledLinear {
  int64_t side, depth;    // depth: columns are filled up to a multiple of it
  int64_t tiles_at_once;  // that `multiply` takes
  int64_t scratch_bytes;  // aligned to 64
  void (*pack)(const Linear&, void* packed, int64_t begin, int64_t end);  // of tiles
  void (*multiply)(const Linear&, const void* packed, int64_t begin, int64_t end, int64_t first_panel,
                   int64_t last_panel, void* scratch);
};
const TiledLinear* tiled_linear();  // null where there is none

// Instruction sets compiled in and present on this CPU, best first; null-terminated.
const char* const* available_isas();
bool use_isa(const char* name);  // false: not available

inline constexpr int64_t CHUNK = 64;   // keys scored at a time
inline constexpr int64_t SPLIT = 512;  // keys between merges: the unit a long context is shared out in
// Sizes in floats, for M packed query rows.
static inline int64_t padded(int64_t width) { return (width + 31) / 32 * 32; }
// Rows may be filled up to a multiple of 16.
static inline int64_t state_size(int64_t rows, int64_t head_size) { return (rows + 15) * (padded(head_size) + 2); }
static inline int64_t scratch_size(int64_t rows, int64_t head_size) {
  return (rows + 15) * (padded(head_size) + CHUNK * 3 / 2 + 16) + 2 * CHUNK * padded(head_size);
}

}  // namespace octavo
