// The only file that knows Python. Tensors arrive as addresses and sizes; octavo/kernels/cpu.py vouches for them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "octavo.h"
#include "parallel.h"
#include "program.h"

namespace nb = nanobind;
using namespace octavo;

namespace {

using Address = uintptr_t;
using Size = int64_t;

template <class T = void>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// One operation under one name twice: as a function, which runs it, and as a method of Program, which records it.
template <class Operation, class... Arguments>
void bind(nb::module_& m, nb::class_<Program>& program, const char* name, void (*run)(const Operation&),
          Operation (*make)(Arguments...)) {
  m.def(name, [=](Arguments... arguments) { run(make(arguments...)); }, nb::call_guard<nb::gil_scoped_release>());
  program.def(name, [=](Program& self, Arguments... arguments) { self.add(make(arguments...)); });
}

Attention make_attention(int dtype, Address q, Size q_stride, Address k, Address v, Address query_start,
                         Address seq_lens, Address block_tables, Size table_stride, Address out, Size rows, Size heads,
                         Size kv_heads, Size head_size, Size block_size, float scale, Size window, float softcap) {
  return {DType(dtype),
          at(q),
          q_stride,
          at(k),
          at(v),
          at<int32_t>(query_start),
          at<int32_t>(seq_lens),
          at<int32_t>(block_tables),
          table_stride,
          at(out),
          rows,
          heads,
          kv_heads,
          head_size,
          block_size,
          scale,
          window,
          softcap};
}
WriteKV make_write_kv(int dtype, Address k, Address v, Size k_stride, Size v_stride, Address k_cache, Address v_cache,
                      Address slots, Size tokens, Size kv_heads, Size head_size, Size block_size) {
  return {DType(dtype),       at(k),  at(v),    k_stride,  v_stride,  at(k_cache), at(v_cache),
          at<int64_t>(slots), tokens, kv_heads, head_size, block_size};
}
Rotary make_rotary(int dtype, Address q, Address k, Size q_stride, Size k_stride, Address positions, Address table,
                   Address q_weight, Address k_weight, float eps, Size tokens, Size heads, Size kv_heads,
                   Size head_size) {
  return {DType(dtype),
          at(q),
          at(k),
          q_stride,
          k_stride,
          at<int64_t>(positions),
          at<float>(table),
          at<float>(q_weight),
          at<float>(k_weight),
          eps,
          tokens,
          heads,
          kv_heads,
          head_size};
}
RMSNorm make_rms_norm(int dtype, Address x, Address residual, Address weight, Address out, float eps, Size tokens,
                      Size width) {
  return {DType(dtype), at(x), at(residual), at<float>(weight), at(out), eps, tokens, width};
}
ActMul make_act_mul(int dtype, int activation, Address gate_up, Address out, Size tokens, Size width) {
  return {DType(dtype), Activation(activation), at(gate_up), at(out), tokens, width};
}
Linear make_linear(int dtype, int out_dtype, Address x, Size x_stride, Address weight, Address bias, Address out,
                   Size tokens, Size in_features, Size out_features) {
  return {DType(dtype), DType(out_dtype), at(x),  x_stride,    at(weight),
          at(bias),     at(out),          tokens, in_features, out_features};
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "octavo's compiled kernels; call them through octavo.kernels.ops";

  nb::class_<Program> program(m, "Program");
  program.def(nb::init<>()).def("__len__", &Program::size);
  program.def(
      "run",
      [](Program& self, Size tokens, Size rows, Address positions, Address slots, Address query_start, Address seq_lens,
         Address block_tables, Size table_stride) {
        self.run({tokens, rows, at<int64_t>(positions), at<int64_t>(slots), at<int32_t>(query_start),
                  at<int32_t>(seq_lens), at<int32_t>(block_tables), table_stride});
      },
      nb::call_guard<nb::gil_scoped_release>());

  bind(m, program, "paged_attention", paged_attention, make_attention);
  bind(m, program, "write_kv", write_kv, make_write_kv);
  bind(m, program, "rotary", rotary, make_rotary);
  bind(m, program, "rms_norm", rms_norm, make_rms_norm);
  bind(m, program, "act_mul", act_mul, make_act_mul);
  bind(m, program, "linear", linear, make_linear);

  m.def("available_isas", [] {
    nb::list names;
    for (const char* const* name = available_isas(); *name; ++name) names.append(*name);
    return names;
  });
  m.def("use_isa", [](const char* name) { return use_isa(name); });
  m.def("thread_count", [] { return thread_count(); });
  m.def("set_thread_count", [](int threads) { set_thread_count(threads); });
}
