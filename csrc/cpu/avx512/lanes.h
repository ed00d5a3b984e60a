// Vectors of sixteen floats and of eight doubles: AVX-512 F. Operators are the compiler's.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

constexpr int64_t kFloats = 16;
using Floats = float __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(64)));
using Doubles = double __attribute__((vector_size(64)));  // half as many
using HalfFloats = float __attribute__((vector_size(32)));
using HalfInts = int32_t __attribute__((vector_size(32)));

using Mask = __mmask16;
inline Mask below(Floats v, Floats x) { return _mm512_cmp_ps_mask(v, x, _CMP_LT_OQ); }
inline Mask equal(Floats v, Floats x) { return _mm512_cmp_ps_mask(v, x, _CMP_EQ_OQ); }
inline bool any(Mask m) { return m != 0; }
inline bool all(Mask m) { return m == 0xffff; }
inline Ints add_one(Ints counts, Mask m) {
    const __m512i v = reinterpret_cast<__m512i>(counts);
    return reinterpret_cast<Ints>(_mm512_mask_add_epi32(v, m, v, _mm512_set1_epi32(1)));
}

// Conversions. (GCC 12 makes six operations of __builtin_convertvector here.)
inline Doubles widen(HalfFloats v) { return _mm512_cvtps_pd(reinterpret_cast<__m256>(v)); }
inline Doubles widen(HalfInts v) { return _mm512_cvtepi32_pd(reinterpret_cast<__m256i>(v)); }
inline HalfFloats narrow(Doubles v) {
    return reinterpret_cast<HalfFloats>(_mm512_cvtpd_ps(reinterpret_cast<__m512d>(v)));
}

// The two halves of a vector, and a vector of two halves.
inline HalfFloats lower(Floats v) { return reinterpret_cast<HalfFloats>(_mm512_castps512_ps256(v)); }
inline HalfFloats upper(Floats v) { return reinterpret_cast<HalfFloats>(_mm512_extractf32x8_ps(v, 1)); }
inline HalfInts lower(Ints v) {
    return reinterpret_cast<HalfInts>(_mm512_castsi512_si256(reinterpret_cast<__m512i>(v)));
}
inline HalfInts upper(Ints v) {
    return reinterpret_cast<HalfInts>(_mm512_extracti32x8_epi32(reinterpret_cast<__m512i>(v), 1));
}
inline Floats join(HalfFloats low, HalfFloats high) { return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1); }

// a where the mask is set, else b.
inline Floats select(Mask m, Floats a, Floats b) { return _mm512_mask_blend_ps(m, b, a); }

// Adds x to v where that half of the mask is set.
template <int HALF>
inline Doubles add_where(Doubles v, Mask m, Doubles x) {
    return _mm512_mask_add_pd(v, static_cast<__mmask8>(m >> (8 * HALF)), v, x);
}

// kFloats entries of an array of which `count` are left, perhaps none; zeros after them.
inline Floats load_some(const float* from, int64_t count) {
    const Mask there = static_cast<Mask>(count >= kFloats ? 0xffff : count <= 0 ? 0 : (1 << count) - 1);
    return _mm512_maskz_loadu_ps(there, from);
}

// Lane l: p[index[l]]. (Without a mask GCC leaves open what the result overwrites, and each waits for the last.)
inline Doubles at(const double* p, HalfInts index) {
    return _mm512_mask_i32gather_pd(_mm512_setzero_pd(), 0xff, reinterpret_cast<__m256i>(index), p, 8);
}
inline Floats at(const float* p, Ints index) {
    return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, reinterpret_cast<__m512i>(index), p, 4);
}

}  // namespace
