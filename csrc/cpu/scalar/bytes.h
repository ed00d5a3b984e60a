// Bytes for line.inc and sums.inc, sixteen at a time, and four sums.
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
inline Lanes no_lanes() { return {}; }
constexpr int kLevelBias = 0;
inline Ints level_dot(const Ints& sums, const Bytes& levels, const Bytes& q) {
    return each_int([&](int i) {
        int32_t sum = sums.at[i];
        for (int j = 4 * i; j < 4 * i + 4; ++j) sum += levels.at[j] * q.at[j];
        return sum;
    });
}
// Sums of levels -1, 0 and 1 times q, for sums.inc.
constexpr int kUnitBias = 0;
constexpr int kTurnedDigits = 2;
constexpr int kMostUnits = 1 << 20;  // of 32 bits
using UnitSums = Ints;
inline UnitSums no_units() { return {}; }
inline UnitSums begin_units(const int32_t*) { return {}; }
inline UnitSums unit_dot(const UnitSums& sums, const Bytes& levels, const Bytes& q) {
    return level_dot(sums, levels, q);
}
inline Ints units_in(const UnitSums& sums) { return sums; }
inline Ints end_units(const UnitSums& sums, const int32_t*) { return sums; }

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

// For sums.inc. A vector of sums has four for every 16 bytes.
inline Ints join_digits(const Ints& high, const Ints& low) {
    return each_int([&](int i) { return high.at[i] * 256 + low.at[i]; });
}
inline Lanes load_lanes(const float* p) {
    return each_lane([&](int i) { return p[i]; });
}
// kinds[k], lane l = p[index[l] + k].
template <int COUNT>
inline void load_kinds(const float* p, const int32_t* index, Lanes (&kinds)[COUNT]) {
    for (int k = 0; k < COUNT; ++k) kinds[k] = each_lane([&](int i) { return p[index[i] + k]; });
}
inline Lanes mul(const Lanes& a, const Lanes& b) {
    return each_lane([&](int i) { return a.at[i] * b.at[i]; });
}
inline Lanes add_products(const Ints& sums, const Lanes& scales, const Lanes& to) {
    return each_lane([&](int i) { return std::fmaf(static_cast<float>(sums.at[i]), scales.at[i], to.at[i]); });
}

// The sum of the 16 lanes of a row, in the order that sums.h fixes.
inline float sum_units(const Lanes (&v)[4]) {
    const auto one = [&](int i) { return (v[i].at[0] + v[i].at[2]) + (v[i].at[1] + v[i].at[3]); };
    return (one(0) + one(2)) + (one(1) + one(3));
}

// Of every 16 bytes, the totals of the four sums of a, b, c and d.
inline Ints turn_sums(const Ints& a, const Ints& b, const Ints& c, const Ints& d) {
    const auto total = [](const Ints& v) { return v.at[0] + v.at[1] + v.at[2] + v.at[3]; };
    return {{total(a), total(b), total(c), total(d)}};
}

// Four numbers: the sums of what is so many times 16 bytes apart.
inline void store_folded(int32_t* p, const Ints& v) { store_ints(p, v); }

// 32 bits for every sum, from bit first + bits[i] on.
inline Bytes load_bit_words(const unsigned char* p, int64_t first, const int32_t* bits, bool) {
    uint32_t words[4];
    for (int i = 0; i < 4; ++i) {
        uint64_t here;
        std::memcpy(&here, p + (first + bits[i]) / 8, 8);
        words[i] = static_cast<uint32_t>(here >> ((first + bits[i]) % 8));
    }
    return load_columns(words);
}

// 32 bits for every sum, from byte bytes[i] on.
inline Bytes load_words(const unsigned char* p, const int32_t* bytes) {
    uint32_t words[4];
    for (int i = 0; i < 4; ++i) std::memcpy(words + i, p + bytes[i], 4);
    return load_columns(words);
}

// Four bytes of every 16 of four vectors, in the order of turn_sums: the first four of all, the next, and so on.
inline void turn_words(const Bytes (&from)[4], Bytes (&to)[4]) {
    for (int i = 0; i < 4; ++i) to[i] = each_byte([&](int at) { return from[at / 4].at[4 * i + at % 4]; });
}

// The lowest 4 * width bits of every four bytes, `width` to each of them; what stands above these is of no meaning.
inline Bytes spread_words(const Bytes& words, int64_t width) {
    return each_byte([&](int i) {
        uint32_t word;
        std::memcpy(&word, words.at + i / 4 * 4, 4);
        return word >> (i % 4 * width);
    });
}

// look_up reads by four bits; there are no tables of 64 bytes.
constexpr bool kSixBits = false;
inline Bytes look_up_six(const Bytes& table, const Bytes&) { return table; }

constexpr bool kPicksBits = false;
inline Bytes pick_bit_words(Bytes from, const uint8_t*, const uint8_t*) { return from; }
inline Bytes pick_quarters(const unsigned char* p, const int64_t (&)[4], const uint8_t*) { return load_columns(p); }

// Numbers in 16 bits are read as floats instead.
constexpr bool kTurnsHalves = false;
template <int COUNT, typename Pick>
inline void pick_halves(const unsigned char*, const Pick&, Lanes&, Lanes&) {}

}  // namespace
