// Sums of four products each, in one instruction.
#pragma once

#include "../neon/bytes.h"

namespace {

inline Ints dot(Ints sums, Bytes u, Bytes s) { return vdotq_s32(sums, u, s); }

// Both factors are signed here.
constexpr int kLevelBias = 0;
inline Ints level_dot(Ints sums, Bytes levels, Bytes q) { return dot(sums, levels, q); }

// Sums of levels -1, 0 and 1 times q, for sums.inc.
constexpr int kUnitBias = 0;
constexpr int kTurnedDigits = 2;
constexpr int kMostUnits = 1 << 20;  // of 32 bits
using UnitSums = Ints;
inline UnitSums no_units() { return no_ints(); }
inline UnitSums begin_units(const int32_t*) { return no_units(); }
inline UnitSums unit_dot(UnitSums sums, Bytes levels, Bytes q) { return level_dot(sums, levels, q); }
inline Ints units_in(UnitSums sums) { return sums; }
inline Ints end_units(UnitSums sums, const int32_t*) { return sums; }

}  // namespace
