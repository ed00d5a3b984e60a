#include "vec.h"

#include "../kernel.inc"
#include "../lookup.inc"

const arb::Kernels arb::scalar_kernels = {"scalar", kWidth,     kPanel,         prepare,
                                          gemm,     dequantize, prepare_tables, gemm_tables};
