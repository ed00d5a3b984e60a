// Sums of four products each from 16-bit products: |u| and |s| are at most 127, so pairs of products fit 16 bits.
#pragma once

#include "bytes.h"

namespace {

inline Ints dot(Ints sums, Bytes u, Bytes s) {
    const int16x8_t low = vmull_s8(vget_low_s8(u), vget_low_s8(s)), high = vmull_high_s8(u, s);
    return vpadalq_s16(sums, vpaddq_s16(low, high));
}

// Both factors are signed here.
constexpr int kLevelBias = 0;
inline Ints level_dot(Ints sums, Bytes levels, Bytes q) { return dot(sums, levels, q); }

}  // namespace
