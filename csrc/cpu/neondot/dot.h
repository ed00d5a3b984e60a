// Sums of four products each, in one instruction.
#pragma once

#include "../neon/bytes.h"

namespace {

inline Ints dot(Ints sums, Bytes u, Bytes s) { return vdotq_s32(sums, u, s); }

}  // namespace
