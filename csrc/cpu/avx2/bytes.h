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

// Lanes 8, 4, 2 and 1 apart.
inline float sum_lanes(const Lanes (&v)[2]) { return sum(_mm256_add_ps(v[0], v[1])); }

}  // namespace
