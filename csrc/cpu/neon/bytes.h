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

// For line.inc.
inline Bytes from_unsigned(uint8x16_t v) { return vreinterpretq_s8_u8(v); }
inline uint8x16_t to_unsigned(Bytes v) { return vreinterpretq_u8_s8(v); }
inline Bytes shift_left_1(Bytes v) { return vshlq_n_s8(v, 1); }
template <int COUNT>
inline Bytes shift_right(Bytes v) {
    return from_unsigned(vshrq_n_u8(to_unsigned(v), COUNT));
}
inline Bytes and_bytes(Bytes a, Bytes b) { return vandq_s8(a, b); }
inline Bytes xor_bytes(Bytes a, Bytes b) { return veorq_s8(a, b); }
inline Bytes add_bytes(Bytes a, Bytes b) { return vaddq_s8(a, b); }
inline Bytes pick_bits(Bytes m, Bytes if_set, Bytes if_clear) { return vbslq_s8(to_unsigned(m), if_set, if_clear); }

// The bits from bit `shift` (0..7) of byte p on; reads a byte more than it returns.
inline Bytes load_bits(const unsigned char* p, int shift) {
    const int8x16_t right = vdupq_n_s8(static_cast<int8_t>(-shift)), left = vdupq_n_s8(static_cast<int8_t>(8 - shift));
    return from_unsigned(vorrq_u8(vshlq_u8(vld1q_u8(p), right), vshlq_u8(vld1q_u8(p + 1), left)));
}

inline Ints load_ints(const int32_t* p) { return vld1q_s32(p); }
inline void store_ints(int32_t* p, Ints v) { vst1q_s32(p, v); }
inline Ints add_ints(Ints a, Ints b) { return vaddq_s32(a, b); }
inline int32_t sum_ints(Ints v) { return vaddvq_s32(v); }

// look_up reads by four bits; there are no tables of 64 bytes.
constexpr bool kSixBits = false;
inline Bytes look_up_six(Bytes table, Bytes) { return table; }

}  // namespace
