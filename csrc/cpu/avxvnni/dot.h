// Sums of four products each, in one instruction: AVX-VNNI, which some processors have without AVX-512.
#pragma once

#include "../avx2/bytes.h"

namespace {

// The instruction wants its first numbers unsigned: levels are given as level + kLevelBias.
constexpr int kLevelBias = 128;
inline Ints level_dot(Ints sums, Bytes levels, Bytes q) { return _mm256_dpbusd_avx_epi32(sums, levels, q); }

}  // namespace

#include "../four_bits.inc"
#include "../vnni_signs.inc"
