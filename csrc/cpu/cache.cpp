#include "cache.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>

namespace arb {
namespace {

constexpr int64_t kUsualKib = 32, kRoomyKib = 48, kMostKib = 1 << 20;

int64_t system_kib() {
    int64_t kib = 0;
    std::ifstream("/sys/devices/system/cpu/cpu0/cache/index0/size") >> kib;  // "48K": level 1, data
    return kib > 0 ? kib : kUsualKib;
}

}  // namespace

int64_t near_cache_bytes() {
    static const int64_t kOfSystem = system_kib();
    const char* const asked = std::getenv("ARBLLM_L1_KIB");
    const int64_t kib = asked != nullptr ? std::strtol(asked, nullptr, 10) : 0;
    return std::min(kib > 0 ? kib : kOfSystem, kMostKib) * 1024;
}

bool roomy_near_cache() { return near_cache_bytes() >= kRoomyKib * 1024; }

}  // namespace arb
