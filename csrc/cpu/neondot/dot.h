// Sums of four products each, in one instruction.
#pragma once

#include "../neon/bytes.h"

namespace {

// Both factors are signed here.
constexpr int kLevelBias = 0;
inline Ints level_dot(Ints sums, Bytes levels, Bytes q) { return vdotq_s32(sums, levels, q); }

// Sums of levels -1, 0 and 1 times q, for tile_codes.inc.
constexpr int kSignBias = 0;
constexpr int kMostSigns = 1 << 20;  // of 32 bits
using SignSums = Ints;
inline SignSums no_signs() { return no_ints(); }
inline SignSums sign_dot(SignSums sums, Bytes levels, Bytes q) { return level_dot(sums, levels, q); }
inline Ints signs_in(SignSums sums) { return sums; }

}  // namespace
