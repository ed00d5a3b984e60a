#include "features.h"

#include <cstdint>
#include <cstring>

#include "arb/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace arb {

#if defined(__x86_64__)

namespace {

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

// The first register of leaf 7.1.
unsigned leaf_7_1() {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 ? a : 0;
}

}  // namespace

bool has_avx2() {
    unsigned a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0) return false;
    constexpr unsigned kLeaf1 = bit_AVX | bit_FMA | bit_F16C;
    if ((c & kLeaf1) != kLeaf1 || (saved_registers() & kSavesYmm) != kSavesYmm) return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & bit_AVX2) != 0;
}

bool has_avxvnni() {
    constexpr unsigned kAvxVnni = 1u << 4;
    return has_avx2() && (leaf_7_1() & kAvxVnni) != 0;
}

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

bool is_amd() {
    unsigned highest, b, c, d;
    if (__get_cpuid(0, &highest, &b, &c, &d) == 0) return false;
    char name[12];
    std::memcpy(name, &b, 4);
    std::memcpy(name + 4, &d, 4);
    std::memcpy(name + 8, &c, 4);
    return std::memcmp(name, "AuthenticAMD", sizeof name) == 0;
}

bool has_avx512bf16() {
    constexpr unsigned kBf16 = 1u << 5;
    return has_avx512() && (leaf_7_1() & kBf16) != 0;
}

#else

#if defined(__aarch64__)
bool has_dot() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }
#endif

bool is_amd() { return false; }

bool has_avx512bf16() { return false; }

#endif

}  // namespace arb
