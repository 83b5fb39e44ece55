// Attention of a mixed batch, cut into tiles that threads take one by one.
//
// A tile is some packed query rows of one sequence and one key/value head. Contexts are computed SPLIT keys
// at a time and merged from left to right; when there are few tiles (one long sequence, one key/value head) the splits
// themselves are handed out, and merged afterwards in the same order: the same bits either way.
#include <algorithm>
#include <vector>

#include "buffer.h"
#include "octavo.h"
#include "parallel.h"

namespace octavo {
namespace {

constexpr int64_t ALIGNMENT = 16;  // floats
constexpr int64_t FEW_KEYS = 512;  // in all: not worth waking a thread

struct Work {
  AttentionTile tile;
  int64_t first, end;  // keys
};

float* thread_scratch(int64_t size) {
  thread_local Buffer buffer;
  return buffer.of<float>(size);
}

// Costliest first: the later a query, the more keys it sees.
std::vector<Work> tiles(const Attention& a) {
  std::vector<Work> work;
  int64_t tokens_per_tile = std::max<int64_t>(1, attention_kernels().tile_rows / (a.heads / a.kv_heads));
  for (int64_t row = 0; row < a.rows; ++row) {
    int64_t count = a.query_start[row + 1] - a.query_start[row];
    for (int64_t begin = 0; begin < count; begin += tokens_per_tile) {
      int64_t tokens = std::min(tokens_per_tile, count - begin), position = a.seq_lens[row] - count + begin;
      int64_t first = a.window > 0 ? std::max<int64_t>(0, position - a.window + 1) / CHUNK * CHUNK : 0;
      int64_t end = a.window < 0 ? a.seq_lens[row] : position + tokens;
      for (int64_t g = 0; g < a.kv_heads; ++g)
        work.push_back({{row, g, a.query_start[row] + begin, tokens, position}, first, end});
    }
  }
  std::stable_sort(work.begin(), work.end(),
                   [](const Work& x, const Work& y) { return x.end - x.first > y.end - y.first; });
  return work;
}

struct Run {
  const Attention& a;
  const AttentionKernels& k = attention_kernels();
  int64_t group = a.heads / a.kv_heads;
  int64_t most_rows = std::max<int64_t>(1, k.tile_rows / group) * group;
  int64_t state = (state_size(most_rows, a.head_size) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  int64_t scratch = scratch_size(most_rows, a.head_size);
  int64_t together = a.query_start[a.rows] == a.rows ? a.kv_heads : 1;

  static int64_t split_end(int64_t key, const Work& w) { return std::min(w.end, (key / SPLIT + 1) * SPLIT); }
  static int64_t splits(const Work& w) { return (w.end - 1) / SPLIT - w.first / SPLIT + 1; }

  void fetch(const Work& w) const {
    if (w.tile.tokens == 1) k.fetch(a, w.tile, w.first, w.end);
  }

  void whole(const Work& w) const {
    float *total = thread_scratch(2 * state + scratch), *part = total + state, *free = part + state;
    int64_t key = w.first, end = split_end(key, w);
    k.attend(a, w.tile, key, end, total, free);
    for (key = end; key < w.end; key = end) {
      end = split_end(key, w);
      k.attend(a, w.tile, key, end, part, free);
      k.merge(total, part, w.tile.tokens * group, padded(a.head_size));
    }
    k.finish(a, w.tile, total);
  }

  void shared(const std::vector<Work>& work) const {
    std::vector<int64_t> start(1, 0);
    for (const Work& w : work) start.push_back(start.back() + splits(w));
    thread_local Buffer buffer;
    float* states = buffer.of<float>(start.back() * state);
    parallel_each(start.back(), [&](int64_t i) {
      int64_t item = std::upper_bound(start.begin(), start.end(), i) - start.begin() - 1, split = i - start[item];
      const Work& w = work[item];
      int64_t key = split == 0 ? w.first : (w.first / SPLIT + split) * SPLIT;
      k.attend(a, w.tile, key, split_end(key, w), states + i * state, thread_scratch(scratch));
    });
    for (size_t item = 0; item < work.size(); ++item) {
      float* total = states + start[item] * state;
      for (int64_t i = start[item] + 1; i < start[item + 1]; ++i)
        k.merge(total, states + i * state, work[item].tile.tokens * group, padded(a.head_size));
      k.finish(a, work[item].tile, total);
    }
  }
};

}  // namespace

void paged_attention(const Attention& a) {
  std::vector<Work> work = tiles(a);
  if (work.empty()) return;
  Run run{a};
  int64_t keys = 0, threads = thread_count();
  for (const Work& w : work) keys += w.end - w.first;
  if (threads == 1 || keys < FEW_KEYS)
    for (size_t i = 0; i < work.size(); ++i) {
      if (i + 1 < work.size()) run.fetch(work[i + 1]);
      run.whole(work[i]);
    }
  else if (int64_t(work.size()) < 4 * threads && work.front().end - work.front().first > SPLIT)
    run.shared(work);
  else
    parallel_each(int64_t(work.size()) / run.together, [&](int64_t i) {
      for (int64_t end = (i + 1) * run.together, w = i * run.together; w < end; ++w) {
        if (w + 1 < end) run.fetch(work[w + 1]);
        run.whole(work[w]);
      }
    });
}

}  // namespace octavo
