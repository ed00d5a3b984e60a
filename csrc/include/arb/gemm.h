// Multiplication by a packed weight, reading its bit planes: the dense matrix never exists.
#pragma once

#include "arb/packed.h"

namespace arb {

// y = x * W^T with x float32 [batch, m] and y float32 [batch, n], both contiguous; products and sums in float32.
// A row of y depends neither on the batch it came in nor on the number of threads.
// `threads` is an upper limit; small matrices use fewer. `ran` (may be null) receives the name of the instruction set.
Status gemm(const PackedView& weight, const float* x, int64_t batch, float* y, int64_t threads,
            const char** ran = nullptr);

}  // namespace arb
