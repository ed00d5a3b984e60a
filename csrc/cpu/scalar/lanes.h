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
inline bool any(Mask m) { return (m[0] | m[1] | m[2] | m[3]) != 0; }
inline bool all(Mask m) { return (m[0] & m[1] & m[2] & m[3]) != 0; }
inline Ints add_one(Ints counts, Mask m) { return counts - m; }

// Lane l: p[index[l]].
inline Doubles at(const double* p, HalfInts index) { return Doubles{p[index[0]], p[index[1]]}; }

}  // namespace
