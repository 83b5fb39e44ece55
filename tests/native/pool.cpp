// The thread pool as it is used and as it might be: nested, by several callers at once, with other numbers of threads
// from one call to the next, in a forked child. For a sanitizer to watch: `make sanitize`.
//
//   check_pool [rounds]
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <thread>
#include <vector>

#include "parallel.h"

using namespace octavo;

namespace {

void expect(bool good, const char* what) {
  if (good) return;
  std::printf("%s\n", what);
  std::exit(1);
}

// Plain memory on purpose: the pool alone orders who writes and who reads it.
void check_each_once(int64_t count) {
  std::vector<int> times(count);
  parallel_each(count, [&](int64_t i) { ++times[i]; });
  for (int each : times) expect(each == 1, "a piece ran never or twice");
}
void check_ranges(int64_t count, int64_t grain) {
  std::vector<int> times(count);
  parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) ++times[i];
  });
  for (int each : times) expect(each == 1, "a range missed an item or met it twice");
}
// Each operation reads what the one before wrote, as the layers of a model do.
void check_chain(int64_t length) {
  std::vector<int64_t> values(64, 0), next(64);
  for (int64_t step = 0; step < length; ++step) {
    parallel_for(64, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) next[i] = values[(i + 1) % 64] + 1;
    });
    std::swap(values, next);
  }
  expect(std::accumulate(values.begin(), values.end(), int64_t{0}) == 64 * length, "an operation read too early");
}
void check_nested() {
  std::vector<std::vector<int>> times(9, std::vector<int>(17));
  parallel_each(9, [&](int64_t i) { parallel_each(17, [&](int64_t j) { ++times[i][j]; }); });
  for (auto& row : times)
    for (int each : row) expect(each == 1, "a nested piece ran never or twice");
}
void check_all(int64_t round) {
  check_each_once(round % 40);
  check_ranges(round % 100, round % 7 + 1);
  check_chain(20);
  check_nested();
}

void check_callers(int64_t rounds) {
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i)
    callers.emplace_back([=] {
      for (int64_t round = 0; round < rounds; ++round) check_all(round + i);
    });
  for (std::thread& caller : callers) caller.join();
}

void check_fork() {
  check_all(20);  // there are workers, which the child does not have
  pid_t child = fork();
  if (child == 0) {
    check_all(20);
    _exit(0);
  }
  int status = 0;
  expect(waitpid(child, &status, 0) == child && status == 0, "the pool does not work in a forked child");
}

}  // namespace

int main(int count, char** arguments) {
  int64_t rounds = count > 1 ? std::atoll(arguments[1]) : 100;
  check_callers(rounds);  // before anything else: the first call makes the pool
  for (int64_t round = 0; round < rounds; ++round) {
    set_thread_count(int(round % 5));
    expect(thread_count() == (round % 5 ? round % 5 : 1), "another number of threads than was set");
    for (int64_t i = 0; i < 3; ++i) check_all(round + i);
    if (round % 10 == 0) {
      check_fork();
      std::this_thread::sleep_for(std::chrono::milliseconds(2));  // workers fall asleep
    }
  }
  set_thread_count(4);
  check_callers(rounds);
  std::printf("%lld rounds of the pool\n", static_cast<long long>(rounds));
}
