#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "arb/cpu.h"

namespace arb {
namespace {

constexpr int64_t kUsualKib = 32, kRoomyKib = 48, kMostKib = 1 << 20;

// With C's streams: those of C++ do not read numbers where two copies of libstdc++ are loaded, the extension's own and
// another package's, whose locales they share.
int64_t system_kib() {
    int64_t kib = 0;
    const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen("/sys/devices/system/cpu/cpu0/cache/index0/size", "r"),
                                                     std::fclose);
    // "48K": level 1, data
    const bool told = file != nullptr && std::fscanf(file.get(), "%" SCNd64, &kib) == 1 && kib > 0;
    return told ? kib : kUsualKib;
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
