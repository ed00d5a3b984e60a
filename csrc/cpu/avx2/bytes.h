// Bytes for line.inc and sums.inc, 32 at a time: AVX2.
#pragma once

#include <cstring>

#include "vec.h"

namespace {

constexpr int kBytes = 32;
using Bytes = __m256i;
using Ints = __m256i;
using Lanes = __m256;

inline Bytes load_columns(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
// A constant that is made once: GCC would make it wherever it is used, on the port that lookups need.
inline Bytes keep_register(Bytes v) {
    asm("" : "+v"(v));
    return v;
}
inline Bytes fill_bytes(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }

// Sixteen bytes; look_up reads, in every lane, the one that the lane's number names.
inline Bytes load_table(const unsigned char* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// Every eight bytes of the vector are those at p.
inline Bytes load_twice(const unsigned char* p) {
    int64_t eight;
    std::memcpy(&eight, p, 8);
    return _mm256_set1_epi64x(eight);
}
inline Bytes look_up(Bytes table, Bytes numbers) { return _mm256_shuffle_epi8(table, numbers); }

inline Ints no_ints() { return _mm256_setzero_si256(); }
inline Lanes no_lanes() { return _mm256_setzero_ps(); }

// Shifts work on 16 bits: what crosses into the neighbouring byte must be masked away.
template <int COUNT>
inline Bytes shift_left(Bytes v) {
    return _mm256_slli_epi16(v, COUNT);
}
template <int COUNT>
inline Bytes shift_right(Bytes v) {
    return _mm256_srli_epi16(v, COUNT);
}
inline Bytes and_bytes(Bytes a, Bytes b) { return _mm256_and_si256(a, b); }
inline Bytes xor_bytes(Bytes a, Bytes b) { return _mm256_xor_si256(a, b); }
inline Bytes add_bytes(Bytes a, Bytes b) { return _mm256_add_epi8(a, b); }
inline Bytes pick_bits(Bytes m, Bytes if_set, Bytes if_clear) {
    return _mm256_or_si256(_mm256_and_si256(m, if_set), _mm256_andnot_si256(m, if_clear));
}

// Bytes where the mask, read from one byte for each that is 255 or 0, is set.
using ByteMask = Bytes;
inline ByteMask load_mask(const unsigned char* p) { return load_columns(p); }
inline Bytes pick_bytes(ByteMask m, Bytes if_set, Bytes if_clear) { return pick_bits(m, if_set, if_clear); }
inline Bytes keep_bytes(ByteMask m, Bytes v) { return and_bytes(m, v); }

// The bits from bit `shift` (0..7) of byte p on; reads 8 bytes more than it returns.
inline Bytes load_bits(const unsigned char* p, int shift) {
    const __m128i right = _mm_cvtsi32_si128(shift), left = _mm_cvtsi32_si128(64 - shift);
    return _mm256_or_si256(_mm256_srl_epi64(load_columns(p), right), _mm256_sll_epi64(load_columns(p + 8), left));
}

inline Ints load_ints(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store_ints(int32_t* p, Ints v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
inline Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }

// For sums.inc. A vector of sums has four for every 16 bytes.
inline Ints join_digits(Ints high, Ints low) { return _mm256_add_epi32(_mm256_slli_epi32(high, 8), low); }
inline Ints subtract_ints(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
inline Lanes load_lanes(const float* p) { return load(p); }

// kinds[k], lane l = p[index[l] + k]. Up to three numbers more are read from each place.
template <int COUNT>
inline void load_kinds(const float* p, const int32_t* index, Lanes (&kinds)[COUNT]) {
    for (int k = 0; k < COUNT; k += 4) {
        const auto pair = [&](int i) { return _mm256_loadu2_m128(p + index[i + 4] + k, p + index[i] + k); };
        const __m256 a = pair(0), b = pair(1), c = pair(2), d = pair(3);
        const auto put = [&](int n, __m256 ab, __m256 cd) {
            const __m256d low = _mm256_castps_pd(ab), high = _mm256_castps_pd(cd);
            if (k + n < COUNT) kinds[k + n] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, high));
            if (k + n + 1 < COUNT) kinds[k + n + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, high));
        };
        put(0, _mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
        put(2, _mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
    }
}
inline Lanes add_products(Ints sums, Lanes scales, Lanes to) { return mul_add(_mm256_cvtepi32_ps(sums), scales, to); }

// The sum of the 16 lanes of a row, in the order that sums.h fixes.
inline float sum_units(const Lanes (&v)[2]) {
    const auto half = [](Lanes lanes) {
        const Lanes pairs = _mm256_add_ps(lanes, _mm256_movehdup_ps(lanes));
        return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
    };
    const __m128 s = _mm_add_ps(half(v[0]), half(v[1]));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehl_ps(s, s)));
}

// Of every 16 bytes, the totals of the four sums of a, b, c and d.
inline Ints turn_sums(Ints a, Ints b, Ints c, Ints d) {
    return _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
}

// Four numbers: the sums of what is so many times 16 bytes apart.
inline void store_folded(int32_t* p, Ints v) {
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), four);
}

