#include "dot.h"

#include "../buffers.inc"
#include "../int8.inc"

const arb::Int8Kernels arb::avx512_int8 = {int8_prepare, int8_multiply};
