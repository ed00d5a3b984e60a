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
inline bool any(Mask m) { return _mm256_movemask_ps(reinterpret_cast<__m256>(m)) != 0; }
inline bool all(Mask m) { return _mm256_movemask_ps(reinterpret_cast<__m256>(m)) == 0xff; }
inline Ints add_one(Ints counts, Mask m) { return counts - m; }

// Lane l: p[index[l]].
inline Doubles at(const double* p, HalfInts index) {
    return _mm256_i32gather_pd(p, reinterpret_cast<__m128i>(index), 8);
}

}  // namespace
