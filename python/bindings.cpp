// The door from Python into csrc: addresses and sizes in, status codes turned into InputError with n, m, k.
// It knows no torch: arbllm_kernels/native.py, cpu.py and table.py pass Tensor.data_ptr() and keep the tensors alive
// meanwhile.
#include "bindings.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "arb/bits.h"
#include "arb/cpu.h"
#include "arb/dequantize.h"
#include "arb/gemm.h"
#include "arb/table.h"

namespace py = pybind11;

namespace {

template <typename T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

arb::Buffer buffer(uintptr_t address, int64_t length) { return {pointer<const void>(address), length}; }

[[noreturn]] void raise_input_error(const std::string& text) {
    const py::object type = py::module_::import("arbllm_kernels.errors").attr("InputError");
    py::set_error(type, text.c_str());
    throw py::error_already_set();
}

std::vector<arb::IsaInfo> isas() {
    std::vector<arb::IsaInfo> infos(static_cast<size_t>(arb::list_isas(nullptr, 0)));
    arb::list_isas(infos.data(), static_cast<int>(infos.size()));
    return infos;
}

void check_isa(arb::Status status, const std::optional<std::string>& name) {
    if (status == arb::Status::ok) return;
    std::string usable;
    for (const arb::IsaInfo& info : isas()) {
        if (info.available) usable += std::string(usable.empty() ? "" : ", ") + info.name;
    }
    const char* forced = std::getenv("ARBLLM_FORCE_ISA");
    const std::string source = name ? "set_isa(\"" + *name + "\")" : std::string("ARBLLM_FORCE_ISA=") + forced;
    raise_input_error(source + ": " + arb::message(status) + "; usable here: " + usable);
}

void check(arb::Status status, const arb::PackedView& w, const char* what) {
    if (status == arb::Status::ok) return;
    if (status == arb::Status::out_of_memory) throw std::bad_alloc();
    if (status == arb::Status::unknown_isa || status == arb::Status::missing_isa) check_isa(status, std::nullopt);
    raise_input_error(std::string(what) + ": " + arb::message(status) + " (weight n = " + std::to_string(w.rows) +
                      ", m = " + std::to_string(w.cols) + ", k = " + std::to_string(w.block_size) + ")");
}

std::string active_isa() {
    const char* name = nullptr;
    check_isa(arb::active_isa(&name), std::nullopt);
    return name;
}

}  // namespace

const char* gemm(arb::Weight& weight, uintptr_t x, arb::Element element, int64_t batch, uintptr_t y, int64_t threads,
                 arb::Activations activations) {
    const char* ran = nullptr;
    arb::Status status;
    {
        const py::gil_scoped_release released;
        status = weight.gemm(pointer<const void>(x), element, batch, pointer<void>(y), threads, activations, &ran);
    }
    check(status, weight.view(), "gemm");
    return ran;
}

