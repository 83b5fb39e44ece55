// The only place that knows threads: a pool that lives as long as the process.
//
// Workers wait by spinning for a moment, because the next operation of a step follows at once, and then sleep, because
// the next step may not. Work is handed out in pieces as threads become free, so a core that a neighbour slows down
// holds nobody up; results must therefore not depend on who computes what.
#pragma once

#include <cstdint>
#include <type_traits>

namespace octavo {

inline constexpr int64_t GRAIN = 4096;  // elements read that are worth waking a thread for

int thread_count();
// Threads that compute, the caller included. Not to be called while work runs.
void set_thread_count(int threads);

// Calls work(context, i) for every i in [0, pieces), each once, from any thread; returns when all are done. Work
// started inside work, or while another thread uses the pool, runs on the calling thread alone.
void run_pieces(int64_t pieces, void (*work)(const void* context, int64_t piece), const void* context);

// fn(i) for i in [0, count), handed out one at a time: for items of unequal cost.
template <class Fn>
void parallel_each(int64_t count, const Fn& fn) {
  run_pieces(count, [](const void* f, int64_t i) { (*static_cast<const Fn*>(f))(i); }, &fn);
}

// fn(begin, end) over [0, count) in contiguous pieces of at least `grain`; a few for each thread.
template <class Fn>
void parallel_for(int64_t count, int64_t grain, const Fn& fn) {
  constexpr int64_t PIECES = 4;  // for each thread: small enough to even out, large enough to stream
  int64_t pieces = thread_count() == 1 ? 1 : thread_count() * PIECES;
  if (grain > 1 && pieces > count / grain) pieces = count / grain;
  if (pieces > count) pieces = count;
  if (pieces <= 1) {
    if (count > 0) fn(int64_t{0}, count);
    return;
  }
  parallel_each(pieces, [&](int64_t i) { fn(count * i / pieces, count * (i + 1) / pieces); });
}

}  // namespace octavo
