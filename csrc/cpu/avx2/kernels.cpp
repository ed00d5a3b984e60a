#include "vec.h"

#include "../kernel.inc"
#include "../lookup.inc"

const arb::Kernels arb::avx2_kernels = {"avx2", kWidth, kPanel, prepare, gemm, dequantize, prepare_tables, gemm_tables};
