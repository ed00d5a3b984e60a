// Bytes for int8.inc, 16 at a time: the ARMv8 baseline. `dot` is in dot.h, with the dot product extension (../neondot)
// or without. A mask is a vector of all-ones or all-zeros bytes.
#pragma once

#include "vec.h"

namespace {

constexpr int kBytes = 16;
constexpr int kByteRows = 1;
constexpr int kByteRowsOfTile = 1;
using Bytes = int8x16_t;
using Mask8 = uint8x16_t;
using Ints = int32x4_t;
using Lanes = float32x4_t;

inline Bytes load_columns(const void* p) { return vld1q_s8(static_cast<const int8_t*>(p)); }
inline Bytes fill_bytes(int value) { return vdupq_n_s8(static_cast<int8_t>(value)); }

inline Mask8 mask_bytes(uint64_t word, int part) {
    const uint64_t here = word >> (part * kBytes);
    const uint8x16_t bytes =
        vcombine_u8(vdup_n_u8(static_cast<uint8_t>(here)), vdup_n_u8(static_cast<uint8_t>(here >> 8)));
    return vtstq_u8(bytes, vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201)));
}

inline Bytes blend_bytes(Mask8 m, Bytes if_clear, Bytes if_set) { return vbslq_s8(m, if_set, if_clear); }
inline Bytes negate_bytes_if_set(Mask8 m, Bytes v) { return vbslq_s8(m, vnegq_s8(v), v); }
inline Mask8 flip(Mask8 m, Bytes where_negative) { return veorq_u8(m, vcltzq_s8(where_negative)); }
inline Bytes magnitude_bytes(Bytes v) { return vabsq_s8(v); }

// Sixteen bytes; look_up reads, in every lane, the one that the lane's number names.
inline Bytes load_table(const unsigned char* p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }
inline Bytes look_up(Bytes table, Bytes numbers) { return vqtbl1q_s8(table, vreinterpretq_u8_s8(numbers)); }

inline Ints no_ints() { return vdupq_n_s32(0); }
inline Lanes no_lanes() { return vdupq_n_f32(0.0f); }
inline Lanes add_scaled_ints(Ints sums, float scale, Lanes to) {
    return vfmaq_f32(to, vcvtq_f32_s32(sums), vdupq_n_f32(scale));
}

// Lanes 8, 4, 2 and 1 apart.
inline float sum_lanes(const Lanes (&v)[4]) {
    const float32x4_t four = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

}  // namespace
