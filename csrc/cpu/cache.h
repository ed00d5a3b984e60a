// How large the first-level data cache is: what decides how much of x meets the weight at once, and into which cache
// the weight is asked for.
#pragma once

#include <cstdint>

namespace arb {

// Bytes, as ARBLLM_L1_KIB (a positive number of KiB) says, else as Linux tells of the first processor, else 32 KiB.
// Asked for when a weight is multiplied for the first time. No result depends on it.
int64_t near_cache_bytes();

// Whether it has room for what is asked for ahead beside what a product looks up or multiplies by: with 48 KiB (Zen 5,
// Emerald Rapids), not with 32 (Zen 4).
bool roomy_near_cache();

}  // namespace arb
