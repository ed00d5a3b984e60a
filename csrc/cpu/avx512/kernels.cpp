#include "vec.h"

#include "../kernel.inc"
#include "../lookup.inc"

const arb::Kernels arb::avx512_kernels = {"avx512", kWidth,     kPanel,         prepare,
                                          gemm,     dequantize, prepare_tables, gemm_tables};
