#include "vec.h"

#include "../buffers.inc"
#include "../kernel.inc"
#include "../lookup.inc"
#include "../table.inc"

const arb::Kernels arb::avx512_kernels = {kWidth,     kPanel,         prepare,     gemm,
                                          dequantize, prepare_tables, gemm_tables, table_rows};
