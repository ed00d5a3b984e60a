// Vectors of four floats: the ARMv8 baseline. A mask is a vector of all-ones or all-zeros lanes.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace {

constexpr int kWidth = 4;
using Floats = float32x4_t;
using Mask = uint32x4_t;

inline Floats zero() { return vdupq_n_f32(0.0f); }
inline Floats broadcast(float value) { return vdupq_n_f32(value); }
inline Floats load(const float* p) { return vld1q_f32(p); }
inline void store(float* p, Floats v) { vst1q_f32(p, v); }
inline Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
inline Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
inline Floats mul_add(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }

inline Mask mask(uint64_t bits) {
    const uint32_t lanes[4] = {1, 2, 4, 8};
    return vtstq_u32(vdupq_n_u32(static_cast<uint32_t>(bits)), vld1q_u32(lanes));
}

inline Floats blend(Mask m, Floats if_clear, Floats if_set) { return vbslq_f32(m, if_set, if_clear); }
inline Floats negate_if_set(Mask m, Floats v) { return vbslq_f32(m, vnegq_f32(v), v); }
inline float sum(Floats v) { return vaddvq_f32(v); }

inline Floats load_halves(const unsigned char* p) {
    uint16x4_t halves;
    std::memcpy(&halves, p, sizeof halves);
    return vcvt_f32_f16(vreinterpret_f16_u16(halves));
}

inline void store_halves(uint16_t* p, Floats v) {
    const uint16x4_t halves = vreinterpret_u16_f16(vcvt_f16_f32(v));
    std::memcpy(p, &halves, sizeof halves);
}

inline Floats load_bytes(const int8_t* p) {
    uint32_t four;
    std::memcpy(&four, p, sizeof four);
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
}

inline Floats load_at(const float* p, const int32_t* index) {
    const float lanes[4] = {p[index[0]], p[index[1]], p[index[2]], p[index[3]]};
    return vld1q_f32(lanes);
}

inline Floats larger(Floats a, Floats b) { return vmaxq_f32(a, b); }
inline Floats magnitude(Floats v) { return vabsq_f32(v); }
inline float largest_lane(Floats v) { return vmaxvq_f32(v); }

// The lowest eight bits of every lane.
inline void store_low_bytes(int8_t* p, Floats v) {
    const uint16x4_t words = vmovn_u32(vreinterpretq_u32_f32(v));
    const uint8x8_t bytes = vmovn_u16(vcombine_u16(words, words));
    std::memcpy(p, &bytes, 4);
}

}  // namespace
