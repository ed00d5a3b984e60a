// Sums of four products each, in one instruction; lookup by four bits.
#pragma once

#include "level_dot.h"

#include "../four_bits.inc"
#include "../vnni_signs.inc"
