// Vectors of four floats and of two doubles, which every 64-bit processor has; operators are the compiler's.
#pragma once

#include <cstdint>

namespace {

constexpr int64_t kFloats = 4;
using Floats = float __attribute__((vector_size(16)));
using Ints = int32_t __attribute__((vector_size(16)));
using Doubles = double __attribute__((vector_size(16)));  // half as many
using HalfFloats = float __attribute__((vector_size(8)));
using HalfInts = int32_t __attribute__((vector_size(8)));

// Comparisons, lane by lane.
using Mask = Ints;
inline Mask below(Floats v, Floats x) { return v < x; }
inline Mask equal(Floats v, Floats x) { return v == x; }
inline bool any(Mask m) { return (m[0] | m[1] | m[2] | m[3]) != 0; }
inline bool all(Mask m) { return (m[0] & m[1] & m[2] & m[3]) != 0; }
inline Ints add_one(Ints counts, Mask m) { return counts - m; }

// Conversions.
inline Doubles widen(HalfFloats v) { return __builtin_convertvector(v, Doubles); }
inline Doubles widen(HalfInts v) { return __builtin_convertvector(v, Doubles); }
inline HalfFloats narrow(Doubles v) { return __builtin_convertvector(v, HalfFloats); }

// The two halves of a vector, and a vector of two halves.
inline HalfFloats lower(Floats v) { return HalfFloats{v[0], v[1]}; }
inline HalfFloats upper(Floats v) { return HalfFloats{v[2], v[3]}; }
inline HalfInts lower(Ints v) { return HalfInts{v[0], v[1]}; }
inline HalfInts upper(Ints v) { return HalfInts{v[2], v[3]}; }
inline Floats join(HalfFloats low, HalfFloats high) { return Floats{low[0], low[1], high[0], high[1]}; }

// a where the mask is set, else b.
inline Floats select(Mask m, Floats a, Floats b) { return m ? a : b; }

// Adds x to v where that half of the mask is set.
template <int HALF>
inline Doubles add_where(Doubles v, Mask m, Doubles x) {
    return Doubles{m[2 * HALF] != 0 ? v[0] + x[0] : v[0], m[2 * HALF + 1] != 0 ? v[1] + x[1] : v[1]};
}

// kFloats entries of an array of which `count` are left, perhaps none; zeros after them.
inline Floats load_some(const float* from, int64_t count) {
    Floats some{};
    for (int64_t i = 0; i < kFloats && i < count; ++i) some[i] = from[i];
    return some;
}

// Lane l: p[index[l]].
inline Doubles at(const double* p, HalfInts index) { return Doubles{p[index[0]], p[index[1]]}; }
inline Floats at(const float* p, Ints index) { return Floats{p[index[0]], p[index[1]], p[index[2]], p[index[3]]}; }

}  // namespace
