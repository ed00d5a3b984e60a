#include "dot.h"

#include "../buffers.inc"
#include "../line.inc"

const arb::LineKernels arb::avx2_line = {kBytes, kSumInts, line_prepare, line_multiply};
