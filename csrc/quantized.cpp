// Quantized products shared out between threads: panels of the matrix, and rows of x where there are many.
#include "quantized.h"

#include <algorithm>
#include <memory>

#include "parallel.h"

namespace octavo {
namespace {

struct alignas(ALIGNMENT) Scratch {
  uint8_t bytes[QUANTIZED_SCRATCH];
};

// Rows whose activations stay in the second-level cache while panels pass.
int64_t rows_at_once(const QuantizedRows& x) {
  constexpr int64_t CACHE = 1 << 20;
  return std::clamp<int64_t>(CACHE / (x.blocks * BLOCK) / PANEL * PANEL, 64, ROWS_AT_ONCE);
}

// Panels from one on that is counted over all parts: at most `most`, and of one part.
PanelRun find(const PackedMatrix* matrix, int64_t panel, int64_t most) {
  const PackedPart* part = parts_of(matrix);
  int64_t first = 0;
  for (; panel >= panels_of(part->rows); ++part) panel -= panels_of(part->rows), first += part->rows;
  return {part, panel, std::min(most, panels_of(part->rows) - panel), first + panel * PANEL};
}

}  // namespace

void quantize(const Quantize& a) {
  const Kernels& k = kernels();
  // Whole tiles: rows of one have lines of memory in common.
  parallel_for(ceil_div(a.tokens, PANEL), GRAIN / (PANEL * a.columns) + 1,
               [&](int64_t begin, int64_t end) { k.quantize(a, begin * PANEL, std::min(end * PANEL, a.tokens)); });
}

void quantized_linear(const QuantizedLinear& a) {
  if (a.tokens == 0) return;
  const QuantizedKernels& k = quantized_kernels();
  QuantizedRows x = quantized_rows(a.x, a.tokens, a.matrix->columns);
  int64_t panels = 0, step = std::min(rows_at_once(x), a.tokens);
  for (int64_t i = 0; i < a.matrix->count; ++i) panels += panels_of(parts_of(a.matrix)[i].rows);
  constexpr int64_t grain = 64 * GRAIN;  // products
  parallel_for(ceil_div(a.tokens, step) * panels, grain / (PANEL * a.matrix->columns * step) + 1,
               [&](int64_t begin, int64_t end) {
                 thread_local const auto scratch = std::make_unique_for_overwrite<Scratch>();
                 while (begin < end) {
                   int64_t row = begin / panels * step;
                   PanelRun run = find(a.matrix, begin % panels, end - begin);
                   k.linear(a, x, run, row, std::min(row + step, a.tokens), scratch.get());
                   begin += run.count;
                 }
               });
}

void quantized_embedding(const QuantizedEmbedding& a) {
  const QuantizedKernels& k = quantized_kernels();
  parallel_for(a.tokens, GRAIN / a.columns + 1, [&](int64_t begin, int64_t end) { k.embedding(a, begin, end); });
}

}  // namespace octavo
