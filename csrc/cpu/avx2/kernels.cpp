#include "vec.h"

#include "../kernel.inc"

const arb::Kernels arb::avx2_kernels = {"avx2", kWidth, prepare, gemm, dequantize};
