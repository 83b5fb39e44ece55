// The only place that knows how threads are made: OpenMP where it was found, one thread elsewhere.
//
// torch ships OpenMP under the same library name and is imported first, so both share one pool of threads and one
// setting of their number.
#pragma once

#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace octavo {

inline int thread_count() {
#ifdef _OPENMP
  return omp_in_parallel() ? 1 : omp_get_max_threads();
#else
  return 1;
#endif
}

// fn(begin, end) over [0, count) in one contiguous piece per thread; serial when there is less than `grain` for each of
// two threads. Either all threads take part or one: teams of changing size make OpenMP start and end threads.
template <class Fn>
void parallel_for(int64_t count, int64_t grain, const Fn& fn) {
#ifdef _OPENMP
  if (thread_count() > 1 && count > 1 && count >= 2 * grain) {
#pragma omp parallel
    {
      int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
      int64_t begin = count * me / threads, end = count * (me + 1) / threads;
      if (begin < end) fn(begin, end);
    }
    return;
  }
#endif
  (void)grain;
  if (count > 0) fn(0, count);
}

// fn(i) for i in [0, count), handed out one at a time: for items of unequal cost.
template <class Fn>
void parallel_each(int64_t count, const Fn& fn) {
#ifdef _OPENMP
  if (thread_count() > 1 && count > 1) {
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t i = 0; i < count; ++i) fn(i);
    return;
  }
#endif
  for (int64_t i = 0; i < count; ++i) fn(i);
}

}  // namespace octavo
