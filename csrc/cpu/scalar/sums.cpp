#include "bytes.h"

#include "../buffers.inc"
#include "../sums.inc"

const arb::SumsKernels arb::scalar_sums = {kSumInts, gather_row, prepare_part, sums_multiply};
