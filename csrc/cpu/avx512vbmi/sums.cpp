#include "dot.h"

#include "../buffers.inc"
#include "../sums.inc"

const arb::SumsKernels arb::avx512vbmi_sums = {kSumInts, sums_prepare, sums_multiply};
