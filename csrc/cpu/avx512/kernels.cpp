#include "vec.h"

#include "../kernel.inc"

const arb::Kernels arb::avx512_kernels = {"avx512", kWidth, prepare, gemm, dequantize};
