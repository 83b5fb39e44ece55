// x W^T, W shared out between threads, and rows of x where there are many.
#include <algorithm>
#include <cstddef>
#include <limits>

#include "buffer.h"
#include "octavo.h"
#include "parallel.h"

namespace octavo {
namespace {

// Few rows, bound by the reading of W.
void linear_by_rows(const Linear& a, Buffer& packed) {
  const Kernels& k = kernels();
  float* x = packed.of<float>(a.tokens * (a.in_features + 2 * k.lanes));
  int64_t width = k.pack_rows(a, x);
  constexpr int64_t grain = 65536;  // weights
  int64_t blocks = (a.out_features + k.lanes - 1) / k.lanes;
  parallel_for(blocks, grain / (k.lanes * a.in_features) + 1,
               [&](int64_t begin, int64_t end) { k.linear(a, x, width, begin, end); });
}

void linear_by_tiles(const Linear& a, const TiledLinear& k, Buffer& packed) {
  constexpr int64_t CACHE = 1 << 17;  // words of x that stay in the second-level cache while panels pass
  int64_t width = (a.in_features + k.depth - 1) / k.depth * k.depth / 2;  // words
  int64_t tiles = (a.tokens + k.side - 1) / k.side, pairs = (a.out_features + 2 * k.side - 1) / (2 * k.side);
  int64_t panels = (a.out_features + k.side - 1) / k.side;
  void* x = packed.of<uint32_t>(tiles * k.side * width);
  parallel_for(tiles, GRAIN / (k.side * a.in_features) + 1,
               [&](int64_t begin, int64_t end) { k.pack(a, x, begin, end); });
  int64_t step = std::clamp<int64_t>(CACHE / (k.side * width) / 2 * 2, 2, k.tiles_at_once);
  constexpr int64_t grain = 16 * GRAIN;  // products
  parallel_for((tiles + step - 1) / step * pairs, grain / (2 * k.side * a.in_features * std::min(step, tiles)) + 1,
               [&](int64_t begin, int64_t end) {
                 thread_local Buffer buffer;
                 void* scratch = buffer.of<std::byte>(k.scratch_bytes);
                 while (begin < end) {
                   int64_t first = begin % pairs, count = std::min(end - begin, pairs - first);
                   int64_t tile = begin / pairs * step;
                   k.multiply(a, x, tile, std::min(tile + step, tiles), 2 * first,
                              std::min(2 * (first + count), panels), scratch);
                   begin += count;
                 }
               });
}

const TiledLinear* tiles_for(DType dtype) { return dtype == DType::bf16 ? tiled_linear() : nullptr; }

}  // namespace

void linear(const Linear& a) {
  if (a.tokens == 0) return;
  thread_local Buffer packed;
  const TiledLinear* tiles = tiles_for(a.dtype);
  if (tiles && a.out_features >= tiles->side) return linear_by_tiles(a, *tiles, packed);
  linear_by_rows(a, packed);
}

int64_t linear_rows(DType dtype) {
  if (tiles_for(dtype)) return std::numeric_limits<int32_t>::max();
  // Torch has matrix units for bfloat16, and blocks float32 for the caches; it repacks the weights at each call.
  return dtype == DType::bf16 ? 8 : 32;
}

}  // namespace octavo
