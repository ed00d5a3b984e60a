// How both tensor-core kernels cut up a weight, and how its bit planes reach shared memory.
//
// A unit is 128 columns of one block of the weight; its salient columns come first. A block of threads multiplies 32
// rows of W per warp, 4 or 8 warps, by a range of units, in chunks of up to four.
#pragma once

#include "weight.cuh"

namespace arb::cuda {

constexpr int kFewWarps = 4, kManyWarps = 8;  // per block of threads
constexpr int kWarpRows = 32;
constexpr int kUnit = 128;
constexpr int kUnits = 4;  // of a chunk, at most
constexpr int kChunk = kUnits * kUnit;
constexpr int kPlaneWords = kWarpRows * kChunk / 32;  // a warp's staged plane: 32 rows of 16 words

struct GemvJob {
    Weight w;
    const void* x;
    void* y;
    float* partial;  // [splits, batch, n] when there are several splits
    int x_type, batch;
    int slice;   // rows of x per block of threads
    int stages;  // 1: a block of threads has a single chunk
    int wide;    // planes allow 16-byte loads
};

// What a warp needs to know about a unit; in shared memory.
struct alignas(16) Unit {
    int begin;    // first position
    int block;    //
    int salient;  // the first so many of its positions are salient
    int seen;     // salient columns before the unit
};

// Units first .. end-1.
struct Range {
    int first, end;
};

// What a split of the columns has; the first ones have a unit more than the last.
__device__ __forceinline__ Range range_of_split(const Weight& w, int split, int splits) {
    const int units = (w.cols + kUnit - 1) / kUnit, share = units / splits, more = units % splits;
    const int first = split * share + minimum(split, more);
    return {first, first + share + (split < more ? 1 : 0)};
}

// The block of unit `number` of the weight; a block of one unit needs no division.
__device__ __forceinline__ int block_of_unit(const Weight& w, int number) {
    return w.block_size == kUnit ? number : number * kUnit / w.block_size;
}

// Salient columns of all blocks before that of unit `first`; all lanes of a warp call this together.
__device__ __forceinline__ int seen_before(const Weight& w, int first) {
    return w.has_second ? salient_between(w, 0, block_of_unit(w, first)) : 0;
}

// Unit `number`, with seen_before of `first`, an earlier one or itself.
__device__ __forceinline__ Unit unit_at(const Weight& w, int number, int first, int before) {
    Unit unit = {number * kUnit, block_of_unit(w, number), 0, before};
    const int inside = unit.begin - unit.block * w.block_size;
    unit.salient = maximum(0, minimum(salient_count(w, unit.block) - inside, kUnit));
    if (!w.has_second) return unit;
#pragma unroll 1
    for (int block = block_of_unit(w, first); block < unit.block; ++block) unit.seen += salient_count(w, block);
    unit.seen += inside;
    return unit;
}

// 32 bits of the second plane, from any bit on.
__device__ __forceinline__ uint32_t second_word(const Weight& w, int64_t bit) {
    const auto last = static_cast<uint32_t>(w.second_words - 1), at = static_cast<uint32_t>(bit >> 5);
    const uint32_t low = w.second[at < last ? at : last];
    const uint32_t high = w.second[at + 1 < last ? at + 1 : last];
    return funnel_right(low, high, static_cast<uint32_t>(bit) % 32);
}

// With g = lane / 4 and t = lane % 4: a lane's rows are 8 r + g of the warp's, its words of a unit is t.
struct Lane {
    int id, row, word;  // lane, g, t
};

// ---- planes: global -> shared, 64 contiguous bytes per row

// Where word 0..15 of a row is staged. Pieces of 16 bytes change places so that lanes (g, t) that read word t of row g
// share no bank; where a lane is a row, four share one.
__device__ __forceinline__ int staged_at(int row, int word) { return row * 16 + (word ^ (row * 2 & 12)); }

// kBytes: 16, or 8 where rows are not aligned to more.
template <int kGroups, int kBytes>
__device__ __forceinline__ void stage_pieces(const Weight& w, int row0, const Range& units, uint32_t* staged,
                                             int lane) {
    constexpr int kPieces = 64 / kBytes, kRows = 32 / kPieces;  // of a row; rows at once
    const int word = lane % kPieces * (kBytes / 4), from = units.first * (kUnit / 32) + word;
    const bool inside = from < minimum(w.words, units.end * (kUnit / 32));
#pragma unroll
    for (int i = 0; i < kWarpRows; i += kRows) {
        const int row = lane / kPieces + i;
        // Rows below the last get its words, and nobody looks at their sums.
        const int64_t at = static_cast<int64_t>(minimum(row0 + row, w.rows - 1)) * w.words + (inside ? from : 0);
        copy_async<kBytes>(staged + staged_at(row, word), w.sign + at, inside);
        if constexpr (kGroups == 2)
            copy_async<kBytes>(staged + kPlaneWords + staged_at(row, word), w.group + at, inside);
    }
}

// The first chunk of the units.
template <int kGroups>
__device__ __forceinline__ void stage_chunk(const GemvJob& job, int row0, const Range& units, uint32_t* staged,
                                            int lane) {
    if (job.wide) {
        stage_pieces<kGroups, 16>(job.w, row0, units, staged, lane);
    } else {
        stage_pieces<kGroups, 8>(job.w, row0, units, staged, lane);
    }
}

// ---- splits -> y

// y = sum over splits of partial [splits, count], in order.
__global__ void __launch_bounds__(256)
    finish_kernel(const float* partial, int splits, int64_t count, void* y, int y_type) {
    const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= count) return;
    float sum = 0.0f;
    for (int split = 0; split < splits; ++split) sum += partial[split * count + at];
    store_value(y, y_type, at, sum);
}

}  // namespace arb::cuda
