// The parts of the extension, registered by bindings.cpp, and what they share.
#pragma once

#include <pybind11/pybind11.h>

#include "arb/gemm.h"

void register_solver(pybind11::module_& m);
void register_direct(pybind11::module_& m);

// y = x W^T without holding the interpreter; returns the instruction set that ran. Raises InputError.
const char* gemm(arb::Weight& weight, uintptr_t x, arb::Element element, int64_t batch, uintptr_t y, int64_t threads,
                 arb::Activations activations);
