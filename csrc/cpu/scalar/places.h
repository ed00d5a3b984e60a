// Lookups for tiles.inc, four rows at a time.
#pragma once

#include "bytes.h"

namespace {

constexpr int kTogether = 2;  // vectors of rows side by side

// Tables of 16 numbers, one for each of four bytes.
using Places = const unsigned char*;
inline Places load_places(const void* p) { return static_cast<const unsigned char*>(p); }
inline Bytes look_up_places(Places table, const Bytes& numbers) {
    return each_byte([&](int i) { return table[numbers.at[i]]; });
}

// What is looked up for the low nibble of every byte.
struct PlaceNumbers {
    Bytes operator()(const Bytes& v) const {
        return each_byte([&](int i) { return (v.at[i] & 15) | i % 4 * 16; });
    }
};

inline Ints keep_sums(const Ints& v) { return v; }
inline Ints add_unsigned(const Ints& sums, const Bytes& v) {
    return each_int([&](int i) {
        int32_t sum = sums.at[i];
        for (int j = 4 * i; j < 4 * i + 4; ++j) sum += static_cast<uint8_t>(v.at[j]);
        return sum;
    });
}
inline Ints add_signed(const Ints& sums, const Bytes& v) { return level_dot(sums, fill_bytes(1), v); }

inline Lanes load_half_lanes(const unsigned char* p) {
    return each_lane([&](int i) { return load_halves(p + 2 * i); });
}
inline Lanes fill_lanes(float value) {
    return each_lane([&](int) { return value; });
}
inline void store_lanes(float* p, const Lanes& v) { std::memcpy(p, v.at, sizeof v.at); }

// The tables of nibbles of four bytes with CODES codes each: what their whole numbers add up to, [DIGITS, 4, 16] bytes,
// of which bits `plus` and `minus` name those that count. Code c of byte j has number 4 c + j.
template <int CODES, int DIGITS>
struct MakePlaces {
    const uint16_t *plus, *minus;

    void operator()(const float* whole, int8_t* tables) const {
        for (int64_t at = 0; at < 64; ++at) {
            int32_t sum = 0;
            for (int64_t c = 0; c < CODES; ++c) {
                const int counts = (plus[c] >> (at % 16) & 1) - (minus[c] >> (at % 16) & 1);
                sum += counts * static_cast<int32_t>(whole[4 * c + at / 16]);
            }
            for (int64_t d = 0; d < DIGITS; ++d) tables[d * 64 + at] = static_cast<int8_t>(sum >> (8 * d));
        }
    }
};

}  // namespace
