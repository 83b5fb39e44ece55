// x W^T in bfloat16 by AMX tiles, for any number of rows: 16 outputs times 16 rows of x, 32 columns at a time.
//
// W is read as it lies, as the left side; x is turned once, for all threads, into the pairs that the right side wants.
// A tile sums an output along the columns, first to last, in float32, whatever stands beside it: a row's result is the
// same however many rows come with it.
#include "vec.h"

namespace octavo::OCTAVO_ISA {
namespace {

constexpr int64_t SIDE = 16, DEPTH = 32, TILE = SIDE * SIDE;  // TILE: words of a tile
constexpr int64_t LINE = 64;                                  // bytes of its rows

// Registers 0 to 3 are sums [output][row], 4 and 5 weights, 6 and 7 rows of x.
struct alignas(LINE) Tiles {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16];
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  constexpr explicit Tiles(uint16_t m) : row_bytes{m, m, m, m, LINE, LINE, m, m} {}
};
// For 1 to 16 rows of x. Constants: GCC does not see that the instruction reads all of one.
constexpr Tiles TILES[SIDE] = {Tiles(4),  Tiles(8),  Tiles(12), Tiles(16), Tiles(20), Tiles(24), Tiles(28), Tiles(32),
                               Tiles(36), Tiles(40), Tiles(44), Tiles(48), Tiles(52), Tiles(56), Tiles(60), Tiles(64)};

// x: [tile of rows][block of columns][pair][row][2]. Of several tiles the last one is filled up.
struct PackedRows {
  int64_t blocks, rows;  // rows: of a tile
  const uint32_t* words;

  PackedRows(const Linear& a, const void* packed)
      : blocks((a.in_features + DEPTH - 1) / DEPTH), rows(min(a.tokens, SIDE)), words((const uint32_t*)packed) {}
  int64_t block_words() const { return SIDE * rows; }
  const uint32_t* tile(int64_t index) const { return words + index * blocks * block_words(); }
};

void pack(const Linear& a, void* packed, int64_t begin, int64_t end) {
  PackedRows out(a, packed);
  const bf16* x = static_cast<const bf16*>(a.x);
  for (int64_t tile = begin; tile < end; ++tile) {
    const char* rows[SIDE];
    for (int64_t r = 0; r < SIDE; ++r) rows[r] = (const char*)(x + min(tile * SIDE + r, a.tokens - 1) * a.x_stride);
    uint32_t* to = const_cast<uint32_t*>(out.tile(tile));
    for (int64_t k = 0; k < a.in_features; k += DEPTH, to += out.block_words()) {
      u32v words[W];
      turned_words(rows, 2 * k, 2 * (a.in_features - k), words);
      for (int64_t p = 0; p < SIDE; ++p) {
        if (out.rows == SIDE)
          store_bits(to + p * SIDE, words[p]);
        else
          __builtin_memcpy(to + p * out.rows, &words[p], out.rows * sizeof(uint32_t));
      }
    }
  }
}

// 16 rows of W; of the last ones of a matrix, some may belong to the panel before.
struct Panel {
  const bf16* weights;
  int64_t output, skipped, count;                  // the first one that is written, those before it, those written
  alignas(LINE) uint16_t rest[SIDE * DEPTH] = {};  // the last columns, filled up

