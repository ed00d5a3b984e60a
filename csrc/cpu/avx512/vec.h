// Vectors of sixteen floats: AVX-512 F, BW, DQ, VL. Masks live in mask registers.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

constexpr int kWidth = 16;
using Floats = __m512;
using Mask = __mmask16;

inline Floats zero() { return _mm512_setzero_ps(); }
inline Floats broadcast(float value) { return _mm512_set1_ps(value); }
inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats mul_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }

inline Mask mask(uint64_t bits) {
    // Keeps the shifts that led here in general registers: on mask registers they would take the blends' port.
    uint32_t low = static_cast<uint32_t>(bits);
    __asm__("" : "+r"(low));
    return static_cast<Mask>(low);
}

inline Floats blend(Mask m, Floats if_clear, Floats if_set) { return _mm512_mask_blend_ps(m, if_clear, if_set); }

inline Floats negate_if_set(Mask m, Floats v) { return _mm512_mask_xor_ps(v, m, v, _mm512_set1_ps(-0.0f)); }

inline float sum(Floats v) { return _mm512_reduce_add_ps(v); }

inline Floats load_halves(const unsigned char* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

inline Floats load_bytes(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

inline Floats load_at(const float* p, const int32_t* index) {
    return _mm512_i32gather_ps(_mm512_loadu_si512(index), p, 4);
}

inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats magnitude(Floats v) { return _mm512_abs_ps(v); }

// The lowest eight bits of every lane.
inline void store_low_bytes(int8_t* p, Floats v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_castps_si512(v)));
}

using Words = __m512i;

inline Words load_words(const uint32_t* p) { return _mm512_loadu_si512(p); }
inline Words shift_left_2(Words w) { return _mm512_slli_epi32(w, 2); }
inline Words shift_right(Words w, int bits) { return _mm512_srli_epi32(w, static_cast<unsigned>(bits)); }

inline Words select_bits(uint32_t m, Words if_set, Words if_clear) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi32(static_cast<int>(m)), if_set, if_clear, 0xca);
}

// out[i * step + r] = word i of the four at from[r] + at, for kWidth lines r.
inline void turn_four_words(const unsigned char* const* from, int64_t at, int64_t step, uint32_t* out) {
    const auto rows = [&](int r) {  // lines r, r + 4, r + 8 and r + 12
        const auto line = [&](int i) {
            return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from[r + 4 * i] + at));
        };
        const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(line(0)), line(1), 1);
        const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(line(2)), line(3), 1);
        return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    };
    const __m512i a = rows(0), b = rows(1), c = rows(2), d = rows(3);
    const __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
    const __m512i ab2 = _mm512_unpackhi_epi32(a, b), cd2 = _mm512_unpackhi_epi32(c, d);
    _mm512_storeu_si512(out, _mm512_unpacklo_epi64(ab, cd));
    _mm512_storeu_si512(out + step, _mm512_unpackhi_epi64(ab, cd));
    _mm512_storeu_si512(out + 2 * step, _mm512_unpacklo_epi64(ab2, cd2));
    _mm512_storeu_si512(out + 3 * step, _mm512_unpackhi_epi64(ab2, cd2));
}

// The half in the low 16 bits of every lane.
inline Floats low_halves(Words w) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(w)); }

// Sixteen floats; `at` reads, in every lane, the one that the lane's lowest four bits name.
struct Table {
    __m512 values;
    explicit Table(const float* p) : values(load(p)) {}
    Floats at(Words w) const { return _mm512_permutexvar_ps(w, values); }
};

}  // namespace
