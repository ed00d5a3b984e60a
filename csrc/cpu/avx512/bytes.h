// Bytes for line.inc and sums.inc, 64 at a time: AVX-512 F and BW. `dot` is in dot.h, with VNNI (../avx512vnni) or
// without.
#pragma once

#include <cstring>

#include "vec.h"

namespace {

constexpr int kBytes = 64;
using Bytes = __m512i;
using Ints = __m512i;
using Lanes = __m512;

inline Bytes load_columns(const void* p) { return _mm512_loadu_si512(p); }
// A constant that is made once: GCC would make it wherever it is used, on the port that lookups need.
inline Bytes keep_register(Bytes v) {
    asm("" : "+v"(v));
    return v;
}
inline Bytes fill_bytes(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }

// Sixteen bytes; look_up reads, in every lane, the one that the lane's number names.
inline Bytes load_table(const unsigned char* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// Every eight bytes of the vector are those at p.
inline Bytes load_twice(const unsigned char* p) {
    int64_t eight;
    std::memcpy(&eight, p, 8);
    return _mm512_set1_epi64(eight);
}
inline Bytes look_up(Bytes table, Bytes numbers) { return _mm512_shuffle_epi8(table, numbers); }

inline Ints no_ints() { return _mm512_setzero_si512(); }
inline Lanes no_lanes() { return _mm512_setzero_ps(); }

// Shifts work on 16 bits: what crosses into the neighbouring byte must be masked away.
template <int COUNT>
inline Bytes shift_left(Bytes v) {
    return _mm512_slli_epi16(v, COUNT);
}
template <int COUNT>
inline Bytes shift_right(Bytes v) {
    return _mm512_srli_epi16(v, COUNT);
}
inline Bytes and_bytes(Bytes a, Bytes b) { return _mm512_and_si512(a, b); }
inline Bytes xor_bytes(Bytes a, Bytes b) { return _mm512_xor_si512(a, b); }
inline Bytes add_bytes(Bytes a, Bytes b) { return _mm512_add_epi8(a, b); }
inline Bytes pick_bits(Bytes m, Bytes if_set, Bytes if_clear) {
    return _mm512_ternarylogic_epi64(if_clear, if_set, m, 0xd8);  // overwrites if_clear, and m is kept
}

// Bytes where the mask, read from one byte for each that is 255 or 0, is set.
using ByteMask = __mmask64;
inline ByteMask load_mask(const unsigned char* p) { return _mm512_movepi8_mask(load_columns(p)); }
inline Bytes pick_bytes(ByteMask m, Bytes if_set, Bytes if_clear) { return _mm512_mask_mov_epi8(if_clear, m, if_set); }
inline Bytes keep_bytes(ByteMask m, Bytes v) { return _mm512_maskz_mov_epi8(m, v); }

// The bits from bit `shift` (0..7) of byte p on; reads 8 bytes more than it returns.
inline Bytes load_bits(const unsigned char* p, int shift) {
    const __m512i right = _mm512_set1_epi64(shift);
#if defined(__AVX512VBMI2__)
    return _mm512_shrdv_epi64(load_columns(p), load_columns(p + 8), right);
#else
    const __m512i left = _mm512_set1_epi64(64 - shift);
    return _mm512_or_si512(_mm512_srlv_epi64(load_columns(p), right), _mm512_sllv_epi64(load_columns(p + 8), left));
#endif
}

inline Ints load_ints(const int32_t* p) { return _mm512_loadu_si512(p); }
inline void store_ints(int32_t* p, Ints v) { _mm512_storeu_si512(p, v); }
inline Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
// For sums.inc. A vector of sums has four for every 16 bytes.
inline Ints join_digits(Ints high, Ints low) { return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low); }
inline Ints subtract_ints(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
inline Lanes load_lanes(const float* p) { return load(p); }

// kinds[k], lane l = p[index[l] + k]. Up to three numbers more are read from each place.
template <int COUNT>
inline void load_kinds(const float* p, const int32_t* index, Lanes (&kinds)[COUNT]) {
    for (int k = 0; k < COUNT; k += 4) {
        const auto four = [&](int i) {
            const auto at = [&](int n) { return _mm_loadu_ps(p + index[i + 4 * n] + k); };
            const __m512 two = _mm512_insertf32x4(_mm512_castps128_ps512(at(0)), at(1), 1);
            return _mm512_insertf32x4(_mm512_insertf32x4(two, at(2), 2), at(3), 3);
        };
        const __m512 a = four(0), b = four(1), c = four(2), d = four(3);
        const auto put = [&](int n, __m512 ab, __m512 cd) {
            const __m512d low = _mm512_castps_pd(ab), high = _mm512_castps_pd(cd);
            if (k + n < COUNT) kinds[k + n] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            if (k + n + 1 < COUNT) kinds[k + n + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        };
        put(0, _mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
        put(2, _mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
    }
}
inline Lanes add_products(Ints sums, Lanes scales, Lanes to) { return mul_add(_mm512_cvtepi32_ps(sums), scales, to); }

// The sum of the 16 lanes of a row, in the order that sums.h fixes.
inline float sum_units(const Lanes (&v)[1]) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v[0]), _mm512_extractf32x8_ps(v[0], 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// Of every 16 bytes, the totals of the four sums of a, b, c and d.
inline Ints turn_sums(Ints a, Ints b, Ints c, Ints d) {
    const Ints ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const Ints cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

// Four numbers: the sums of what is so many times 16 bytes apart.
inline void store_folded(int32_t* p, Ints v) {
    const __m256i eight = _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), four);
}

// Four bytes of every 16 of four vectors, in the order of turn_sums: the first four of all, the next, and so on.
inline void turn_words(const Bytes (&from)[4], Bytes (&to)[4]) {
    const Bytes low_ab = _mm512_unpacklo_epi32(from[0], from[1]), high_ab = _mm512_unpackhi_epi32(from[0], from[1]);
    const Bytes low_cd = _mm512_unpacklo_epi32(from[2], from[3]), high_cd = _mm512_unpackhi_epi32(from[2], from[3]);
    to[0] = _mm512_unpacklo_epi64(low_ab, low_cd);
    to[1] = _mm512_unpackhi_epi64(low_ab, low_cd);
    to[2] = _mm512_unpacklo_epi64(high_ab, high_cd);
    to[3] = _mm512_unpackhi_epi64(high_ab, high_cd);
}

// 32 bits for every sum, from bit first + bits[i] on; where not `wide`, the last 7 may be missing.
inline Bytes load_bit_words(const unsigned char* p, int64_t first, const int32_t* bits, bool wide) {
    const __m512i from = _mm512_add_epi32(_mm512_loadu_si512(bits), _mm512_set1_epi32(static_cast<int>(first)));
    const __m512i at = _mm512_srli_epi32(from, 3), shift = _mm512_and_si512(from, _mm512_set1_epi32(7));
    const __m512i low = _mm512_srlv_epi32(_mm512_i32gather_epi32(at, p, 1), shift);
    if (!wide) return low;
    const __m512i next = _mm512_i32gather_epi32(at, p + 1, 1);
    return _mm512_or_si512(low, _mm512_sllv_epi32(next, _mm512_sub_epi32(_mm512_set1_epi32(8), shift)));
}

// 32 bits for every sum, from byte bytes[i] on.
inline Bytes load_words(const unsigned char* p, const int32_t* bytes) {
    return _mm512_i32gather_epi32(_mm512_loadu_si512(bytes), p, 1);
}

// spread_words: the lowest 4 * width bits of every four bytes, `width` to each of them; what stands above these is of
// no meaning. pick_bit_words: bit words, spread, from 64 bytes: `byte` has four byte numbers for every sum, and for
// every byte of the result where its bits begin in the eight bytes so picked. pick_quarters: four bytes for every sum,
// of the 64 from byte at[i % 4] on for sum i.
#if defined(__AVX512VBMI__)
constexpr bool kPicksBits = true;
struct SpreadBits {
    uint8_t at[4][64];
    constexpr SpreadBits() : at() {
        for (int width = 2; width <= 8; width += 2) {
            for (int i = 0; i < 64; ++i) at[width / 2 - 1][i] = static_cast<uint8_t>(i % 8 / 4 * 32 + i % 4 * width);
        }
    }
};
inline Bytes spread_words(Bytes words, int64_t width) {
    static constexpr SpreadBits kSpread;
    return _mm512_multishift_epi64_epi8(load_columns(kSpread.at[width / 2 - 1]), words);
}
inline Bytes pick_bit_words(Bytes from, const uint8_t* byte, const uint8_t* bit) {
    return _mm512_multishift_epi64_epi8(load_columns(bit), _mm512_permutexvar_epi8(load_columns(byte), from));
}
inline Bytes pick_quarters(const unsigned char* p, const int64_t (&at)[4], const uint8_t* byte) {
    const Bytes index = load_columns(byte);
    Bytes words = _mm512_permutexvar_epi8(index, load_columns(p + at[0]));
    for (int s = 1; s < 4; ++s) {
        words = _mm512_mask_permutexvar_epi8(words, 0x000f000f000f000f << (4 * s), index, load_columns(p + at[s]));
    }
    return words;
}
#else
constexpr bool kPicksBits = false;
inline Bytes spread_words(Bytes words, int64_t width) {
    const int by = static_cast<int>(8 - width);
    const Bytes halves = pick_bits(_mm512_set1_epi32(0x0000ffff), words, _mm512_slli_epi32(words, 2 * by));
    return pick_bits(_mm512_set1_epi32(0x00ff00ff), halves, _mm512_slli_epi32(halves, by));
}
inline Bytes pick_bit_words(Bytes from, const uint8_t*, const uint8_t*) { return from; }
inline Bytes pick_quarters(const unsigned char* p, const int64_t (&)[4], const uint8_t*) { return load_columns(p); }
#endif

// Two numbers for every sum from the 16 COUNT halves at p, where the pick says. Pairs of an even COUNT lie in four
// bytes.
constexpr bool kTurnsHalves = true;
template <int COUNT, typename Pick>
inline void pick_halves(const unsigned char* p, const Pick& pick, Lanes& low, Lanes& high) {
    __m512i halves = load_columns(p);
    if constexpr (COUNT % 2 == 0) {
        halves = _mm512_permutex2var_epi32(halves, load_columns(pick.pair), load_columns(p + 64));
        if (COUNT == 6) halves = _mm512_permutex2var_epi32(halves, load_columns(pick.late), load_columns(p + 128));
        for (int v = 2; COUNT > 6 && v < COUNT / 2; v += 2) {
            const __m512i here = _mm512_permutex2var_epi32(load_columns(p + v * 64), load_columns(pick.pair),
                                                           load_columns(p + v * 64 + 64));
            halves = _mm512_mask_mov_epi32(halves, pick.lanes[v / 2], here);
        }
        halves = _mm512_permutexvar_epi16(load_columns(pick.half), halves);
    } else {
        static_assert(COUNT < 4);
        halves = _mm512_permutex2var_epi16(halves, load_columns(pick.half), load_columns(p + 64));
    }
    low = _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
    high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1));
}

// For tiles.inc.
inline Ints fill_ints(int32_t value) { return _mm512_set1_epi32(value); }
constexpr int kTogether = 2;  // vectors of rows side by side
// Every four bytes of the vector are those at p.
inline Bytes fill_words(const unsigned char* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
}

}  // namespace
