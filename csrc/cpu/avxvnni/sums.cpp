#include "dot.h"

#include "../buffers.inc"
#include "../sums.inc"

const arb::SumsKernels arb::avxvnni_sums = {kSumInts, gather_row, prepare_part, sums_multiply};
