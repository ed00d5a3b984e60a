// Bytes for line.inc and tiles.inc, 64 at a time: AVX-512 F and BW. `level_dot` is in dot.h, with VNNI (../avx512vnni)
// or without.
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
// A vector of sums has four for every 16 bytes.
inline Ints join_digits(Ints high, Ints low) { return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low); }
inline Ints subtract_ints(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
inline Lanes load_lanes(const float* p) { return load(p); }

inline Lanes add_products(Ints sums, Lanes scales, Lanes to) { return mul_add(_mm512_cvtepi32_ps(sums), scales, to); }

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
