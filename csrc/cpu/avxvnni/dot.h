// Sums of four products each, in one instruction: AVX-VNNI, which some processors have without AVX-512.
#pragma once

#include "../avx2/bytes.h"

namespace {

// The instruction wants its first numbers unsigned: levels are given as level + kLevelBias.
constexpr int kLevelBias = 128;
inline Ints level_dot(Ints sums, Bytes levels, Bytes q) { return _mm256_dpbusd_avx_epi32(sums, levels, q); }

// look_up reads by four bits; there are no tables of 64 bytes.
constexpr bool kSixBits = false;
inline Bytes look_up_six(Bytes table, Bytes) { return table; }

}  // namespace

#include "../vnni_signs.inc"
