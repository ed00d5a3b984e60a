#include "vec.h"

#include "../buffers.inc"
#include "../halves.inc"
#include "../kernel.inc"
#include "../table.inc"

const arb::Kernels arb::avx512_kernels = {kWidth, prepare, gemm, dequantize, table_rows, widen, narrow};
