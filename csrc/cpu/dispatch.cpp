// The one table of instruction sets, best first, and the choice among them.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "arb/cpu.h"
#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace arb {
namespace {

bool always() { return true; }

#if defined(__x86_64__)

// Which registers the operating system saves on a context switch (XCR0); without that, using them corrupts data.
uint64_t saved_registers() {
    unsigned a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & bit_OSXSAVE) == 0) return 0;
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<uint64_t>(high) << 32 | low;
}

constexpr uint64_t kSavesYmm = 0x06;  // SSE and AVX state
constexpr uint64_t kSavesZmm = 0xe6;  // these, mask registers and both halves of the ZMM state

bool has_avx2() {
    unsigned a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0) return false;
    constexpr unsigned kLeaf1 = bit_AVX | bit_FMA | bit_F16C;
    if ((c & kLeaf1) != kLeaf1 || (saved_registers() & kSavesYmm) != kSavesYmm) return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & bit_AVX2) != 0;
}

bool has_avx512() {
    unsigned a, b, c, d;
    if (!has_avx2() || (saved_registers() & kSavesZmm) != kSavesZmm) return false;
    constexpr unsigned kLeaf7 = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL | bit_BMI2;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & kLeaf7) == kLeaf7;
}

#endif

struct Entry {
    const Kernels* kernels;
    bool (*available)();
};

constexpr Entry kTable[] = {
#if defined(__x86_64__)
    {&avx512_kernels, has_avx512},
    {&avx2_kernels, has_avx2},
#elif defined(__aarch64__)
    {&neon_kernels, always},  // part of the architecture's baseline
#endif
    {&scalar_kernels, always},
};

Status find(const char* name, const Kernels** kernels) {
    for (const Entry& entry : kTable) {
        if (std::strcmp(entry.kernels->name, name) != 0) continue;
        if (!entry.available()) return Status::missing_isa;
        *kernels = entry.kernels;
        return Status::ok;
    }
    return Status::unknown_isa;
}

Status choose(const Kernels** kernels) {
    const char* forced = std::getenv("ARBLLM_FORCE_ISA");
    if (forced != nullptr && forced[0] != '\0') return find(forced, kernels);
    for (const Entry& entry : kTable) {
        if (!entry.available()) continue;
        *kernels = entry.kernels;
        return Status::ok;
    }
    return Status::missing_isa;
}

std::atomic<const Kernels*> active{nullptr};  // null: not chosen yet

}  // namespace

int list_isas(IsaInfo* infos, int capacity) {
    int count = 0;
    for (const Entry& entry : kTable) {
        if (infos != nullptr && count < capacity) infos[count] = {entry.kernels->name, entry.available()};
        ++count;
    }
    return count;
}

Status set_isa(const char* name) {
    const Kernels* kernels = nullptr;
    const Status status = name == nullptr ? choose(&kernels) : find(name, &kernels);
    if (status == Status::ok) active.store(kernels);
    return status;
}

Status active_kernels(const Kernels** kernels) {
    *kernels = active.load();
    if (*kernels != nullptr) return Status::ok;
    const Status status = choose(kernels);
    if (status == Status::ok) active.store(*kernels);
    return status;
}

Status active_isa(const char** name) {
    const Kernels* kernels = nullptr;
    const Status status = active_kernels(&kernels);
    if (status == Status::ok) *name = kernels->name;
    return status;
}

}  // namespace arb
