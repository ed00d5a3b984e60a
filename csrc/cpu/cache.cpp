#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "arb/cpu.h"

namespace arb {
namespace {

constexpr int64_t kUsualKib = 32, kRoomyKib = 48, kMostKib = 1 << 20;

// With C's streams: those of C++ open the file but read no number once torch is loaded, and with it a libstdc++ beside
// the extension's own.
int64_t system_kib() {
    int64_t kib = 0;
    char unit = 0;
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(
        std::fopen("/sys/devices/system/cpu/cpu0/cache/index0/size", "r"), std::fclose);
    // "48K": level 1, data
    const bool told = file != nullptr && std::fscanf(file.get(), "%" SCNd64 "%c", &kib, &unit) == 2;
    return told && kib > 0 && unit == 'K' ? kib : kUsualKib;
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
