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
inline bool any(Mask m) { return m != 0; }
inline bool all(Mask m) { return m == 0xffff; }
inline Ints add_one(Ints counts, Mask m) {
    const __m512i v = reinterpret_cast<__m512i>(counts);
    return reinterpret_cast<Ints>(_mm512_mask_add_epi32(v, m, v, _mm512_set1_epi32(1)));
}

// Lane l: p[index[l]].
inline Doubles at(const double* p, HalfInts index) {
    return _mm512_i32gather_pd(reinterpret_cast<__m256i>(index), p, 8);
}

}  // namespace