  Panel(const Linear& a, int64_t n) {
    int64_t first = min(n, a.out_features - SIDE);
    output = n, skipped = n - first, count = SIDE - skipped;
    weights = static_cast<const bf16*>(a.weight) + first * a.in_features;
    int64_t columns = a.in_features % DEPTH;
    if (columns)
      for (int64_t r = 0; r < SIDE; ++r)
        __builtin_memcpy(rest + r * DEPTH, weights + (r + 1) * a.in_features - columns, columns * sizeof(bf16));
  }
};

// Sums [output][row] of a panel, for the rows of a tile.
template <class Out>
void put(const Linear& a, const float* sums, const Panel& panel, int64_t tile) {
  f32v rows[SIDE];
  for (int64_t o = 0; o < SIDE; ++o) rows[o] = load(sums + o * SIDE);
  transpose(rows);
  f32v bias = {};
  if (a.bias) bias = load_some(static_cast<const bf16*>(a.bias) + panel.output, panel.count);
  int64_t first = tile * SIDE, count = min(SIDE, a.tokens - first);
  Out* out = static_cast<Out*>(a.out) + first * a.out_features + panel.output;
  for (int64_t r = 0; r < count; ++r, out += a.out_features) {
    if (panel.skipped == 0) {
      store(out, rows[r] + bias);
      continue;
    }
    float some[2 * SIDE] = {};
    store(some, rows[r]);
    store_some(out, load(some + panel.skipped) + bias, panel.count);
  }
}

// Some columns of panels, as they lie or gathered into tiles.
struct Columns {
  int64_t begin, end;  // begin: a multiple of DEPTH
  const bf16 *first, *second;
  int64_t stride, next;  // from row to row and from tile to tile, in elements
};

// One or two panels times one or two tiles of rows, for some columns. sums: [tile][panel], which it goes on with.
// Numbers of registers must be literals.
template <bool WIDE, bool LONG>
void multiply(const Linear& a, const PackedRows& x, const Panel* panels, int64_t tile, Columns columns,
              float (&sums)[4][TILE]) {
  const int64_t skip = columns.begin / DEPTH * x.block_words();
  const uint32_t *above = x.tile(tile) + skip, *below = x.tile(tile + LONG) + skip;
  const bf16 *first = columns.first, *second = columns.second;
  const int64_t stride = columns.stride * sizeof(bf16), next = x.block_words(), row_bytes = x.rows * sizeof(uint32_t);
  if (columns.begin == 0) {
    _tile_zero(0);
    if constexpr (WIDE) _tile_zero(1);
    if constexpr (LONG) _tile_zero(2);
    if constexpr (WIDE && LONG) _tile_zero(3);
  } else {
    _tile_loadd(0, sums[0], LINE);
    if constexpr (WIDE) _tile_loadd(1, sums[1], LINE);
    if constexpr (LONG) _tile_loadd(2, sums[2], LINE);
    if constexpr (WIDE && LONG) _tile_loadd(3, sums[3], LINE);
  }
  auto add = [&](const void* w, const void* v, int64_t weight_stride) __attribute__((always_inline)) {
    _tile_loadd(4, w, weight_stride);
    _tile_loadd(6, above, row_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (WIDE) {
      _tile_loadd(5, v, weight_stride);
      _tile_dpbf16ps(1, 5, 6);
    }
    if constexpr (LONG) {
      _tile_loadd(7, below, row_bytes);
      _tile_dpbf16ps(2, 4, 7);
      if constexpr (WIDE) _tile_dpbf16ps(3, 5, 7);
    }
    above += next, below += next;
  };
  int64_t k = columns.begin;
  for (; k + DEPTH <= columns.end; k += DEPTH) {
    if (tile == 0)  // the weights that come next, while these are multiplied for the first time
      for (int64_t r = 0; r < (WIDE ? 2 : 1) * SIDE; ++r)
        __builtin_prefetch(panels[0].weights + (2 * SIDE + r) * a.in_features + k, 0, 2);
    if (LONG)  // rows of x that come soon: not in the nearest cache, where the weights are
      for (int64_t r = 0; r < SIDE; ++r) {
        __builtin_prefetch(above + 2 * next + r * SIDE, 0, 3);
        __builtin_prefetch(below + 2 * next + r * SIDE, 0, 3);
      }
    add(first, second, stride);
    first += columns.next, second += columns.next;
  }
  if (k < columns.end) add(panels[0].rest, panels[WIDE].rest, LINE);
  _tile_stored(0, sums[0], LINE);
  if constexpr (WIDE) _tile_stored(1, sums[1], LINE);
  if constexpr (LONG) _tile_stored(2, sums[2], LINE);
  if constexpr (WIDE && LONG) _tile_stored(3, sums[3], LINE);
  if (columns.end < a.in_features) return;
  for (int64_t t = 0; t < 1 + LONG; ++t)
    for (int64_t p = 0; p < 1 + WIDE; ++p) {
      if (a.out_dtype == DType::f32)
        put<float>(a, sums[2 * t + p], panels[p], tile + t);
      else
        put<bf16>(a, sums[2 * t + p], panels[p], tile + t);
    }
}

constexpr int64_t TILES_AT_ONCE = 64;  // of rows

constexpr int64_t NEAR = 8 * DEPTH;  // columns of two panels that stay in the first-level cache while rows pass

struct alignas(LINE) Scratch {
  float sums[TILES_AT_ONCE / 2][4][TILE];
  bf16 weights[2][NEAR * SIDE];
};

// Rows of W that are far apart would meet in the same lines of the cache.
void gather(const Panel& panel, int64_t width, int64_t begin, int64_t end, bf16* to) {
  for (int64_t k = begin; k + DEPTH <= end; k += DEPTH, to += SIDE * DEPTH)
    for (int64_t r = 0; r < SIDE; ++r) store_bits(to + r * DEPTH, load_bits<u32v>(panel.weights + r * width + k));
}

template <bool WIDE>
void multiply(const Linear& a, const PackedRows& x, const Panel* panels, int64_t begin, int64_t end, Scratch& scratch) {
  const bool many = end - begin > 4;
  const int64_t step = many ? NEAR : a.in_features, width = a.in_features;
  for (int64_t k = 0; k < width; k += step) {
    Columns columns{k, min(k + step, width), panels[0].weights + k, panels[WIDE].weights + k, width, DEPTH};
    if (many) {
      for (int64_t p = 0; p < 1 + WIDE; ++p) gather(panels[p], width, k, columns.end, scratch.weights[p]);
      columns = {k, columns.end, scratch.weights[0], scratch.weights[WIDE], DEPTH, SIDE * DEPTH};
    }
    for (int64_t tile = begin, i = 0; tile < end; tile += 2, ++i) {
      if (tile + 1 < end)
        multiply<WIDE, true>(a, x, panels, tile, columns, scratch.sums[i]);
      else
        multiply<WIDE, false>(a, x, panels, tile, columns, scratch.sums[i]);
    }
  }
}

// Tiles [begin, end) of rows times panels [first, last).
void linear_tiles(const Linear& a, const void* packed, int64_t begin, int64_t end, int64_t first, int64_t last,
                  void* scratch) {
  PackedRows x(a, packed);
  Scratch& room = *static_cast<Scratch*>(scratch);
  _tile_loadconfig(&TILES[x.rows - 1]);
  for (int64_t p = first; p < last; p += 2) {
    Panel panels[] = {Panel(a, p * SIDE), Panel(a, min(p + 1, last - 1) * SIDE)};
    if (p + 1 < last)
      multiply<true>(a, x, panels, begin, end, room);
    else
      multiply<false>(a, x, panels, begin, end, room);
  }
  _tile_release();
}

}  // namespace

extern const TiledLinear tiled_linear_table;
const TiledLinear tiled_linear_table = {SIDE, DEPTH, TILES_AT_ONCE, sizeof(Scratch), pack, linear_tiles};

}  // namespace octavo::OCTAVO_ISA
