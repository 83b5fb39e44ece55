#include "program.h"

#include <chrono>

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
  void operator()(LayerNorm& a) const {
    a.tokens = step.tokens;
    layer_norm(a);
  }
  void operator()(Act& a) const {
    a.tokens = step.tokens;
    act(a);
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

// The names under which the operations are bound.
struct Name {
  const char* operator()(const Attention&) const { return "paged_attention"; }
  const char* operator()(const WriteKV&) const { return "write_kv"; }
  const char* operator()(const Rotary&) const { return "rotary"; }
  const char* operator()(const RMSNorm&) const { return "rms_norm"; }
  const char* operator()(const LayerNorm&) const { return "layer_norm"; }
  const char* operator()(const Act&) const { return "act"; }
  const char* operator()(const ActMul&) const { return "act_mul"; }
  const char* operator()(const Linear&) const { return "linear"; }
  const char* operator()(const Quantize&) const { return "quantize"; }
  const char* operator()(const QuantizedLinear&) const { return "quantized_linear"; }
};

}  // namespace

void Program::run(const Step& step) {
  for (auto& operation : operations_) std::visit(Run{step}, operation);
}

std::map<std::string, double> Program::timed_run(const Step& step) {
  using Clock = std::chrono::steady_clock;
  std::map<std::string, double> seconds;
  for (auto& operation : operations_) {
    auto begin = Clock::now();
    std::visit(Run{step}, operation);
    seconds[std::visit(Name{}, operation)] += std::chrono::duration<double>(Clock::now() - begin).count();
  }
  return seconds;
}

}  // namespace octavo
