// Bytes for line.inc and tiles.inc, 16 at a time: the ARMv8 baseline. `level_dot` is in dot.h, with the dot product
// extension (../neondot) or without.
#pragma once

#include "vec.h"

namespace {

constexpr int kBytes = 16;
using Bytes = int8x16_t;
using Ints = int32x4_t;
using Lanes = float32x4_t;

inline Bytes load_columns(const void* p) { return vld1q_s8(static_cast<const int8_t*>(p)); }
inline Bytes keep_register(Bytes v) { return v; }
inline Bytes fill_bytes(int value) { return vdupq_n_s8(static_cast<int8_t>(value)); }

// Sixteen bytes; look_up reads, in every lane, the one that the lane's number names.
inline Bytes load_table(const unsigned char* p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }
// Every eight bytes of the vector are those at p.
inline Bytes load_twice(const unsigned char* p) {
    const uint8x8_t eight = vld1_u8(p);
    return vreinterpretq_s8_u8(vcombine_u8(eight, eight));
}
inline Bytes look_up(Bytes table, Bytes numbers) { return vqtbl1q_s8(table, vreinterpretq_u8_s8(numbers)); }

inline Ints no_ints() { return vdupq_n_s32(0); }

inline Bytes from_unsigned(uint8x16_t v) { return vreinterpretq_s8_u8(v); }
inline uint8x16_t to_unsigned(Bytes v) { return vreinterpretq_u8_s8(v); }
template <int COUNT>
inline Bytes shift_left(Bytes v) {
    return vshlq_n_s8(v, COUNT);
}
template <int COUNT>
inline Bytes shift_right(Bytes v) {
    return from_unsigned(vshrq_n_u8(to_unsigned(v), COUNT));
}
inline Bytes and_bytes(Bytes a, Bytes b) { return vandq_s8(a, b); }
inline Bytes xor_bytes(Bytes a, Bytes b) { return veorq_s8(a, b); }
inline Bytes add_bytes(Bytes a, Bytes b) { return vaddq_s8(a, b); }
inline Bytes pick_bits(Bytes m, Bytes if_set, Bytes if_clear) { return vbslq_s8(to_unsigned(m), if_set, if_clear); }

// Bytes where the mask, read from one byte for each that is 255 or 0, is set.
using ByteMask = Bytes;
inline ByteMask load_mask(const unsigned char* p) { return load_columns(p); }
inline Bytes pick_bytes(ByteMask m, Bytes if_set, Bytes if_clear) { return pick_bits(m, if_set, if_clear); }
inline Bytes keep_bytes(ByteMask m, Bytes v) { return and_bytes(m, v); }

// The bits from bit `shift` (0..7) of byte p on; reads a byte more than it returns.
inline Bytes load_bits(const unsigned char* p, int shift) {
    const int8x16_t right = vdupq_n_s8(static_cast<int8_t>(-shift)), left = vdupq_n_s8(static_cast<int8_t>(8 - shift));
    return from_unsigned(vorrq_u8(vshlq_u8(vld1q_u8(p), right), vshlq_u8(vld1q_u8(p + 1), left)));
}

inline Ints load_ints(const int32_t* p) { return vld1q_s32(p); }
inline void store_ints(int32_t* p, Ints v) { vst1q_s32(p, v); }
inline Ints add_ints(Ints a, Ints b) { return vaddq_s32(a, b); }

// A vector of sums has four for every 16 bytes.
inline Ints join_digits(Ints high, Ints low) { return vaddq_s32(vshlq_n_s32(high, 8), low); }
inline Ints subtract_ints(Ints a, Ints b) { return vsubq_s32(a, b); }
inline Lanes load_lanes(const float* p) { return load(p); }

inline Lanes add_products(Ints sums, Lanes scales, Lanes to) { return mul_add(vcvtq_f32_s32(sums), scales, to); }

// Of every 16 bytes, the totals of the four sums of a, b, c and d.
inline Ints turn_sums(Ints a, Ints b, Ints c, Ints d) { return vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d)); }

// Four numbers: the sums of what is so many times 16 bytes apart.
inline void store_folded(int32_t* p, Ints v) { vst1q_s32(p, v); }

// For tiles.inc.
inline Ints fill_ints(int32_t value) { return vdupq_n_s32(value); }
constexpr int kTogether = 2;  // vectors of rows side by side
// Every four bytes of the vector are those at p.
inline Bytes fill_words(const unsigned char* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

}  // namespace

#include "../four_bits.inc"
