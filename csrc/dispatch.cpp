// Which instruction set runs: the best one that was compiled in and that this CPU has.
#include <cstring>

#include "octavo.h"

namespace octavo {

namespace baseline {
extern const Kernels table;
}
#ifdef OCTAVO_X86_LEVELS
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

namespace {

struct Choice {
  const Kernels* tables[3] = {};
  const char* names[4] = {};
  int count = 0;
  const Kernels* used;

  void add(const Kernels& table, bool present) {
    if (!present) return;
    tables[count] = &table;
    names[count++] = table.isa;
  }
  Choice() {
#ifdef OCTAVO_X86_LEVELS
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    add(avx512::table, avx512);
    add(avx2::table, avx2);
#endif
    add(baseline::table, true);
    used = tables[0];
  }
};

Choice& choice() {
  static Choice choice;
  return choice;
}

}  // namespace

const Kernels& kernels() { return *choice().used; }
const char* const* available_isas() { return choice().names; }
bool use_isa(const char* name) {
  for (int i = 0; i < choice().count; ++i)
    if (std::strcmp(choice().names[i], name) == 0) {
      choice().used = choice().tables[i];
      return true;
    }
  return false;
}

}  // namespace octavo