namespace {

const char* dequantize(const arb::PackedView& w, int64_t begin, int64_t end, bool stored_order, arb::Element element,
                       uintptr_t out, int64_t threads) {
    const auto columns = stored_order ? arb::Columns::stored : arb::Columns::original;
    const char* ran = nullptr;
    arb::Status status;
    {
        const py::gil_scoped_release released;
        status = arb::dequantize(w, begin, end, columns, element, pointer<void>(out), threads, &ran);
    }
    check(status, w, "dequantize");
    return ran;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Native CPU kernels of arbllm_kernels; use arbllm_kernels.native and arbllm_kernels.ops instead.";

    py::enum_<arb::Element>(m, "Element")
        .value("fp32", arb::Element::fp32)
        .value("bf16", arb::Element::bf16)
        .value("fp16", arb::Element::fp16);
    py::enum_<arb::Activations>(m, "Activations")
        .value("exact", arb::Activations::exact)
        .value("int8", arb::Activations::int8);

    // Each buffer is an address and a length in elements; address 0 means that the weight has no such part.
    py::class_<arb::PackedView>(m, "PackedView")
        .def(py::init([](int64_t rows, int64_t cols, int64_t block_size, int64_t groups, int64_t salient_groups,
                         int64_t salient_order, int64_t exponent, int64_t shared_columns, bool half, bool whole,
                         uintptr_t sign, int64_t sign_length, uintptr_t group, int64_t group_length, uintptr_t second,
                         int64_t second_length, uintptr_t row_scale, int64_t row_scale_length, uintptr_t row_base,
                         int64_t row_base_length, uintptr_t mean, int64_t mean_length, uintptr_t col_scale,
                         int64_t col_scale_length, uintptr_t col_scale2, int64_t col_scale2_length, uintptr_t order,
                         int64_t order_length, uintptr_t counts, int64_t counts_length) {
            arb::PackedView w;
            w.rows = rows;
            w.cols = cols;
            w.block_size = block_size;
            w.groups = groups;
            w.salient_groups = salient_groups;
            w.salient_order = salient_order;
            w.exponent = exponent;
            w.shared_columns = shared_columns;
            w.scale_type = half ? arb::ScaleType::fp16 : arb::ScaleType::fp32;
            w.row_scale_type = whole ? arb::ScaleType::u8 : w.scale_type;
            w.sign = buffer(sign, sign_length);
            w.group = buffer(group, group_length);
            w.second = buffer(second, second_length);
            w.row_scale = buffer(row_scale, row_scale_length);
            w.row_base = buffer(row_base, row_base_length);
            w.mean = buffer(mean, mean_length);
            w.col_scale = buffer(col_scale, col_scale_length);
            w.col_scale2 = buffer(col_scale2, col_scale2_length);
            w.order = buffer(order, order_length);
            w.counts = buffer(counts, counts_length);
            return w;
        }))
        .def("digits_of", &arb::digits_of)
        .def_readonly("rows", &arb::PackedView::rows)
        .def_readonly("cols", &arb::PackedView::cols)
        .def_readonly("groups", &arb::PackedView::groups)
        .def_property_readonly("covers_line", &arb::covers_line)
        .def_property_readonly("gains_by_copy", &arb::gains_by_copy);

    // A view and its plan, for as many calls as wanted.
    py::class_<arb::Weight>(m, "Weight")
        .def(py::init<const arb::PackedView&, bool>(), py::arg("view"), py::arg("repack") = false)
        .def("gemm", &gemm,
             "y = x W^T for contiguous x [batch, m], y [batch, n] of the same elements; returns the ISA that ran.");
    m.def("dequantize", &dequantize, "Rows begin..end-1, contiguous; returns the ISA that ran.");
    m.def(
        "table_gemm",
        [](uintptr_t codes, int64_t rows, int64_t cols, uintptr_t x, int64_t batch, uintptr_t y, int64_t threads) {
            active_isa();
            const py::gil_scoped_release released;
            const arb::Status status = arb::table_gemm(pointer<const int8_t>(codes), rows, cols,
                                                       pointer<const float>(x), batch, pointer<float>(y), threads);
            if (status != arb::Status::ok) throw std::invalid_argument(arb::message(status));
        },
        "y = x codes^T for contiguous int8 codes [rows, cols], float32 x [batch, cols] and y [batch, rows].");
    m.def("words_for", &arb::words_for, "32-bit words per row of so many bits.");
    m.def(
        "pack_bits",
        [](uintptr_t bits, int64_t rows, int64_t length, uintptr_t words) {
            arb::pack_bits(pointer<const uint8_t>(bits), rows, length, pointer<uint32_t>(words));
        },
        py::call_guard<py::gil_scoped_release>());
    m.def(
        "unpack_bits",
        [](uintptr_t words, int64_t rows, int64_t length, uintptr_t bits) {
            arb::unpack_bits(pointer<const uint32_t>(words), rows, length, pointer<uint8_t>(bits));
        },
        py::call_guard<py::gil_scoped_release>());

    m.def("isas", [] {
        py::dict found;
        for (const arb::IsaInfo& info : isas()) found[info.name] = info.available;
        return found;
    });
    m.def("is_amd", &arb::is_amd);
    m.def("has_avx512bf16", &arb::has_avx512bf16);
    m.def("near_cache_bytes", &arb::near_cache_bytes);
    m.def("active_isa", &active_isa);
    m.def("set_isa", [](const std::optional<std::string>& name) {
        check_isa(arb::set_isa(name ? name->c_str() : nullptr), name);
    });

    register_solver(m);
    register_direct(m);

    // Constants of the format, for the test that compares them with packed.py and config.py.
    m.attr("WORD") = arb::kWordBits;
    m.attr("MAX_DIM") = arb::kMaxDim;
    m.attr("MAX_BLOCK") = arb::kMaxBlock;
    m.attr("MAX_EXPONENT") = arb::kMaxExponent;
    m.attr("MAX_GROUPS") = arb::kMaxGroups;
}
