// A step of a model as one call: its operations with every address they need, recorded once and run for any number of
// tokens. What changes from step to step (how many tokens, where they stand) is in `Step`; all else is constant.
#pragma once

#include <map>
#include <string>
#include <variant>
#include <vector>

#include "octavo.h"
#include "quantized.h"

namespace octavo {

struct Step {
  int64_t tokens, rows;
  const int64_t* positions;     // [tokens]
  const int64_t* slots;         // [tokens]
  const int32_t* query_start;   // [rows + 1]
  const int32_t* seq_lens;      // [rows]
  const int32_t* block_tables;  // [rows, table_stride]
  int64_t table_stride;
};

class Program {
 public:
  template <class Operation>
  void add(const Operation& operation) {
    operations_.emplace_back(operation);
  }
  void run(const Step& step);
  // The same, with the time that each kind of operation took.
  std::map<std::string, double> timed_run(const Step& step);
  int64_t size() const { return int64_t(operations_.size()); }

 private:
  std::vector<
      std::variant<Attention, WriteKV, Rotary, RMSNorm, LayerNorm, Act, ActMul, Linear, Quantize, QuantizedLinear>>
      operations_;
};

}  // namespace octavo