// 32 bits for every sum, from byte bytes[i] on.
inline Bytes load_words(const unsigned char* p, const int32_t* bytes) {
    return collect_words([&](int i) { return p + bytes[i]; });
}

// Four bytes of every 16 of four vectors, in the order of turn_sums: the first four of all, the next, and so on.
inline void turn_words(const Bytes (&from)[4], Bytes (&to)[4]) {
    const Bytes low_ab = _mm256_unpacklo_epi32(from[0], from[1]), high_ab = _mm256_unpackhi_epi32(from[0], from[1]);
    const Bytes low_cd = _mm256_unpacklo_epi32(from[2], from[3]), high_cd = _mm256_unpackhi_epi32(from[2], from[3]);
    to[0] = _mm256_unpacklo_epi64(low_ab, low_cd);
    to[1] = _mm256_unpackhi_epi64(low_ab, low_cd);
    to[2] = _mm256_unpacklo_epi64(high_ab, high_cd);
    to[3] = _mm256_unpackhi_epi64(high_ab, high_cd);
}

// 32 bits for every sum, from bit first + bits[i] on; where not `wide`, the last 7 may be missing.
inline Bytes load_bit_words(const unsigned char* p, int64_t first, const int32_t* bits, bool wide) {
    const __m256i from = _mm256_add_epi32(load_ints(bits), _mm256_set1_epi32(static_cast<int>(first)));
    const __m256i shift = _mm256_and_si256(from, _mm256_set1_epi32(7));
    const auto words = [&](const unsigned char* q) {
        return collect_words([&](int i) { return q + ((first + bits[i]) >> 3); });
    };
    const __m256i low = _mm256_srlv_epi32(words(p), shift);
    if (!wide) return low;
    return _mm256_or_si256(low, _mm256_sllv_epi32(words(p + 1), _mm256_sub_epi32(_mm256_set1_epi32(8), shift)));
}

// The lowest 4 * width bits of every four bytes, `width` to each of them; what stands above these is of no meaning.
inline Bytes spread_words(Bytes words, int64_t width) {
    const int by = static_cast<int>(8 - width);
    const Bytes halves = pick_bits(_mm256_set1_epi32(0x0000ffff), words, _mm256_slli_epi32(words, 2 * by));
    return pick_bits(_mm256_set1_epi32(0x00ff00ff), halves, _mm256_slli_epi32(halves, by));
}

constexpr bool kPicksBits = false;
inline Bytes pick_bit_words(Bytes from, const uint8_t*, const uint8_t*) { return from; }
inline Bytes pick_quarters(const unsigned char* p, const int64_t (&)[4], const uint8_t*) { return load_columns(p); }

// Numbers in 16 bits are read as floats instead.
constexpr bool kTurnsHalves = false;
template <int COUNT, typename Pick>
inline void pick_halves(const unsigned char*, const Pick&, Lanes&, Lanes&) {}

// For tiles.inc.
inline Ints fill_ints(int32_t value) { return _mm256_set1_epi32(value); }
constexpr int kTogether = 1;  // vectors of rows side by side
// Every four bytes of the vector are those at p.
inline Bytes fill_words(const unsigned char* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
}

}  // namespace
