// Lookups for tiles.inc, sixteen rows at a time.
#pragma once

#include "dot.h"

namespace {

// Tables of 16 numbers, one for each of four bytes.
using Places = __m512i;
inline Places load_places(const void* p) { return _mm512_load_si512(p); }
inline Bytes look_up_places(Places table, Bytes numbers) { return _mm512_permutexvar_epi8(numbers, table); }

// What is looked up for the low nibble of every byte.
struct PlaceNumbers {
    Bytes nibble = keep_register(fill_bytes(15));
    Bytes place = keep_register(_mm512_set1_epi32(0x30201000));
    // (v & nibble) | place
    Bytes operator()(Bytes v) const { return _mm512_ternarylogic_epi32(v, nibble, place, 0xea); }
};

inline Ints keep_sums(Ints v) { return keep_register(v); }
inline Ints add_unsigned(Ints sums, Bytes v) { return _mm512_dpbusd_epi32(sums, v, fill_bytes(1)); }
inline Ints add_signed(Ints sums, Bytes v) { return _mm512_dpbusd_epi32(sums, fill_bytes(1), v); }

// The tables of a nibble of four bytes with `codes` codes each: what their whole numbers add up to, [number, 4, 16]
// bytes, of which bits `plus` and `minus` name those that count. Code c of byte j has number 4 c + j. 16 numbers are
// read.
inline void make_byte_places(const float* whole, int64_t codes, const uint16_t* plus, const uint16_t* minus,
                             int8_t* tables) {
    const __m512i all = _mm512_broadcast_i32x4(_mm512_cvtepi32_epi8(_mm512_cvtps_epi32(load(whole))));
    const __m512i byte = _mm512_set_epi64(0x0303030303030303, 0x0303030303030303, 0x0202020202020202,
                                          0x0202020202020202, 0x0101010101010101, 0x0101010101010101, 0, 0);
    __m512i sum = _mm512_setzero_si512();
    for (int64_t c = 0; c < codes; ++c) {
        const __m512i own = _mm512_shuffle_epi8(all, _mm512_add_epi8(byte, fill_bytes(static_cast<int>(4 * c))));
        constexpr uint64_t kFour = 0x0001000100010001;
        sum = _mm512_mask_add_epi8(sum, plus[c] * kFour, sum, own);
        sum = _mm512_mask_sub_epi8(sum, minus[c] * kFour, sum, own);
    }
    _mm512_store_si512(tables, sum);
}

// Where byte d of every 32-bit number of two vectors is.
struct DigitBytes {
    uint8_t at[3][64];
    constexpr DigitBytes() : at() {
        for (int d = 0; d < 3; ++d) {
            for (int i = 0; i < 64; ++i) at[d][i] = static_cast<uint8_t>(i % 32 * 4 + d);
        }
    }
};

inline void make_places(const float* whole, int64_t codes, const uint16_t* plus, const uint16_t* minus, int64_t number,
                        int8_t* tables) {
    if (number == 1) return make_byte_places(whole, codes, plus, minus, tables);
    static constexpr DigitBytes kDigit;
    __m512i sums[4];
    for (int j = 0; j < 4; ++j) {
        __m512 sum = zero();
        for (int64_t c = 0; c < codes; ++c) {
            const __m512 own = broadcast(whole[4 * c + j]);
            sum = _mm512_mask_add_ps(sum, plus[c], sum, own);
            sum = _mm512_mask_sub_ps(sum, minus[c], sum, own);
        }
        sums[j] = _mm512_cvtps_epi32(sum);
    }
    for (int64_t d = 0; d < number; ++d) {
        const __m512i at = load_columns(kDigit.at[d]);
        for (int two = 0; two < 2; ++two) {
            const __m512i bytes = _mm512_permutex2var_epi8(sums[2 * two], at, sums[2 * two + 1]);
            const auto to = reinterpret_cast<__m256i*>(tables + d * 64 + two * 32);
            _mm256_store_si256(to, _mm512_castsi512_si256(bytes));
        }
    }
}

}  // namespace
