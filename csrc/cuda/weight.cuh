// A packed weight inside a kernel, and one weight's value by the format's definition (docs/format.md, "Meaning").
// `order` and `counts` come from outside and cannot be checked by the host, so every index drawn from them is clamped:
// wrong content gives wrong numbers, never a bad access.
#pragma once

#include "arb/cuda.h"
#include "device.cuh"

namespace arb::cuda {

struct Weight {
    const uint32_t* sign;
    const uint32_t* group;
    const uint32_t* second;
    const void* row_scale;
    const void* row_base;
    const void* mean;
    const void* col_scale;
    const void* col_scale2;
    const int32_t* order;
    const int32_t* counts;
    int64_t second_words;
    int64_t col_scale2_length;
    float factor;  // 2^exponent
    int rows, cols, block_size, blocks, words;
    int groups, group_bits, salient_groups, salient_order;
    int shared_columns, scale_type, row_scale_type;
    int has_second;     // a second plane with bits in it
    int paired_scales;  // row scales of two groups and two orders, fp16, aligned in pairs
};

__device__ __forceinline__ int minimum(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int maximum(int a, int b) { return a > b ? a : b; }

// Entry `at` of an array of fp16 or fp32.
__device__ __forceinline__ float load_scale(const void* data, int type, int64_t at) {
    return type == ARB_F16 ? from_half(static_cast<const uint16_t*>(data)[at]) : static_cast<const float*>(data)[at];
}

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(uint16_t half) { return from_half(half); }
__device__ __forceinline__ float to_float(uint8_t value) { return static_cast<float>(value); }

// What a row's entries are multiplied by before anything else: 2^exponent, or with 8-bit scales the row's base * that.
__device__ __forceinline__ float row_factor(const Weight& w, int row) {
    return w.row_scale_type == ARB_U8 ? mul(load_scale(w.row_base, w.scale_type, row), w.factor) : w.factor;
}

__device__ __forceinline__ float load_row_scale(const Weight& w, int64_t at) {
    if (w.row_scale_type == ARB_U8) return static_cast<float>(static_cast<const uint8_t*>(w.row_scale)[at]);
    return load_scale(w.row_scale, w.row_scale_type, at);
}

__device__ __forceinline__ int scales_per_block(const Weight& w) {
    return w.salient_groups * w.salient_order + w.groups;
}

// Salient columns of a block, whatever `counts` holds.
__device__ __forceinline__ int salient_count(const Weight& w, int block) {
    const int width = minimum(w.block_size, w.cols - block * w.block_size);
    return maximum(0, minimum(w.counts[block], width));
}

// Salient columns of blocks begin..end-1; all lanes of a warp call this together and get the same answer.
__device__ __forceinline__ int salient_between(const Weight& w, int begin, int end) {
    int sum = 0;
#pragma unroll 1
    for (int b = begin + static_cast<int>(threadIdx.x % 32); b < end; b += 32) sum += salient_count(w, b);
    return warp_sum(sum);
}

__device__ __forceinline__ bool bit_at(const uint32_t* plane, int64_t bit) { return plane[bit / 32] >> (bit % 32) & 1; }

// A storage position, with what its block says about it.
struct Position {
    int at;     // 0 .. m-1
    int block;  //
    int first;  // position where the block begins
    int seen;   // salient columns of all blocks before it
    int total;  // salient columns of the whole matrix
};

// The block of p.at, which lies at or after p.block.
__device__ __forceinline__ void find_block(const Weight& w, Position& p) {
    while (p.at - p.first >= w.block_size) {
        p.seen += salient_count(w, p.block);
        p.first += w.block_size;
        ++p.block;
    }
}

__device__ __forceinline__ int clamped_column(const Weight& w, int column) {
    const auto last = static_cast<uint32_t>(w.cols - 1), c = static_cast<uint32_t>(column);
    return static_cast<int>(c < last ? c : last);
}

__device__ __forceinline__ float col_scale(const Weight& w, int group, int position) {
    const int64_t line = w.shared_columns ? 0 : group;
    return load_scale(w.col_scale, w.scale_type, line * w.cols + position);
}

// The second plane's column scale; `seen` is the column's number among all salient columns.
__device__ __forceinline__ float col_scale2(const Weight& w, int group, int position, int seen, int total) {
    if (w.shared_columns) return col_scale(w, 0, position);
    const int64_t at = static_cast<int64_t>(group) * total + seen;
    return load_scale(w.col_scale2, w.scale_type, at < w.col_scale2_length ? at : w.col_scale2_length - 1);
}

// The weight of a row at a position, every operation rounded on its own, in the order that the format fixes.
__device__ inline float weight_value(const Weight& w, int row, const Position& p) {
    const int64_t line = row;
    int group = 0;
    for (int bit = 0; bit < w.group_bits; ++bit) {
        group |= bit_at(w.group + (line * w.group_bits + bit) * w.words, p.at) << bit;
    }
    const bool salient = p.at - p.first < salient_count(w, p.block);
    if (salient && w.salient_groups == 1) group = 0;
    const float factor = row_factor(w, row);
    const int64_t scales = (line * w.blocks + p.block) * scales_per_block(w);
    const int first = salient ? group * w.salient_order : w.salient_groups * w.salient_order + group;
    float value = mul(load_row_scale(w, scales + first), factor);
    if (w.col_scale != nullptr) value = mul(value, col_scale(w, group, p.at));
    if (!bit_at(w.sign + line * w.words, p.at)) value = -value;
    if (salient && w.has_second) {
        const int seen = p.seen + (p.at - p.first);
        float value2 = mul(load_row_scale(w, scales + first + 1), factor);
        if (w.col_scale != nullptr) value2 = mul(value2, col_scale2(w, group, p.at, seen, p.total));
        const int64_t bit = line * p.total + seen;
        const int64_t last = w.second_words * 32 - 1;
        value = add(value, bit_at(w.second, bit < last ? bit : last) ? value2 : -value2);
    }
    if (w.mean != nullptr) {
        const int zone = salient ? group : w.salient_groups + group;
        const int64_t means = (line * w.blocks + p.block) * (w.salient_groups + w.groups);
        value = add(value, mul(load_scale(w.mean, w.scale_type, means + zone), w.factor));
    }
    return value;
}

// Activations and results, by type.
__device__ __forceinline__ float load_value(const void* data, int type, int64_t at) {
    if (type == ARB_BF16) return bits_to_float(static_cast<uint32_t>(static_cast<const uint16_t*>(data)[at]) << 16);
    return load_scale(data, type, at);
}

__device__ __forceinline__ void store_value(void* data, int type, int64_t at, float value) {
    if (type == ARB_F32) {
        static_cast<float*>(data)[at] = value;
    } else {
        static_cast<uint16_t*>(data)[at] = type == ARB_F16 ? to_half(value) : to_bf16(value);
    }
}

}  // namespace arb::cuda
