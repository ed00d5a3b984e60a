// The solver's part of the door from Python into csrc: addresses and sizes in, arb::Status out as InputError.
// arbllm_kernels/native_solver.py checks the tensors and keeps them alive meanwhile.
#include "bindings.h"

#include <new>
#include <string>

#include "arb/solver.h"

namespace py = pybind11;

namespace {

template <typename T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

void check(arb::Status status, const arb::Entries& e, const char* what) {
    if (status == arb::Status::ok) return;
    if (status == arb::Status::out_of_memory) throw std::bad_alloc();
    const py::object type = py::module_::import("arbllm_kernels.errors").attr("InputError");
    const std::string text = std::string(what) + ": " + arb::message(status) + " (s [" + std::to_string(e.rows) + ", " +
                             std::to_string(e.cols) + "])";
    py::set_error(type, text.c_str());
    throw py::error_already_set();
}

// Runs one of csrc's searches without holding the interpreter.
template <typename Search>
void run(const arb::Entries& e, const char* what, const Search& search) {
    arb::Status status;
    {
        const py::gil_scoped_release released;
        status = search();
    }
    check(status, e, what);
}

}  // namespace

void register_solver(py::module_& m) {
    py::class_<arb::Entries>(m, "Entries", "float32 s and uint8 members (address 0: all), both [rows, cols].")
        .def(py::init([](uintptr_t s, uintptr_t members, int64_t rows, int64_t cols) {
            return arb::Entries{pointer<const float>(s), pointer<const uint8_t>(members), rows, cols};
        }));
    m.def("salient_gains",
          [](const arb::Entries& e, uintptr_t ranked, int64_t limit, int64_t threads, uintptr_t gains) {
              run(e, "salient_gains", [&] {
                  return arb::salient_gains(e, pointer<const int64_t>(ranked), limit, threads, pointer<double>(gains));
              });
          });
    m.def("split_gains", [](const arb::Entries& e, uintptr_t thresholds, int64_t count, int64_t order, int64_t threads,
                            uintptr_t gains) {
        run(e, "split_gains", [&] {
            return arb::split_gains(e, pointer<const float>(thresholds), count, order, threads, pointer<double>(gains));
        });
    });
    m.def("output_costs", [](const arb::Entries& e, uintptr_t z, uintptr_t S, uintptr_t thresholds, int64_t count,
                             int64_t threads, uintptr_t costs) {
        run(e, "output_costs", [&] {
            return arb::output_costs(e, pointer<const float>(z), pointer<const float>(S),
                                     pointer<const float>(thresholds), count, threads, pointer<double>(costs));
        });
    });
    m.def("order_statistics",
          [](const arb::Entries& e, int64_t zeros, uintptr_t ranks, int64_t count, uintptr_t values) {
              run(e, "order_statistics", [&] {
                  return arb::order_statistics(e, zeros, pointer<const int64_t>(ranks), count, pointer<float>(values));
              });
          });
    m.def("fit_arb", [](const arb::Entries& e, int64_t order, int64_t iters, int64_t threads, uintptr_t planes,
                        uintptr_t row_scale, uintptr_t mean) {
        run(e, "fit_arb", [&] {
            return arb::fit_arb(e, order, iters, threads, pointer<uint8_t>(planes), pointer<float>(row_scale),
                                pointer<float>(mean));
        });
    });
    m.def("fit_arb_rc", [](const arb::Entries& e, int64_t order, int64_t iters, int64_t threads, uintptr_t planes,
                           uintptr_t row_scale, uintptr_t col_scale) {
        run(e, "fit_arb_rc", [&] {
            return arb::fit_arb_rc(e, order, iters, threads, pointer<uint8_t>(planes), pointer<float>(row_scale),
                                   pointer<float>(col_scale));
        });
    });
    m.def("arb_x_basis",
          [](const arb::Entries& zone, uintptr_t planes, int64_t order, int64_t threads, uintptr_t basis) {
              run(zone, "arb_x_basis", [&] {
                  return arb::arb_x_basis(zone, pointer<const uint8_t>(planes), order, threads, pointer<float>(basis));
              });
          });
    m.def("fit_arb_x", [](uintptr_t weight, uintptr_t basis, uintptr_t products, int64_t rows, int64_t cols,
                          int64_t vectors, int64_t iters, int64_t threads, uintptr_t coefficients) {
        const arb::BasisRows view{rows,
                                  cols,
                                  vectors,
                                  pointer<const float>(weight),
                                  pointer<const float>(basis),
                                  pointer<const float>(products)};
        run(arb::Entries{nullptr, nullptr, rows, cols}, "fit_arb_x",
            [&] { return arb::fit_arb_x(view, iters, threads, pointer<float>(coefficients)); });
    });
    m.def("fit_levels", [](uintptr_t weight, uintptr_t importance, uintptr_t levels, uintptr_t col, int64_t rows,
                           int64_t cols, int64_t count, int64_t iters, int64_t threads) {
        const arb::LevelsFit part{pointer<const float>(weight),
                                  pointer<const float>(importance),
                                  pointer<float>(levels),
                                  pointer<float>(col),
                                  rows,
                                  cols,
                                  count};
        run(arb::Entries{nullptr, nullptr, rows, cols}, "fit_levels",
            [&] { return arb::fit_levels(part, iters, threads); });
    });
    m.def("sweep_levels",
          [](uintptr_t work, uintptr_t coupling, uintptr_t row_scale, uintptr_t col, uintptr_t value, uintptr_t change,
             uintptr_t code, uintptr_t salient, int64_t rows, int64_t cols, bool refine, bool half, int64_t threads) {
              const arb::LevelsSweep panel{pointer<float>(work),
                                           pointer<const float>(coupling),
                                           pointer<const float>(row_scale),
                                           pointer<float>(col),
                                           pointer<float>(value),
                                           pointer<float>(change),
                                           pointer<uint8_t>(code),
                                           pointer<const uint8_t>(salient),
                                           rows,
                                           cols,
                                           refine,
                                           half};
              run(arb::Entries{nullptr, nullptr, rows, cols}, "sweep_levels",
                  [&] { return arb::sweep_levels(panel, threads); });
          });
}
