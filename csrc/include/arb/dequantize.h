// The dense matrix behind a packed weight, bit for bit what PackedWeight.dequantize gives, on every instruction set.
#pragma once

#include "arb/packed.h"

namespace arb {

enum class Columns {
    original,  // column order of the matrix
    stored,    // storage order: needs no scatter; callers permute the other operand instead
};

// Rows begin..end-1 as [end - begin, m], contiguous; elements of 16 bits are the nearest, of two the even one. `ran` as
// in gemm.
Status dequantize(const PackedView& weight, int64_t begin, int64_t end, Columns columns, Element element, void* out,
                  int64_t threads, const char** ran = nullptr);

}  // namespace arb
