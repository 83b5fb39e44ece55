#include "parallel.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

namespace octavo {
namespace {

constexpr int SPINS = 4000;  // some 100 µs: the gaps between operations are shorter, those between steps longer

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// One worker per CPU that this process may use, when there are as many threads as CPUs: a moved worker finds cold
// caches.
void pin([[maybe_unused]] int worker, [[maybe_unused]] int threads) {
#ifdef __linux__
  cpu_set_t allowed, one;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) != threads) return;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed) || worker-- != 0) continue;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    pthread_setaffinity_np(pthread_self(), sizeof one, &one);
    return;
  }
#endif
}

class Pool {
 public:
  explicit Pool(int threads) : threads_(threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
  }
  ~Pool() {
    stop_.store(true);
    state_.fetch_add(ONE_TURN);
    wake();
    for (std::thread& worker : workers_) worker.join();
  }
  int threads() const { return threads_; }

  void run(int64_t pieces, void (*fn)(const void*, int64_t), const void* context) {
    fn_ = fn;
    context_ = context;
    pieces_ = pieces;
    next_.store(0, std::memory_order_relaxed);
    state_.store((state_.load(std::memory_order_relaxed) & TURN) + ONE_TURN + OPEN);
    wake();
    take();
    state_.fetch_and(~OPEN);  // a worker that has not come by now was not needed
    for (int spins = 0; (state_.load(std::memory_order_acquire) & HELPERS) != 0; ++spins) {
      if (spins < SPINS)
        pause();
      else
        std::this_thread::yield();  // a worker lost its core: let it have ours
    }
  }

 private:
  // One word says it all: which turn, whether it may still be joined, how many workers have joined and not left.
  static constexpr uint64_t HELPERS = 0xffff, OPEN = 1 << 16, ONE_TURN = 1 << 17, TURN = ~(ONE_TURN - 1);

  void take() {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < pieces_;) fn_(context_, i);
  }
  void wake() {
    if (asleep_.load() == 0) return;  // ordered after state_: a worker that misses it sees the turn before it sleeps
    std::lock_guard lock(mutex_);
    woken_.notify_all();
  }
  uint64_t turn() const { return state_.load(std::memory_order_acquire) & TURN; }
  bool join(uint64_t turn) {
    uint64_t state = state_.load(std::memory_order_relaxed);
    while ((state & TURN) == turn && (state & OPEN))
      if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acquire)) return true;
    return false;
  }
  void work(int index) {
    pin(index, threads_);
    for (uint64_t seen = 0;;) {
      for (int spins = 0; turn() == seen && spins < SPINS; ++spins) pause();
      if (turn() == seen) {
        std::unique_lock lock(mutex_);
        asleep_.fetch_add(1);
        woken_.wait(lock, [&] { return (state_.load() & TURN) != seen; });
        asleep_.fetch_sub(1);
      }
      seen = turn();
      if (stop_.load()) return;
      if (!join(seen)) continue;
      take();
      state_.fetch_sub(1, std::memory_order_release);
    }
  }

  const int threads_;
  void (*fn_)(const void*, int64_t) = nullptr;
  const void* context_ = nullptr;
  int64_t pieces_ = 0;
  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<int64_t> next_{0};  // the piece to take
  alignas(64) std::atomic<int> asleep_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable woken_;
  std::vector<std::thread> workers_;
};

// Never destroyed: workers may still wait when the process ends. A forked child has none of the parent's threads and
// starts anew.
Pool* pool = nullptr;
std::mutex owner;  // who may give the pool work
thread_local bool inside = false;

Pool* make_pool(int threads) {
#ifdef __linux__
  static bool registered = (pthread_atfork(nullptr, nullptr,
                                           [] {
                                             pool = nullptr;
                                             new (&owner) std::mutex;
                                           }),
                            true);
  (void)registered;
#endif
  return new Pool(threads);
}

int default_threads() {
#ifdef __linux__
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  unsigned cpus = std::thread::hardware_concurrency();
  return cpus ? int(cpus) : 1;
}

std::atomic<int> wanted{0};  // 0: not set yet

}  // namespace

int thread_count() {
  int threads = wanted.load(std::memory_order_relaxed);
  if (threads == 0) wanted.store(threads = default_threads(), std::memory_order_relaxed);  // the same for every caller
  return threads;
}

void set_thread_count(int threads) {
  std::lock_guard lock(owner);
  wanted = threads < 1 ? 1 : threads;
  delete pool;
  pool = nullptr;
}

void run_pieces(int64_t pieces, void (*work)(const void*, int64_t), const void* context) {
  std::unique_lock lock(owner, std::defer_lock);
  if (pieces > 1 && thread_count() > 1 && !inside && lock.try_lock()) {
    if (pool == nullptr) pool = make_pool(thread_count());
    inside = true;
    pool->run(pieces, work, context);
    inside = false;
    return;
  }
  for (int64_t i = 0; i < pieces; ++i) work(context, i);
}

}  // namespace octavo
