// Sums of four products each, in one instruction.
#pragma once

#include "../avx512/bytes.h"

namespace {

// The instruction wants its first numbers unsigned: levels are given as level + kLevelBias.
constexpr int kLevelBias = 128;
inline Ints level_dot(Ints sums, Bytes levels, Bytes q) { return _mm512_dpbusd_epi32(sums, levels, q); }

}  // namespace
