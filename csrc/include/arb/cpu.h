// The processor, and which instruction set runs. The best one that both processor and operating system support is
// taken, unless the environment variable ARBLLM_FORCE_ISA or set_isa names another.
#pragma once

#include "arb/packed.h"

namespace arb {

struct IsaInfo {
    const char* name;
    bool available;
};

// The instruction sets of this build, best first. Returns how many; `infos` (may be null) receives up to `capacity`.
int list_isas(IsaInfo* infos, int capacity);

// Run `name` from now on; null goes back to ARBLLM_FORCE_ISA or the best. Affects the whole process.
Status set_isa(const char* name);

// The instruction set that the next call will use.
Status active_isa(const char** name);

// What decides which library multiplies dense matrices fastest (arbllm_kernels/onednn.py).
bool is_amd();
bool has_avx512bf16();

// The first-level data cache in bytes: it decides how much of x meets the weight at once, and into which cache the
// weight is asked for. As ARBLLM_L1_KIB (a positive number of KiB) says, else as Linux tells of the first processor,
// else 32 KiB. Asked for when a weight is multiplied for the first time. No result depends on it.
int64_t near_cache_bytes();

// Whether it has room for what is asked for ahead beside what a product looks up or multiplies by: with 48 KiB (Zen 5,
// Emerald Rapids), not with 32 (Zen 4).
bool roomy_near_cache();

}  // namespace arb
