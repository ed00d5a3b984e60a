// Bytes for int8.inc, four at a time: one lane of the sums.
#pragma once

#include <cmath>

#include "vec.h"

namespace {

constexpr int kBytes = 4;
constexpr int kByteRows = 1;
constexpr int kByteRowsOfTile = 1;
struct Bytes {
    int8_t at[16];  // a table; otherwise the first four
};
using Mask8 = uint32_t;
using Ints = int32_t;
using Lanes = float;

inline Bytes load_columns(const void* p) {
    Bytes v{};
    std::memcpy(v.at, p, kBytes);
    return v;
}

template <typename Each>
inline Bytes each_byte(const Each& each) {
    Bytes v{};
    for (int i = 0; i < kBytes; ++i) v.at[i] = static_cast<int8_t>(each(i));
    return v;
}

inline Bytes fill_bytes(int value) {
    return each_byte([&](int) { return value; });
}
inline Mask8 mask_bytes(uint64_t word, int part) { return static_cast<uint32_t>(word >> (part * kBytes)); }
inline Bytes blend_bytes(Mask8 m, Bytes if_clear, Bytes if_set) {
    return each_byte([&](int i) { return (m >> i & 1) != 0 ? if_set.at[i] : if_clear.at[i]; });
}
inline Bytes negate_bytes_if_set(Mask8 m, Bytes v) {
    return each_byte([&](int i) { return (m >> i & 1) != 0 ? -v.at[i] : v.at[i]; });
}
inline Mask8 flip(Mask8 m, Bytes where_negative) {
    for (int i = 0; i < kBytes; ++i) m ^= static_cast<uint32_t>(where_negative.at[i] < 0) << i;
    return m;
}
inline Bytes magnitude_bytes(Bytes v) {
    return each_byte([&](int i) { return v.at[i] < 0 ? -v.at[i] : v.at[i]; });
}

// Sixteen bytes; look_up reads, in every lane, the one that the lane's number names.
inline Bytes load_table(const unsigned char* p) {
    Bytes v;
    std::memcpy(v.at, p, sizeof v.at);
    return v;
}
inline Bytes look_up(const Bytes& table, const Bytes& numbers) {
    Bytes v;
    for (int i = 0; i < 16; ++i) v.at[i] = table.at[numbers.at[i]];
    return v;
}

// For line.inc.
inline Bytes shift_left_1(const Bytes& v) {
    return each_byte([&](int i) { return v.at[i] * 2; });
}
template <int COUNT>
inline Bytes shift_right(const Bytes& v) {
    return each_byte([&](int i) { return static_cast<uint8_t>(v.at[i]) >> COUNT; });
}
inline Bytes and_bytes(const Bytes& a, const Bytes& b) {
    return each_byte([&](int i) { return a.at[i] & b.at[i]; });
}
inline Bytes xor_bytes(const Bytes& a, const Bytes& b) {
    Bytes v;
    for (int i = 0; i < 16; ++i) v.at[i] = static_cast<int8_t>(a.at[i] ^ b.at[i]);
    return v;
}
inline Bytes add_bytes(const Bytes& a, const Bytes& b) {
    Bytes v;
    for (int i = 0; i < 16; ++i) v.at[i] = static_cast<int8_t>(a.at[i] + b.at[i]);
    return v;
}
inline Bytes pick_bits(const Bytes& m, const Bytes& if_set, const Bytes& if_clear) {
    return each_byte([&](int i) { return (if_set.at[i] & m.at[i]) | (if_clear.at[i] & ~m.at[i]); });
}

// The bits from bit `shift` (0..7) of byte p on; reads a byte more than it returns.
inline Bytes load_bits(const unsigned char* p, int shift) {
    return each_byte([&](int i) { return p[i] >> shift | p[i + 1] << (8 - shift); });
}

inline Ints no_ints() { return 0; }
inline Lanes no_lanes() { return 0.0f; }
inline Ints dot(Ints sums, Bytes u, Bytes s) {
    for (int i = 0; i < kBytes; ++i) sums += u.at[i] * s.at[i];
    return sums;
}
constexpr int kLevelBias = 0;
inline Ints level_dot(Ints sums, const Bytes& levels, const Bytes& q) { return dot(sums, levels, q); }
inline Ints load_ints(const int32_t* p) { return *p; }
inline void store_ints(int32_t* p, Ints v) { *p = v; }
inline Ints add_ints(Ints a, Ints b) { return a + b; }
inline int32_t sum_ints(Ints v) { return v; }
inline Lanes add_scaled_ints(Ints sums, float scale, Lanes to) {
    return std::fmaf(static_cast<float>(sums), scale, to);
}

// Lanes 8, 4, 2 and 1 apart.
inline float sum_lanes(const Lanes (&v)[16]) {
    float lanes[16];
    std::memcpy(lanes, v, sizeof lanes);
    for (int apart = 8; apart > 0; apart /= 2) {
        for (int i = 0; i < apart; ++i) lanes[i] += lanes[i + apart];
    }
    return lanes[0];
}

// look_up reads by four bits; there are no tables of 64 bytes.
constexpr bool kSixBits = false;
inline Bytes look_up_six(const Bytes& table, const Bytes&) { return table; }

}  // namespace
