// Sums of four products each from 16-bit products: |levels| are at most 127 and |q| 128, so pairs of products fit 16
// bits.
#pragma once

#include "bytes.h"

namespace {

// Both factors are signed here.
constexpr int kLevelBias = 0;
inline Ints level_dot(Ints sums, Bytes levels, Bytes q) {
    const int16x8_t low = vmull_s8(vget_low_s8(levels), vget_low_s8(q)), high = vmull_high_s8(levels, q);
    return vpadalq_s16(sums, vpaddq_s16(low, high));
}

// Sums of levels -1, 0 and 1 times q, for tile_codes.inc: in 16 bits, which hold kMostSigns products, of the lower and
// of the upper bytes apart, and then of two added.
constexpr int kSignBias = 0;
constexpr int kMostSigns = 127;
struct SignSums {
    int16x8_t low, high;
};
inline SignSums no_signs() { return {vdupq_n_s16(0), vdupq_n_s16(0)}; }
inline SignSums sign_dot(SignSums sums, Bytes levels, Bytes q) {
    return {vmlal_s8(sums.low, vget_low_s8(levels), vget_low_s8(q)), vmlal_high_s8(sums.high, levels, q)};
}
inline Ints signs_in(SignSums sums) { return vpaddlq_s16(vpaddq_s16(sums.low, sums.high)); }

}  // namespace
