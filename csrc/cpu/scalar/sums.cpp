#include "bytes.h"

#include "../buffers.inc"
#include "../sums.inc"

const arb::SumsKernels arb::scalar_sums = {kSumInts, sums_prepare, sums_multiply};
