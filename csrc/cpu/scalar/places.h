// Lookups for tiles.inc, four rows at a time.
#pragma once

#include "bytes.h"

namespace {

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

// One byte of every whole number.
inline void store_byte_of(int8_t* p, Floats whole, int shift) {
    *p = static_cast<int8_t>(static_cast<int32_t>(whole) >> shift);
}

}  // namespace
