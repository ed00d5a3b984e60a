#include "vec.h"

#include "../kernel.inc"
#include "../lookup.inc"
#include "../table.inc"

const arb::Kernels arb::avx512_kernels = {"avx512",   kWidth,         kPanel,      prepare,   gemm,
                                          dequantize, prepare_tables, gemm_tables, table_rows};
