// Sums of four products each, without VNNI: |levels| are at most 127 and |q| 128, so pairs of products fit 16 bits.
#pragma once

#include "bytes.h"

namespace {

// Both factors are signed here: the sign of q moves to the level.
constexpr int kLevelBias = 0;
inline Ints level_dot(Ints sums, Bytes levels, Bytes q) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(levels, q));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

// Sums of 0, 1 or 2 (a level and kSignBias) times q, for tile_codes.inc: in 16 bits, which hold kMostSigns pairs.
// (keep_register: else GCC makes all products first, in memory.)
constexpr int kSignBias = 1;
constexpr int kMostSigns = 63;
using SignSums = Ints;
inline SignSums no_signs() { return no_ints(); }
inline SignSums sign_dot(SignSums sums, Bytes levels, Bytes q) {
    return keep_register(_mm256_add_epi16(sums, _mm256_maddubs_epi16(levels, q)));
}
inline Ints signs_in(SignSums sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }

}  // namespace

#include "../four_bits.inc"
