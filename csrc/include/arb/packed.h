// A packed weight as native code sees it: pointers, sizes, nothing owned. docs/format.md is the normative text, and
// Block.values / PackedWeight.dequantize in arbllm_kernels are the plain oracle of everything under csrc/.
//
// n = rows (out_features), m = cols (in_features), k = block_size, G = groups, Gs = salient_groups (1 or G), C =
// salient columns in all. "Storage order": inside each block the salient columns come first, then the others, both
// ascending.
//
// This header is included by units built for different instruction sets, so it holds plain data only: an inline
// function here could be compiled with AVX-512 and then be chosen by the linker for everyone.
#pragma once

#include <cstdint>

namespace arb {

constexpr int kWordBits = 64;         // rows of a bit plane are padded with zero bits to whole words of so many bits
constexpr int64_t kMaxDim = 1 << 24;  // largest n and m
constexpr int64_t kMaxBlock = 65536;  // largest k
constexpr int kMaxExponent = 126;     // |exponent| at most
constexpr int kMaxGroups = 4;         // G is 1, 2 or 4

enum class ScaleType { fp16, fp32, u8 };
enum class Element { fp32, bf16, fp16 };  // of what is multiplied, and of the product

// A read-only buffer and its length in elements, so that every size can be checked before anything is read.
// No alignment beyond one byte is assumed: packed weights are often views of a memory-mapped file.
struct Buffer {
    const void* data = nullptr;
    int64_t length = 0;
};

struct PackedView {
    int64_t rows = 0;
    int64_t cols = 0;
    int64_t block_size = 0;
    int64_t groups = 1;
    int64_t salient_groups = 1;
    int64_t salient_order = 1;
    int64_t exponent = 0;                        // row scales (or their base) and means are multiplied by 2^exponent
    int64_t shared_columns = 0;                  // 1: one column scale per column, for every group and both planes
    ScaleType scale_type = ScaleType::fp16;      // of column scales, means and row bases: fp16 or fp32
    ScaleType row_scale_type = ScaleType::fp16;  // the same, or u8: whole numbers in units of the row's base

    Buffer sign;        // int32 [n, words], first sign plane in storage order, bit 1 means +1
    Buffer group;       // int32 [n, log2 G, words], group index, one plane per bit
    Buffer second;      // int32 [], second sign plane: bit stream of [n, C] in whole 64-bit words
    Buffer row_scale;   // row scale [n, blocks, Gs * order + G]
    Buffer row_base;    // scale [n] with u8 row scales, else empty
    Buffer mean;        // scale [n, blocks, Gs + G], or empty; always empty with u8 row scales
    Buffer col_scale;   // scale [G, m] ([1, m] if shared) in storage order, or empty
    Buffer col_scale2;  // scale [Gs, C], or empty; always empty if shared
    Buffer order;       // int32 [m], the column at each storage position
    Buffer counts;      // int32 [blocks], salient columns per block
};

enum class [[nodiscard]] Status {
    ok,
    bad_layout,     // a size of the view is out of range
    bad_length,     // a buffer does not have the length that the layout demands
    bad_order,      // `order` names a column outside 0..m-1
    bad_counts,     // `counts` holds a number outside 0..width of its block
    bad_range,      // a row range or batch size is out of range
    out_of_memory,  // no memory for the working buffers
    unknown_isa,    // no instruction set of that name exists in this build
    missing_isa,    // this processor or its operating system lacks the instruction set
};

// One sentence without shapes; the caller knows them and adds them.
const char* message(Status status);

}  // namespace arb
