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

inline void store_halves(uint16_t* p, Floats v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

inline Floats load_bytes(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

// Where GCC knows that every lane is read it lets a gather begin with an old register, and wait for that register.
inline Floats load_at(const float* p, const int32_t* index) {
    __mmask16 all = 0xffff;
    asm("" : "+Yk"(all));
    return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), all, _mm512_loadu_si512(index), p, 4);
}

inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats magnitude(Floats v) { return _mm512_abs_ps(v); }
inline float largest_lane(Floats v) { return _mm512_reduce_max_ps(v); }

// The lowest eight bits of every lane.
inline void store_low_bytes(int8_t* p, Floats v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_castps_si512(v)));
}

}  // namespace
