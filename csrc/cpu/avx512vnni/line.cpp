#include "dot.h"

#include "../buffers.inc"
#include "../line.inc"

const arb::LineKernels arb::avx512vnni_line = {kBytes, kSumInts, line_prepare, line_multiply};
