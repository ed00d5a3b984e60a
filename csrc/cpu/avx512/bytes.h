// Bytes for int8.inc, 64 at a time: AVX-512 F and BW. `dot` is in dot.h, with VNNI (../avx512vnni) or without.
#pragma once

#include "vec.h"

namespace {

constexpr int kBytes = 64;
constexpr int kByteRows = 4;        // rows of the weight at once for one row of x
constexpr int kByteRowsOfTile = 2;  // and for a tile of them
using Bytes = __m512i;
using Mask8 = __mmask64;
using Ints = __m512i;
using Lanes = __m512;

inline Bytes load_columns(const void* p) { return _mm512_loadu_si512(p); }
inline Bytes fill_bytes(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }
inline Mask8 mask_bytes(uint64_t word, int) { return _cvtu64_mask64(word); }
inline Bytes blend_bytes(Mask8 m, Bytes if_clear, Bytes if_set) { return _mm512_mask_blend_epi8(m, if_clear, if_set); }
inline Bytes negate_bytes_if_set(Mask8 m, Bytes v) { return _mm512_mask_sub_epi8(v, m, _mm512_setzero_si512(), v); }
inline Mask8 flip(Mask8 m, Bytes where_negative) { return _kxor_mask64(m, _mm512_movepi8_mask(where_negative)); }
inline Bytes magnitude_bytes(Bytes v) { return _mm512_abs_epi8(v); }

// Sixteen bytes; look_up reads, in every lane, the one that the lane's number names.
inline Bytes load_table(const unsigned char* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Bytes look_up(Bytes table, Bytes numbers) { return _mm512_shuffle_epi8(table, numbers); }

inline Ints no_ints() { return _mm512_setzero_si512(); }
inline Lanes no_lanes() { return _mm512_setzero_ps(); }
inline Lanes add_scaled_ints(Ints sums, float scale, Lanes to) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(scale), to);
}

// Lanes 8, 4, 2 and 1 apart.
inline float sum_lanes(const Lanes (&v)[1]) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v[0]), _mm512_extractf32x8_ps(v[0], 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// For line.inc. Shifts work on 16 bits: what crosses into the neighbouring byte must be masked away.
inline Bytes shift_left_1(Bytes v) { return _mm512_slli_epi16(v, 1); }
template <int COUNT>
inline Bytes shift_right(Bytes v) {
    return _mm512_srli_epi16(v, COUNT);
}
inline Bytes and_bytes(Bytes a, Bytes b) { return _mm512_and_si512(a, b); }
inline Bytes xor_bytes(Bytes a, Bytes b) { return _mm512_xor_si512(a, b); }
inline Bytes add_bytes(Bytes a, Bytes b) { return _mm512_add_epi8(a, b); }
inline Bytes pick_bits(Bytes m, Bytes if_set, Bytes if_clear) {
    return _mm512_ternarylogic_epi64(m, if_set, if_clear, 0xca);
}

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
inline int32_t sum_ints(Ints v) { return _mm512_reduce_add_epi32(v); }

}  // namespace
