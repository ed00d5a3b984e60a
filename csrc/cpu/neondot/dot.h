// Sums of four products each, in one instruction.
#pragma once

#include "../neon/bytes.h"

namespace {

inline Ints dot(Ints sums, Bytes u, Bytes s) { return vdotq_s32(sums, u, s); }

// Both factors are signed here.
constexpr int kLevelBias = 0;
inline Ints level_dot(Ints sums, Bytes levels, Bytes q) { return dot(sums, levels, q); }

}  // namespace
