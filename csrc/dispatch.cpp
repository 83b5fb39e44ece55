// Which instruction set runs: the best one that was compiled in and that this
// CPU has.
#include <cstring>

#include "octavo.h"
#include "quantized.h"

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace octavo {

#define OCTAVO_ISA_TABLES(isa)                   \
  namespace isa {                                \
  extern const Kernels table;                    \
  extern const AttentionKernels attention_table; \
  extern const QuantizedKernels quantized_table; \
  }
OCTAVO_ISA_TABLES(baseline)
#ifdef OCTAVO_X86_LEVELS
OCTAVO_ISA_TABLES(avx2)
OCTAVO_ISA_TABLES(avxvnni)
OCTAVO_ISA_TABLES(avx512)
OCTAVO_ISA_TABLES(avx512vnni)
OCTAVO_ISA_TABLES(avx512bf16)
OCTAVO_ISA_TABLES(amx)
namespace amx {
extern const TiledLinear tiled_linear_table;
}
#endif

namespace {

#if defined(OCTAVO_X86_LEVELS) && defined(__linux__)
// Tile registers are large: Linux wants to be asked before a process uses them.
bool tiles_permitted() {
  constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#else
[[maybe_unused]] bool tiles_permitted() { return false; }
#endif

struct Level {
  const char* isa;
  const Kernels* kernels;
  const AttentionKernels* attention;
  const QuantizedKernels* quantized;
  const TiledLinear* tiled_linear;
};
struct Choice {
  static constexpr int MOST = 7;
  Level levels[MOST];
  const char* names[MOST + 1] = {};
  int count = 0;
  const Level* used = levels;

  void add(bool present, const char* isa, const Kernels& kernels, const AttentionKernels& attention,
           const QuantizedKernels& quantized, const TiledLinear* tiled_linear = nullptr) {
    if (!present) return;
    levels[count] = {isa, &kernels, &attention, &quantized, tiled_linear};
    names[count++] = isa;
  }
  Choice() {
#ifdef OCTAVO_X86_LEVELS
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    bool avx512vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    bool avx512bf16 = avx512vnni && __builtin_cpu_supports("avx512bf16");
    bool amx = avx512bf16 && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8") &&
               __builtin_cpu_supports("amx-bf16");
    add(amx && tiles_permitted(), "amx", avx512bf16::table, amx::attention_table, amx::quantized_table,
        &amx::tiled_linear_table);
    add(avx512bf16, "avx512bf16", avx512bf16::table, avx512bf16::attention_table, avx512bf16::quantized_table);
    add(avx512vnni, "avx512vnni", avx512::table, avx512::attention_table, avx512vnni::quantized_table);
    add(avx512, "avx512", avx512::table, avx512::attention_table, avx2::quantized_table);
    add(avx2 && __builtin_cpu_supports("avxvnni"), "avxvnni", avx2::table, avx2::attention_table,
        avxvnni::quantized_table);
    add(avx2, "avx2", avx2::table, avx2::attention_table, avx2::quantized_table);
#endif
    add(true, "baseline", baseline::table, baseline::attention_table, baseline::quantized_table);
  }
};

Choice& choice() {
  static Choice choice;
  return choice;
}

}  // namespace

const Kernels& kernels() { return *choice().used->kernels; }
const AttentionKernels& attention_kernels() { return *choice().used->attention; }
const QuantizedKernels& quantized_kernels() { return *choice().used->quantized; }
const TiledLinear* tiled_linear() { return choice().used->tiled_linear; }
const char* const* available_isas() { return choice().names; }
bool use_isa(const char* name) {
  for (int i = 0; i < choice().count; ++i)
    if (std::strcmp(choice().names[i], name) == 0) {
      choice().used = &choice().levels[i];
      return true;
    }
  return false;
}

}  // namespace octavo
