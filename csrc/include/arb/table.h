// Multiplication by a table of signed bytes, one scale per row being the caller's: embeddings and output heads.
#pragma once

#include "arb/packed.h"

namespace arb {

// y = x * codes^T with codes int8 [rows, cols], x float32 [batch, cols], y float32 [batch, rows], all contiguous;
// float32 products and sums. `threads` is an upper limit.
Status table_gemm(const int8_t* codes, int64_t rows, int64_t cols, const float* x, int64_t batch, float* y,
                  int64_t threads);

}  // namespace arb
