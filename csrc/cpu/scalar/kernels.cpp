#include "vec.h"

#include "../kernel.inc"

const arb::Kernels arb::scalar_kernels = {"scalar", kWidth, prepare, gemm, dequantize};
