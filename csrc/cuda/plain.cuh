// The kernels in which a lane is a column and every weight is rebuilt on its own: pack and unpack bit planes,
// dequantize, and the product for layouts that gemv.cuh does not take. Simple rather than fast.
#pragma once

#include "weight.cuh"

namespace arb::cuda {

constexpr int kPlainWarps = 8;  // rows per block of threads, one per warp
constexpr int kPlainBatch = 4;  // rows of x per launch of the grid's y

// One warp per word: bits [rows, length] bytes -> words.
__global__ void __launch_bounds__(256)
    pack_kernel(const uint8_t* bits, int64_t rows, int64_t length, int64_t words, uint32_t* out) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int64_t warps = static_cast<int64_t>(gridDim.x) * (blockDim.x / 32);
    for (int64_t at = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32; at < rows * words;
         at += warps) {
        const int64_t row = at / words, bit = at % words * 32 + lane;
        const uint32_t word = vote(bit < length && bits[row * length + bit] != 0);
        if (lane == 0) out[at] = word;
    }
}

// One thread per bit.
__global__ void __launch_bounds__(256)
    unpack_kernel(const uint32_t* words_in, int64_t rows, int64_t length, int64_t words, uint8_t* bits) {
    const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < rows * length; at += threads) {
        bits[at] = bit_at(words_in + at / length * words, at % length) ? 1 : 0;
    }
}

// Calls use(column, value) for every weight of a row, a warp's lanes side by side.
template <typename Use>
__device__ __forceinline__ void for_each_weight(const Weight& w, int row, Use use) {
    Position p = {static_cast<int>(threadIdx.x % 32), 0, 0, 0, 0};
    if (w.has_second) p.total = salient_between(w, 0, w.blocks);
    for (; p.at < w.cols; p.at += 32) {
        find_block(w, p);
        use(clamped_column(w, w.order[p.at]), weight_value(w, row, p));
    }
}

__global__ void __launch_bounds__(kPlainWarps * 32) dequantize_kernel(Weight w, float* out) {
    const int row = static_cast<int>(blockIdx.x * kPlainWarps + threadIdx.x / 32);
    if (row >= w.rows) return;
    float* line = out + static_cast<int64_t>(row) * w.cols;
    for_each_weight(w, row, [&](int column, float value) { line[column] = value; });
}

__global__ void __launch_bounds__(kPlainWarps * 32)
    plain_gemv_kernel(Weight w, const void* x, int x_type, int batch, void* y) {
    const int row = static_cast<int>(blockIdx.x * kPlainWarps + threadIdx.x / 32);
    if (row >= w.rows) return;
    const int first = static_cast<int>(blockIdx.y) * kPlainBatch;
    float sums[kPlainBatch] = {};
    for_each_weight(w, row, [&](int column, float value) {
#pragma unroll
        for (int i = 0; i < kPlainBatch; ++i) {
            if (first + i < batch) {
                sums[i] += value * load_value(x, x_type, static_cast<int64_t>(first + i) * w.cols + column);
            }
        }
    });
#pragma unroll
    for (int i = 0; i < kPlainBatch; ++i) {
        for (int step = 16; step > 0; step /= 2) sums[i] += shuffle_xor(sums[i], step);
        if (first + i < batch && threadIdx.x % 32 == 0) {
            store_value(y, x_type, static_cast<int64_t>(first + i) * w.rows + row, sums[i]);
        }
    }
}

}  // namespace arb::cuda
