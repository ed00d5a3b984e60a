// The solver's part of the extension, registered by bindings.cpp.
#pragma once

#include <pybind11/pybind11.h>

void register_solver(pybind11::module_& m);
