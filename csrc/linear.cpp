// x W^T for a few rows, W shared out between threads.
#include <vector>

#include "octavo.h"
#include "parallel.h"

namespace octavo {

void linear(const Linear& a) {
  const Kernels& k = kernels();
  thread_local std::vector<float> packed;
  int64_t most = a.tokens * (a.in_features + 2 * k.lanes);
  if (int64_t(packed.size()) < most) packed.resize(most);
  const float* x = packed.data();
  int64_t width = k.pack_rows(a, packed.data());
  constexpr int64_t grain = 65536;  // weights
  int64_t blocks = (a.out_features + k.lanes - 1) / k.lanes;
  parallel_for(blocks, grain / (k.lanes * a.in_features) + 1,
               [&](int64_t begin, int64_t end) { k.linear(a, x, width, begin, end); });
}

}  // namespace octavo
