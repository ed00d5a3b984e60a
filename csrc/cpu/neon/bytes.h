// Bytes for line.inc and sums.inc, 16 at a time: the ARMv8 baseline. `dot` is in dot.h, with the dot product extension
// (../neondot) or without.
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
inline Lanes no_lanes() { return vdupq_n_f32(0.0f); }

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

// look_up reads by four bits; there are no tables of 64 bytes.
constexpr bool kSixBits = false;
inline Bytes look_up_six(Bytes table, Bytes) { return table; }

// For sums.inc. A vector of sums has four for every 16 bytes.
inline Ints join_digits(Ints high, Ints low) { return vaddq_s32(vshlq_n_s32(high, 8), low); }
inline Ints subtract_ints(Ints a, Ints b) { return vsubq_s32(a, b); }
inline Lanes load_lanes(const float* p) { return load(p); }

// kinds[k], lane l = p[index[l] + k].
template <int COUNT>
inline void load_kinds(const float* p, const int32_t* index, Lanes (&kinds)[COUNT]) {
    for (int k = 0; k < COUNT; ++k) kinds[k] = load_at(p + k, index);
}
inline Lanes add_products(Ints sums, Lanes scales, Lanes to) { return mul_add(vcvtq_f32_s32(sums), scales, to); }

// The sum of the 16 lanes of a row, in the order that sums.h fixes.
inline float sum_units(const Lanes (&v)[4]) {
    const auto one = [](Lanes lanes) {
        const float32x2_t two = vadd_f32(vget_low_f32(lanes), vget_high_f32(lanes));
        return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
    };
    return (one(v[0]) + one(v[2])) + (one(v[1]) + one(v[3]));
}

// Of every 16 bytes, the totals of the four sums of a, b, c and d.
inline Ints turn_sums(Ints a, Ints b, Ints c, Ints d) { return vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d)); }

// Four numbers: the sums of what is so many times 16 bytes apart.
inline void store_folded(int32_t* p, Ints v) { vst1q_s32(p, v); }

// 32 bits for every sum, from bit first + bits[i] on.
inline Bytes load_bit_words(const unsigned char* p, int64_t first, const int32_t* bits, bool) {
    uint32_t words[4];
    for (int i = 0; i < 4; ++i) {
        uint64_t here;
        std::memcpy(&here, p + (first + bits[i]) / 8, 8);
        words[i] = static_cast<uint32_t>(here >> ((first + bits[i]) % 8));
    }
    return vreinterpretq_s8_u32(vld1q_u32(words));
}

// 32 bits for every sum, from byte bytes[i] on.
inline Bytes load_words(const unsigned char* p, const int32_t* bytes) {
    uint32_t words[4];
    for (int i = 0; i < 4; ++i) std::memcpy(words + i, p + bytes[i], 4);
    return vreinterpretq_s8_u32(vld1q_u32(words));
}

// Four bytes of every 16 of four vectors, in the order of turn_sums: the first four of all, the next, and so on.
inline void turn_words(const Bytes (&from)[4], Bytes (&to)[4]) {
    const auto words = [&](int i) { return vreinterpretq_s32_s8(from[i]); };
    const int32x4x2_t ab = vzipq_s32(words(0), words(1)), cd = vzipq_s32(words(2), words(3));
    for (int i = 0; i < 4; ++i) {
        const int64x2_t a = vreinterpretq_s64_s32(ab.val[i / 2]), c = vreinterpretq_s64_s32(cd.val[i / 2]);
        to[i] = vreinterpretq_s8_s64(i % 2 == 0 ? vzip1q_s64(a, c) : vzip2q_s64(a, c));
    }
}

// The lowest 4 * width bits of every four bytes, `width` to each of them; what stands above these is of no meaning.
inline Bytes spread_words(Bytes words, int64_t width) {
    const int by = static_cast<int>(8 - width);
    const auto spread = [](Bytes v, uint32_t stay, int left) {
        const uint32x4_t moved = vshlq_u32(vreinterpretq_u32_s8(v), vdupq_n_s32(left));
        return vreinterpretq_s8_u32(vbslq_u32(vdupq_n_u32(stay), vreinterpretq_u32_s8(v), moved));
    };
    return spread(spread(words, 0x0000ffff, 2 * by), 0x00ff00ff, by);
}

constexpr bool kPicksBits = false;
inline Bytes pick_bit_words(Bytes from, const uint8_t*, const uint8_t*) { return from; }
inline Bytes pick_quarters(const unsigned char* p, const int64_t (&)[4], const uint8_t*) { return load_columns(p); }

// Numbers in 16 bits are read as floats instead.
constexpr bool kTurnsHalves = false;
template <int COUNT, typename Pick>
inline void pick_halves(const unsigned char*, const Pick&, Lanes&, Lanes&) {}

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
