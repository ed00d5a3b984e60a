// Vectors of eight floats: AVX2, FMA, F16C. A mask is a vector whose lanes carry their bit in the sign position.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

constexpr int kWidth = 8;
using Floats = __m256;
using Mask = __m256;

inline Floats zero() { return _mm256_setzero_ps(); }
inline Floats broadcast(float value) { return _mm256_set1_ps(value); }
inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Floats v) { _mm256_storeu_ps(p, v); }
inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats mul_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }

inline Mask mask(uint64_t bits) {
    const __m256i to_sign = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
    return _mm256_castsi256_ps(_mm256_sllv_epi32(_mm256_set1_epi32(static_cast<int>(bits)), to_sign));
}

inline Floats blend(Mask m, Floats if_clear, Floats if_set) { return _mm256_blendv_ps(if_clear, if_set, m); }

inline Floats negate_if_set(Mask m, Floats v) { return _mm256_xor_ps(v, _mm256_and_ps(m, _mm256_set1_ps(-0.0f))); }

inline float sum(Floats v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

inline Floats load_halves(const unsigned char* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

inline Floats load_bytes(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

inline Floats load_at(const float* p, const int32_t* index) {
    return _mm256_i32gather_ps(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)), 4);
}

inline Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats magnitude(Floats v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }

// The lowest eight bits of every lane.
inline void store_low_bytes(int8_t* p, Floats v) {
    const __m256i low = _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0xff));
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
}

using Words = __m256i;

inline Words load_words(const uint32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Words shift_left_2(Words w) { return _mm256_slli_epi32(w, 2); }
inline Words shift_right(Words w, int bits) { return _mm256_srli_epi32(w, bits); }

inline Words select_bits(uint32_t m, Words if_set, Words if_clear) {
    const __m256i lanes = _mm256_set1_epi32(static_cast<int>(m));
    return _mm256_or_si256(_mm256_and_si256(lanes, if_set), _mm256_andnot_si256(lanes, if_clear));
}

// out[i * step + r] = word i of the four at from[r] + at, for kWidth lines r.
inline void turn_four_words(const unsigned char* const* from, int64_t at, int64_t step, uint32_t* out) {
    const auto rows = [&](int r) {  // lines r and r + 4
        const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from[r] + at));
        const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from[r + 4] + at));
        return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    };
    const __m256i a = rows(0), b = rows(1), c = rows(2), d = rows(3);
    const __m256i ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
    const __m256i ab2 = _mm256_unpackhi_epi32(a, b), cd2 = _mm256_unpackhi_epi32(c, d);
    const auto put = [&](int i, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i * step), v); };
    put(0, _mm256_unpacklo_epi64(ab, cd));
    put(1, _mm256_unpackhi_epi64(ab, cd));
    put(2, _mm256_unpacklo_epi64(ab2, cd2));
    put(3, _mm256_unpackhi_epi64(ab2, cd2));
}

// The half in the low 16 bits of every lane.
inline Floats low_halves(Words w) {
    const __m256i low = _mm256_and_si256(w, _mm256_set1_epi32(0xffff));
    return _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1)));
}

// Sixteen floats; `at` reads, in every lane, the one that the lane's lowest four bits name.
struct Table {
    __m256 low, high;
    explicit Table(const float* p) : low(load(p)), high(load(p + 8)) {}
    Floats at(Words w) const {
        const __m256 in_high = _mm256_castsi256_ps(_mm256_slli_epi32(w, 28));
        return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, w), _mm256_permutevar8x32_ps(high, w), in_high);
    }
};

}  // namespace
