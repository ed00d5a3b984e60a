#include "dot.h"

#include "../buffers.inc"
#include "../int8.inc"

const arb::Int8Kernels arb::neon_int8 = {int8_prepare, int8_multiply};
