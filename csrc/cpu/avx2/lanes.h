// Vectors of eight floats and of four doubles: AVX2. Operators are the compiler's.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

constexpr int64_t kFloats = 8;
using Floats = float __attribute__((vector_size(32)));
using Ints = int32_t __attribute__((vector_size(32)));
using Doubles = double __attribute__((vector_size(32)));  // half as many
using HalfFloats = float __attribute__((vector_size(16)));
using HalfInts = int32_t __attribute__((vector_size(16)));

using Mask = Ints;
inline Mask below(Floats v, Floats x) { return v < x; }
inline Mask equal(Floats v, Floats x) { return v == x; }
inline bool any(Mask m) { return _mm256_movemask_ps(reinterpret_cast<__m256>(m)) != 0; }
inline bool all(Mask m) { return _mm256_movemask_ps(reinterpret_cast<__m256>(m)) == 0xff; }
inline Ints add_one(Ints counts, Mask m) { return counts - m; }

// Conversions.
inline Doubles widen(HalfFloats v) { return _mm256_cvtps_pd(reinterpret_cast<__m128>(v)); }
inline Doubles widen(HalfInts v) { return _mm256_cvtepi32_pd(reinterpret_cast<__m128i>(v)); }
inline HalfFloats narrow(Doubles v) {
    return reinterpret_cast<HalfFloats>(_mm256_cvtpd_ps(reinterpret_cast<__m256d>(v)));
}

// The two halves of a vector, and a vector of two halves.
inline HalfFloats lower(Floats v) { return _mm256_castps256_ps128(v); }
inline HalfFloats upper(Floats v) { return _mm256_extractf128_ps(v, 1); }
inline HalfInts lower(Ints v) {
    return reinterpret_cast<HalfInts>(_mm256_castsi256_si128(reinterpret_cast<__m256i>(v)));
}
inline HalfInts upper(Ints v) {
    return reinterpret_cast<HalfInts>(_mm256_extracti128_si256(reinterpret_cast<__m256i>(v), 1));
}
inline Floats join(HalfFloats low, HalfFloats high) { return _mm256_set_m128(high, low); }

// a where the mask is set, else b.
inline Floats select(Mask m, Floats a, Floats b) { return m ? a : b; }

// Adds x to v where that half of the mask is set.
template <int HALF>
inline Doubles add_where(Doubles v, Mask m, Doubles x) {
    const __m128i half = reinterpret_cast<__m128i>(HALF == 0 ? lower(m) : upper(m));
    const __m256d mask = _mm256_castsi256_pd(_mm256_cvtepi32_epi64(half));
    return v + reinterpret_cast<Doubles>(_mm256_and_pd(x, mask));
}

// kFloats entries of an array of which `count` are left, perhaps none; zeros after them.
inline Floats load_some(const float* from, int64_t count) {
    if (count >= kFloats) return _mm256_loadu_ps(from);
    const __m256i numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(from, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(count)), numbers));
}

// Lane l: p[index[l]].
inline Doubles at(const double* p, HalfInts index) {
    return _mm256_i32gather_pd(p, reinterpret_cast<__m128i>(index), 8);
}
inline Floats at(const float* p, Ints index) { return _mm256_i32gather_ps(p, reinterpret_cast<__m256i>(index), 4); }

}  // namespace
