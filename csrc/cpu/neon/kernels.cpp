#include "vec.h"

#include "../kernel.inc"

const arb::Kernels arb::neon_kernels = {"neon", kWidth, prepare, gemm, dequantize};
