// Sampling, a row for each thread.
#include <memory>

#include "octavo.h"
#include "parallel.h"

namespace octavo {
namespace {

// Memory of a thread, kept from step to step.
class Room {
 public:
  SampleRoom of(int64_t vocabulary) {
    if (vocabulary > vocabulary_) {
      weights_ = std::make_unique_for_overwrite<float[]>(vocabulary);
      sums_ = std::make_unique_for_overwrite<double[]>(vocabulary / SAMPLE_STRETCH + 1);
      heap_ = std::make_unique_for_overwrite<uint64_t[]>(vocabulary);
      vocabulary_ = vocabulary;
    }
    return {weights_.get(), sums_.get(), heap_.get()};
  }

 private:
  int64_t vocabulary_ = 0;
  std::unique_ptr<float[]> weights_;
  std::unique_ptr<double[]> sums_;
  std::unique_ptr<uint64_t[]> heap_;
};

}  // namespace

void sample(const Sample& a) {
  parallel_each(a.rows, [&](int64_t row) {
    thread_local Room room;
    kernels().sample(a, row, room.of(a.vocabulary));
  });
}

}  // namespace octavo
