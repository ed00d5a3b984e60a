// Bytes for line.inc and tiles.inc, 32 at a time: AVX2.
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

// A vector of sums has four for every 16 bytes.
inline Ints join_digits(Ints high, Ints low) { return _mm256_add_epi32(_mm256_slli_epi32(high, 8), low); }
inline Ints subtract_ints(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
inline Lanes load_lanes(const float* p) { return load(p); }

inline Lanes add_products(Ints sums, Lanes scales, Lanes to) { return mul_add(_mm256_cvtepi32_ps(sums), scales, to); }

// Of every 16 bytes, the totals of the four sums of a, b, c and d.
inline Ints turn_sums(Ints a, Ints b, Ints c, Ints d) {
    return _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
}

// Four numbers: the sums of what is so many times 16 bytes apart.
inline void store_folded(int32_t* p, Ints v) {
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), four);
}

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
