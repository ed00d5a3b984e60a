#include "bytes.h"

#include "../buffers.inc"
#include "../int8.inc"

const arb::Int8Kernels arb::avx2_int8 = {int8_prepare, int8_multiply};
