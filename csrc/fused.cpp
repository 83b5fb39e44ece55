// Row-wise kernels shared out between threads when there is enough to do.
#include "octavo.h"
#include "parallel.h"

namespace octavo {
namespace {
int64_t rows_of(int64_t width) { return GRAIN / width + 1; }
}  // namespace

void write_kv(const WriteKV& a) {
  const Kernels& k = kernels();
  parallel_for(a.tokens, rows_of(2 * a.kv_heads * a.head_size),
               [&](int64_t begin, int64_t end) { k.write_kv(a, begin, end); });
}
void rotary(const Rotary& a) {
  const Kernels& k = kernels();
  parallel_for(a.tokens, rows_of((a.heads + a.kv_heads) * a.head_size),
               [&](int64_t begin, int64_t end) { k.rotary(a, begin, end); });
}
void rms_norm(const RMSNorm& a) {
  const Kernels& k = kernels();
  parallel_for(a.tokens, rows_of(a.width), [&](int64_t begin, int64_t end) { k.rms_norm(a, begin, end); });
}
void layer_norm(const LayerNorm& a) {
  const Kernels& k = kernels();
  parallel_for(a.tokens, rows_of(a.width), [&](int64_t begin, int64_t end) { k.layer_norm(a, begin, end); });
}
void act(const Act& a) {
  const Kernels& k = kernels();
  parallel_for(a.tokens, rows_of(a.width), [&](int64_t begin, int64_t end) { k.act(a, begin, end); });
}
void act_mul(const ActMul& a) {
  const Kernels& k = kernels();
  parallel_for(a.tokens, rows_of(2 * a.width), [&](int64_t begin, int64_t end) { k.act_mul(a, begin, end); });
}

}  // namespace octavo
