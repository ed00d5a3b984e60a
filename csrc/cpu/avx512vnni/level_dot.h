// Sums of four products each, in one instruction.
#pragma once

#include "../avx512/bytes.h"

namespace {

// The instruction wants its first numbers unsigned: levels are given as level + kLevelBias.
constexpr int kLevelBias = 128;
inline Ints level_dot(Ints sums, Bytes levels, Bytes q) { return _mm512_dpbusd_epi32(sums, levels, q); }

// Sums of levels -1, 0 and 1 times q, for sums.inc: of level + kUnitBias, so they begin with what is stored at
// `starts`.
constexpr int kUnitBias = 1;
constexpr int kTurnedDigits = 2;
constexpr int kMostUnits = 1 << 20;  // of 32 bits
using UnitSums = Ints;
inline UnitSums no_units() { return no_ints(); }
inline UnitSums begin_units(const int32_t* starts) { return load_ints(starts); }
inline UnitSums unit_dot(UnitSums sums, Bytes levels, Bytes q) { return level_dot(sums, levels, q); }
inline Ints units_in(UnitSums sums) { return sums; }
inline Ints end_units(UnitSums sums, const int32_t*) { return sums; }

}  // namespace
