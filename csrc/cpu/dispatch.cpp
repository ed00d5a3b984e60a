// The one table of instruction sets, best first, and the choice among them.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "arb/cpu.h"
#include "kernels.h"
#include "solver_kernels.h"
#include "tiles.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
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

#if defined(ARB_HAS_AVXVNNI)
bool has_avxvnni() {
    unsigned a, b, c, d;
    constexpr unsigned kAvxVnni = 1u << 4;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & kAvxVnni) != 0;
}
#endif

bool has_avx512() {
    unsigned a, b, c, d;
    if (!has_avx2() || (saved_registers() & kSavesZmm) != kSavesZmm) return false;
    constexpr unsigned kLeaf7 = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL | bit_BMI2;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & kLeaf7) == kLeaf7;
}

bool has_avx512vnni() {
    unsigned a, b, c, d;
    return has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (c & bit_AVX512VNNI) != 0;
}

bool has_avx512vbmi() {
    unsigned a, b, c, d;
    constexpr unsigned kLeaf7 = bit_AVX512VBMI | bit_AVX512VBMI2;
    return has_avx512vnni() && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (c & kLeaf7) == kLeaf7;
}

#elif defined(__aarch64__)

bool has_dot() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }

#endif

struct Entry {
    Isa isa;
    bool (*available)();
};

constexpr Entry kTable[] = {
#if defined(__x86_64__)
    {{"avx512vbmi", &avx512_kernels, &avx512vbmi_line, &avx512vbmi_tiles, &avx512_solver}, has_avx512vbmi},
    {{"avx512vnni", &avx512_kernels, &avx512vnni_line, &avx512vnni_tiles, &avx512_solver}, has_avx512vnni},
    {{"avx512", &avx512_kernels, &avx512_line, &avx512_tiles, &avx512_solver}, has_avx512},
#if defined(ARB_HAS_AVXVNNI)
    {{"avxvnni", &avx2_kernels, &avxvnni_line, &avxvnni_tiles, &avx2_solver}, has_avxvnni},
#endif
    {{"avx2", &avx2_kernels, &avx2_line, &avx2_tiles, &avx2_solver}, has_avx2},
#elif defined(__aarch64__)
    {{"neondot", &neon_kernels, &neondot_line, &neondot_tiles, &scalar_solver}, has_dot},
    {{"neon", &neon_kernels, &neon_line, &neon_tiles, &scalar_solver}, always},  // part of the architecture's baseline
#endif
    {{"scalar", &scalar_kernels, &scalar_line, &scalar_tiles, &scalar_solver}, always},
};

Status find(const char* name, const Isa** isa) {
    for (const Entry& entry : kTable) {
        if (std::strcmp(entry.isa.name, name) != 0) continue;
        if (!entry.available()) return Status::missing_isa;
        *isa = &entry.isa;
        return Status::ok;
    }
    return Status::unknown_isa;
}

Status choose(const Isa** isa) {
    const char* forced = std::getenv("ARBLLM_FORCE_ISA");
    if (forced != nullptr && forced[0] != '\0') return find(forced, isa);
    for (const Entry& entry : kTable) {
        if (!entry.available()) continue;
        *isa = &entry.isa;
        return Status::ok;
    }
    return Status::missing_isa;
}

std::atomic<const Isa*> active{nullptr};  // null: not chosen yet

}  // namespace

int list_isas(IsaInfo* infos, int capacity) {
    int count = 0;
    for (const Entry& entry : kTable) {
        if (infos != nullptr && count < capacity) infos[count] = {entry.isa.name, entry.available()};
        ++count;
    }
    return count;
}

Status set_isa(const char* name) {
    const Isa* isa = nullptr;
    const Status status = name == nullptr ? choose(&isa) : find(name, &isa);
    if (status == Status::ok) active.store(isa);
    return status;
}

Status active_kernels(const Isa** isa) {
    *isa = active.load();
    if (*isa != nullptr) return Status::ok;
    const Status status = choose(isa);
    if (status == Status::ok) active.store(*isa);
    return status;
}

Status active_isa(const char** name) {
    const Isa* isa = nullptr;
    const Status status = active_kernels(&isa);
    if (status == Status::ok) *name = isa->name;
    return status;
}

}  // namespace arb
