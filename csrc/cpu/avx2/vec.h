// Vectors of eight floats: AVX2, FMA, F16C. A mask is a vector whose lanes carry their bit in the sign position.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

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

inline void store_halves(uint16_t* p, Floats v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

inline Floats load_bytes(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

// Four bytes from each of at(0) .. at(7). Eight loads: a gather takes more than twice as long on Zen 4, and much longer
// on Intel processors whose microcode guards gathers against data sampling.
template <typename At>
inline __m256i collect_words(const At& at) {
    const auto word = [&](int i) {
        int32_t four_bytes;
        std::memcpy(&four_bytes, at(i), 4);
        return _mm_cvtsi32_si128(four_bytes);
    };
    const auto four = [&](int i) {
        const __m128i low = _mm_unpacklo_epi32(word(i), word(i + 1));
        return _mm_unpacklo_epi64(low, _mm_unpacklo_epi32(word(i + 2), word(i + 3)));
    };
    return _mm256_set_m128i(four(4), four(0));
}

inline Floats load_at(const float* p, const int32_t* index) {
    return _mm256_castsi256_ps(collect_words([&](int i) { return p + index[i]; }));
}

inline Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats magnitude(Floats v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
inline float largest_lane(Floats v) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

// The lowest eight bits of every lane.
inline void store_low_bytes(int8_t* p, Floats v) {
    const __m256i low = _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0xff));
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
}

}  // namespace
