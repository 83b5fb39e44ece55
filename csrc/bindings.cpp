// The only file that knows Python. Tensors arrive as addresses and sizes; octavo/kernels/cpu.py vouches for them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "octavo.h"
#include "parallel.h"
#include "program.h"
#include "quantized.h"

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

template <class Result>
void bind_run(nb::class_<Program>& program, const char* name, Result (Program::*run)(const Step&)) {
  program.def(
      name,
      [=](Program& self, Size tokens, Size rows, Address positions, Address slots, Address query_start,
          Address seq_lens, Address block_tables, Size table_stride) {
        return (self.*run)({tokens, rows, at<int64_t>(positions), at<int64_t>(slots), at<int32_t>(query_start),
                            at<int32_t>(seq_lens), at<int32_t>(block_tables), table_stride});
      },
      nb::call_guard<nb::gil_scoped_release>());
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
LayerNorm make_layer_norm(int dtype, Address x, Address residual, Address weight, Address bias, Address out, float eps,
                          Size tokens, Size width) {
  return {DType(dtype), at(x), at(residual), at<float>(weight), at<float>(bias), at(out), eps, tokens, width};
}
Act make_act(int dtype, int activation, Address x, Address out, Size tokens, Size width) {
  return {DType(dtype), Activation(activation), at(x), at(out), tokens, width};
}
ActMul make_act_mul(int dtype, int activation, Address gate_up, Address out, Size tokens, Size width) {
  return {DType(dtype), Activation(activation), at(gate_up), at(out), tokens, width};
}
Linear make_linear(int dtype, int out_dtype, Address x, Size x_stride, Address weight, Address bias, Address out,
                   Size tokens, Size in_features, Size out_features) {
  return {DType(dtype), DType(out_dtype), at(x),  x_stride,    at(weight),
          at(bias),     at(out),          tokens, in_features, out_features};
}

Quantize make_quantize(int dtype, Address x, Size x_stride, Address out, Size tokens, Size columns) {
  return {DType(dtype), at(x), x_stride, at(out), tokens, columns};
}
QuantizedLinear make_quantized_linear(int out_dtype, int bias_dtype, Address x, Address matrix, Address bias,
                                      Address out, Size tokens) {
  return {DType(out_dtype), DType(bias_dtype), at(x), at<PackedMatrix>(matrix), at(bias), at(out), tokens};
}

using Packing = std::tuple<int, int, int, bool>;      // bits, group, scales, minimums
using Parts = std::vector<std::pair<Size, Packing>>;  // rows of each

std::vector<PackedPart> packed_parts(const Parts& parts) {
  std::vector<PackedPart> out;
  for (auto& [rows, packing] : parts) {
    auto [bits, group, scales, minimums] = packing;
    out.push_back({rows, 0, bits, group, Scales(scales), minimums});
  }
  return out;
}

void bind_packing(nb::module_& m) {
  auto free = nb::call_guard<nb::gil_scoped_release>();
  m.def("gguf_packing", [](int type) -> std::optional<Packing> {
    PackedPart part;
    if (!gguf_packing(type, part)) return {};
    return Packing(part.bits, part.group, int(part.scales), part.minimums);
  });
  m.def("gguf_row_bytes", [](int type, Size columns) { return gguf_row_bytes(type, columns); });
  m.def("packed_bytes", [](Size columns, const Parts& parts) {
    return packed_bytes(columns, packed_parts(parts).data(), Size(parts.size()));
  });
  m.def("plan_matrix", [](Address matrix, Size columns, const Parts& parts) {
    plan_matrix(at<PackedMatrix>(matrix), columns, packed_parts(parts).data(), Size(parts.size()));
  });
  m.def(
      "pack_gguf",
      [](Address matrix, Size part, int type, Address blocks, Address order) {
        pack_gguf(at<PackedMatrix>(matrix), part, type, at<uint8_t>(blocks), at<int64_t>(order));
      },
      free);
  m.def(
      "pack_codes",
      [](Address matrix, Size part, Size columns, Address codes, Address scales, Address minimums) {
        pack_codes(at<PackedMatrix>(matrix), part, columns, at<uint8_t>(codes), at<float>(scales), at<float>(minimums));
      },
      free);
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "octavo's compiled kernels; call them through octavo.kernels.ops";

  nb::class_<Program> program(m, "Program");
  program.def(nb::init<>()).def("__len__", &Program::size);
  bind_run(program, "run", &Program::run);
  bind_run(program, "timed_run", &Program::timed_run);

  bind(m, program, "paged_attention", paged_attention, make_attention);
  bind(m, program, "write_kv", write_kv, make_write_kv);
  bind(m, program, "rotary", rotary, make_rotary);
  bind(m, program, "rms_norm", rms_norm, make_rms_norm);
  bind(m, program, "layer_norm", layer_norm, make_layer_norm);
  bind(m, program, "act", act, make_act);
  bind(m, program, "act_mul", act_mul, make_act_mul);
  bind(m, program, "linear", linear, make_linear);
  bind(m, program, "quantize", quantize, make_quantize);
  bind(m, program, "quantized_linear", quantized_linear, make_quantized_linear);

  m.def("linear_rows", [](int dtype) { return linear_rows(DType(dtype)); });
  bind_packing(m);
  m.def("quantized_bytes", [](Size rows, Size columns) { return quantized_bytes(rows, columns); });
  m.def(
      "quantized_embedding",
      [](int out_dtype, Address matrix, Address ids, Address out, Size tokens, Size columns) {
        quantized_embedding({DType(out_dtype), at<PackedMatrix>(matrix), at<int64_t>(ids), at(out), tokens, columns});
      },
      nb::call_guard<nb::gil_scoped_release>());

  m.def(
      "sample",
      [](Address logits, Size stride, Size rows, Size vocabulary, Address temperature, Address min_p, Address top_p,
         Address top_k, Address positions, Address first_draw, Address seeds, Address tokens, Address peaks) {
        sample({at<float>(logits), stride, rows, vocabulary, at<float>(temperature), at<float>(min_p), at<float>(top_p),
                at<int64_t>(top_k), at<int64_t>(positions), at<int64_t>(first_draw), at<uint64_t>(seeds),
                at<int64_t>(tokens), at<float>(peaks)});
      },
      nb::call_guard<nb::gil_scoped_release>());

  m.def("available_isas", [] {
    nb::list names;
    for (const char* const* name = available_isas(); *name; ++name) names.append(*name);
    return names;
  });
  m.def("use_isa", [](const char* name) { return use_isa(name); });
  m.def("thread_count", [] { return thread_count(); });
  m.def("set_thread_count", [](int threads) { set_thread_count(threads); });
}
