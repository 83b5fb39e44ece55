// The kernels of this instruction set as a table.
#include "vec.h"

#define TEXT(x) #x
#define NAME(x) TEXT(x)

namespace octavo::OCTAVO_ISA {

void write_kv_any(const WriteKV&, int64_t, int64_t);
void rotary_any(const Rotary&, int64_t, int64_t);
void rms_norm_any(const RMSNorm&, int64_t, int64_t);
void layer_norm_any(const LayerNorm&, int64_t, int64_t);
void act_any(const Act&, int64_t, int64_t);
void act_mul_any(const ActMul&, int64_t, int64_t);
int64_t pack_rows_any(const Linear&, float*);
void linear_any(const Linear&, const float*, int64_t, int64_t, int64_t);
void quantize_any(const Quantize&, int64_t, int64_t);
void sample_any(const Sample&, int64_t, const SampleRoom&);

extern const Kernels table;
const Kernels table = {NAME(OCTAVO_ISA), W,           write_kv_any,  rotary_any, rms_norm_any, layer_norm_any,
                       act_any,          act_mul_any, pack_rows_any, linear_any, quantize_any, sample_any};

}  // namespace octavo::OCTAVO_ISA
