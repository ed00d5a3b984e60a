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

// The lowest eight bits of every lane.
inline void store_low_bytes(int8_t* p, Floats v) {
    const uint16x4_t words = vmovn_u32(vreinterpretq_u32_f32(v));
    const uint8x8_t bytes = vmovn_u16(vcombine_u16(words, words));
    std::memcpy(p, &bytes, 4);
}

using Words = uint32x4_t;

inline Words load_words(const uint32_t* p) { return vld1q_u32(p); }
inline Words shift_left_2(Words w) { return vshlq_n_u32(w, 2); }
inline Words shift_right(Words w, int bits) { return vshlq_u32(w, vdupq_n_s32(-bits)); }

inline Words select_bits(uint32_t m, Words if_set, Words if_clear) {
    return vbslq_u32(vdupq_n_u32(m), if_set, if_clear);
}

// out[i * step + r] = word i of the four at from[r] + at, for kWidth lines r.
inline void turn_four_words(const unsigned char* const* from, int64_t at, int64_t step, uint32_t* out) {
    const auto line = [&](int r) { return vreinterpretq_u32_u8(vld1q_u8(from[r] + at)); };
    const uint32x4x2_t ab = vzipq_u32(line(0), line(2)), cd = vzipq_u32(line(1), line(3));
    const uint32x4x2_t low = vzipq_u32(ab.val[0], cd.val[0]), high = vzipq_u32(ab.val[1], cd.val[1]);
    vst1q_u32(out, low.val[0]);
    vst1q_u32(out + step, low.val[1]);
    vst1q_u32(out + 2 * step, high.val[0]);
    vst1q_u32(out + 3 * step, high.val[1]);
}

// The half in the low 16 bits of every lane.
inline Floats low_halves(Words w) { return vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(w))); }

// Sixteen floats; `at` reads, in every lane, the one that the lane's lowest four bits name: bytes 4i .. 4i+3.
struct Table {
    uint8x16x4_t bytes;
    explicit Table(const float* p) {
        for (int i = 0; i < 4; ++i) bytes.val[i] = vreinterpretq_u8_f32(vld1q_f32(p + 4 * i));
    }
    Floats at(Words w) const {
        const uint32x4_t number = vandq_u32(w, vdupq_n_u32(15));
        const uint32x4_t at = vmlaq_u32(vdupq_n_u32(0x03020100), number, vdupq_n_u32(0x04040404));
        return vreinterpretq_f32_u8(vqtbl4q_u8(bytes, vreinterpretq_u8_u32(at)));
    }
};

}  // namespace
