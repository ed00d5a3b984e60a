// Sums of four products each, in one instruction.
#pragma once

#include "../avx512/bytes.h"

namespace {

inline Ints dot(Ints sums, Bytes u, Bytes s) { return _mm512_dpbusd_epi32(sums, u, s); }

}  // namespace
