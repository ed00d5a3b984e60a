// Sums of four products each, in one instruction; lookup by four bits.
#pragma once

#include "level_dot.h"

namespace {

// look_up reads by four bits; there are no tables of 64 bytes.
constexpr bool kSixBits = false;
inline Bytes look_up_six(Bytes table, Bytes) { return table; }

}  // namespace

#include "../vnni_signs.inc"
