// Bytes for line.inc and tiles.inc, sixteen at a time, and four sums.
#pragma once

#include <cmath>

#include "vec.h"

namespace {

constexpr int kBytes = 16;
struct Bytes {
    int8_t at[16];
};
struct Ints {
    int32_t at[4];
};
struct Lanes {
    float at[4];
};

inline Bytes load_columns(const void* p) {
    Bytes v;
    std::memcpy(v.at, p, sizeof v.at);
    return v;
}

template <typename Each>
inline Bytes each_byte(const Each& each) {
    Bytes v;
    for (int i = 0; i < 16; ++i) v.at[i] = static_cast<int8_t>(each(i));
    return v;
}

template <typename Each>
inline Ints each_int(const Each& each) {
    Ints v;
    for (int i = 0; i < 4; ++i) v.at[i] = each(i);
    return v;
}

template <typename Each>
inline Lanes each_lane(const Each& each) {
    Lanes v;
    for (int i = 0; i < 4; ++i) v.at[i] = each(i);
    return v;
}

inline Bytes keep_register(const Bytes& v) { return v; }
inline Bytes fill_bytes(int value) {
    return each_byte([&](int) { return value; });
}

// Sixteen bytes; look_up reads, in every lane, the one that the lane's number names.
inline Bytes load_table(const unsigned char* p) { return load_columns(p); }
// Every eight bytes of the vector are those at p.
inline Bytes load_twice(const unsigned char* p) {
    return each_byte([&](int i) { return p[i % 8]; });
}
inline Bytes look_up(const Bytes& table, const Bytes& numbers) {
    return each_byte([&](int i) { return table.at[numbers.at[i]]; });
}

template <int COUNT>
inline Bytes shift_left(const Bytes& v) {
    return each_byte([&](int i) { return v.at[i] << COUNT; });
}
template <int COUNT>
inline Bytes shift_right(const Bytes& v) {
    return each_byte([&](int i) { return static_cast<uint8_t>(v.at[i]) >> COUNT; });
}
inline Bytes and_bytes(const Bytes& a, const Bytes& b) {
    return each_byte([&](int i) { return a.at[i] & b.at[i]; });
}
inline Bytes xor_bytes(const Bytes& a, const Bytes& b) {
    return each_byte([&](int i) { return a.at[i] ^ b.at[i]; });
}
inline Bytes add_bytes(const Bytes& a, const Bytes& b) {
    return each_byte([&](int i) { return a.at[i] + b.at[i]; });
}
inline Bytes pick_bits(const Bytes& m, const Bytes& if_set, const Bytes& if_clear) {
    return each_byte([&](int i) { return (if_set.at[i] & m.at[i]) | (if_clear.at[i] & ~m.at[i]); });
}

// Bytes where the mask, read from one byte for each that is 255 or 0, is set.
using ByteMask = Bytes;
inline ByteMask load_mask(const unsigned char* p) { return load_columns(p); }
inline Bytes pick_bytes(const ByteMask& m, const Bytes& if_set, const Bytes& if_clear) {
    return pick_bits(m, if_set, if_clear);
}
inline Bytes keep_bytes(const ByteMask& m, const Bytes& v) { return and_bytes(m, v); }

// The bits from bit `shift` (0..7) of byte p on; reads a byte more than it returns.
inline Bytes load_bits(const unsigned char* p, int shift) {
    return each_byte([&](int i) { return p[i] >> shift | p[i + 1] << (8 - shift); });
}

inline Ints no_ints() { return {}; }
constexpr int kLevelBias = 0;
inline Ints level_dot(const Ints& sums, const Bytes& levels, const Bytes& q) {
    return each_int([&](int i) {
        int32_t sum = sums.at[i];
        for (int j = 4 * i; j < 4 * i + 4; ++j) sum += levels.at[j] * q.at[j];
        return sum;
    });
}

inline Ints load_ints(const int32_t* p) {
    return each_int([&](int i) { return p[i]; });
}
inline void store_ints(int32_t* p, const Ints& v) { std::memcpy(p, v.at, sizeof v.at); }
inline Ints add_ints(const Ints& a, const Ints& b) {
    return each_int([&](int i) { return a.at[i] + b.at[i]; });
}
inline Ints subtract_ints(const Ints& a, const Ints& b) {
    return each_int([&](int i) { return a.at[i] - b.at[i]; });
}

// A vector of sums has four for every 16 bytes.
inline Ints join_digits(const Ints& high, const Ints& low) {
    return each_int([&](int i) { return high.at[i] * 256 + low.at[i]; });
}
inline Lanes load_lanes(const float* p) {
    return each_lane([&](int i) { return p[i]; });
}
inline Lanes mul(const Lanes& a, const Lanes& b) {
    return each_lane([&](int i) { return a.at[i] * b.at[i]; });
}
inline Lanes add_products(const Ints& sums, const Lanes& scales, const Lanes& to) {
    return each_lane([&](int i) { return std::fmaf(static_cast<float>(sums.at[i]), scales.at[i], to.at[i]); });
}

// Of every 16 bytes, the totals of the four sums of a, b, c and d.
inline Ints turn_sums(const Ints& a, const Ints& b, const Ints& c, const Ints& d) {
    const auto total = [](const Ints& v) { return v.at[0] + v.at[1] + v.at[2] + v.at[3]; };
    return {{total(a), total(b), total(c), total(d)}};
}

// Four numbers: the sums of what is so many times 16 bytes apart.
inline void store_folded(int32_t* p, const Ints& v) { store_ints(p, v); }

}  // namespace

#include "../four_bits.inc"
