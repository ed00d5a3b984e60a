// Bytes for int8.inc, 32 at a time: AVX2. A mask is a vector of all-ones or all-zeros bytes.
#pragma once

#include "vec.h"

namespace {

constexpr int kBytes = 32;
constexpr int kByteRows = 1;
constexpr int kByteRowsOfTile = 1;
using Bytes = __m256i;
using Mask8 = __m256i;
using Ints = __m256i;
using Lanes = __m256;

inline Bytes load_columns(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline Bytes fill_bytes(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }

// Every byte gets the byte of the word that holds its bit, and then the bit is compared.
inline Mask8 mask_bytes(uint64_t word, int part) {
    const __m256i holder = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201));
    const __m256i half = _mm256_set1_epi32(static_cast<int>(word >> (part * kBytes)));
    return _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(half, holder), bit), bit);
}

inline Bytes blend_bytes(Mask8 m, Bytes if_clear, Bytes if_set) { return _mm256_blendv_epi8(if_clear, if_set, m); }
inline Bytes negate_bytes_if_set(Mask8 m, Bytes v) { return _mm256_sub_epi8(_mm256_xor_si256(v, m), m); }
inline Mask8 flip(Mask8 m, Bytes where_negative) {
    return _mm256_xor_si256(m, _mm256_cmpgt_epi8(_mm256_setzero_si256(), where_negative));
}
inline Bytes magnitude_bytes(Bytes v) { return _mm256_abs_epi8(v); }

// Sixteen bytes; look_up reads, in every lane, the one that the lane's number names.
inline Bytes load_table(const unsigned char* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Bytes look_up(Bytes table, Bytes numbers) { return _mm256_shuffle_epi8(table, numbers); }

inline Ints no_ints() { return _mm256_setzero_si256(); }
inline Lanes no_lanes() { return _mm256_setzero_ps(); }

// |u| and |s| are at most 127, so pairs of products fit 16 bits.
inline Ints dot(Ints sums, Bytes u, Bytes s) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
}
inline Lanes add_scaled_ints(Ints sums, float scale, Lanes to) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), _mm256_set1_ps(scale), to);
}

// For line.inc. Shifts work on 16 bits: what crosses into the neighbouring byte must be masked away.
inline Bytes shift_left_1(Bytes v) { return _mm256_slli_epi16(v, 1); }
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

// The bits from bit `shift` (0..7) of byte p on; reads 8 bytes more than it returns.
inline Bytes load_bits(const unsigned char* p, int shift) {
    const __m128i right = _mm_cvtsi32_si128(shift), left = _mm_cvtsi32_si128(64 - shift);
    return _mm256_or_si256(_mm256_srl_epi64(load_columns(p), right), _mm256_sll_epi64(load_columns(p + 8), left));
}

// As dot for signed levels, of at most 127, and any q.
constexpr int kLevelBias = 0;
inline Ints level_dot(Ints sums, Bytes levels, Bytes q) {
    return dot(sums, _mm256_abs_epi8(q), _mm256_sign_epi8(levels, q));
}

inline Ints load_ints(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store_ints(int32_t* p, Ints v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
inline Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline int32_t sum_ints(Ints v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

// Lanes 8, 4, 2 and 1 apart.
inline float sum_lanes(const Lanes (&v)[2]) { return sum(_mm256_add_ps(v[0], v[1])); }

// look_up reads by four bits; there are no tables of 64 bytes.
constexpr bool kSixBits = false;
inline Bytes look_up_six(Bytes table, Bytes) { return table; }

}  // namespace
