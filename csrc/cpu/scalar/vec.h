// Vectors of one float: the portable version, and the one the others are tested against.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

constexpr int kWidth = 1;
using Floats = float;
using Mask = bool;

inline Floats zero() { return 0.0f; }
inline Floats broadcast(float value) { return value; }
inline Floats load(const float* p) { return *p; }
inline void store(float* p, Floats v) { *p = v; }
inline Floats add(Floats a, Floats b) { return a + b; }
inline Floats mul(Floats a, Floats b) { return a * b; }
inline Floats mul_add(Floats a, Floats b, Floats c) { return a * b + c; }  // gemm only: its rounding is not fixed
inline Mask mask(uint64_t bits) { return (bits & 1) != 0; }
inline Floats blend(Mask m, Floats if_clear, Floats if_set) { return m ? if_set : if_clear; }
inline Floats negate_if_set(Mask m, Floats v) { return m ? -v : v; }
inline float sum(Floats v) { return v; }

// IEEE half to float by rebiasing the exponent; subnormal halves are exact multiples of 2^-24.
inline Floats load_halves(const unsigned char* p) {
    uint16_t half;
    std::memcpy(&half, p, 2);
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    const uint32_t magnitude = half & 0x7fff;
    if (magnitude < 0x0400) {
        const float value = static_cast<float>(magnitude) * 0x1p-24f;
        return sign != 0 ? -value : value;
    }
    const uint32_t exponent = magnitude >= 0x7c00 ? 0x70000000u : 0x38000000u;  // Inf and NaN keep an all-ones field
    const uint32_t word = sign | ((magnitude << 13) + exponent);
    float value;
    std::memcpy(&value, &word, 4);
    return value;
}

// To the nearest half, ties to even. Steps of subnormal halves are 2^-24, which is what 0.5 leaves a float added to it.
inline void store_halves(uint16_t* p, Floats v) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    const uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    uint32_t half;
    if (size > 0x7f800000) {
        half = 0x7e00 | (size >> 13 & 0x3ff);
    } else if (size < 0x38800000) {  // 2^-14
        const float shifted = (v < 0.0f ? -v : v) + 0.5f;
        std::memcpy(&half, &shifted, 4);
        half -= 0x3f000000;
    } else {
        half = (size + 0xfff + (size >> 13 & 1)) >> 13;  // a carry goes on to the exponent
        half = half >= 0x23c00 ? 0x7c00 : half - 0x1c000;
    }
    *p = static_cast<uint16_t>(sign | half);
}

inline Floats load_bytes(const int8_t* p) { return static_cast<float>(*p); }

inline Floats load_at(const float* p, const int32_t* index) { return p[*index]; }

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats magnitude(Floats v) { return v < 0.0f ? -v : v; }
inline float largest_lane(Floats v) { return v; }

// The lowest eight bits of every lane.
inline void store_low_bytes(int8_t* p, Floats v) { std::memcpy(p, &v, 1); }

}  // namespace
