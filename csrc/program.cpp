#include "program.h"

namespace octavo {
namespace {

// Every operation, bound to a step and run.
struct Run {
  const Step& step;

  void operator()(Attention& a) const {
    a.rows = step.rows;
    a.query_start = step.query_start;
    a.seq_lens = step.seq_lens;
    a.block_tables = step.block_tables;
    a.table_stride = step.table_stride;
    paged_attention(a);
  }
  void operator()(WriteKV& a) const {
    a.tokens = step.tokens;
    a.slots = step.slots;
    write_kv(a);
  }
  void operator()(Rotary& a) const {
    a.tokens = step.tokens;
    a.positions = step.positions;
    rotary(a);
  }
  void operator()(RMSNorm& a) const {
    a.tokens = step.tokens;
    rms_norm(a);
  }
  void operator()(ActMul& a) const {
    a.tokens = step.tokens;
    act_mul(a);
  }
  void operator()(Linear& a) const {
    a.tokens = step.tokens;
    linear(a);
  }
  void operator()(Quantize& a) const {
    a.tokens = step.tokens;
    quantize(a);
  }
  void operator()(QuantizedLinear& a) const {
    a.tokens = step.tokens;
    quantized_linear(a);
  }
};

}  // namespace

void Program::run(const Step& step) {
  for (auto& operation : operations_) std::visit(Run{step}, operation);
}

}  // namespace octavo
