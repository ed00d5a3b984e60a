#include "bytes.h"

#include "../buffers.inc"
#include "../int8.inc"

const arb::Int8Kernels arb::scalar_int8 = {int8_prepare, int8_multiply};
