// Sums of four products each, without VNNI: |u| and |s| are at most 127, so pairs of products fit 16 bits.
#pragma once

#include "bytes.h"

namespace {

inline Ints dot(Ints sums, Bytes u, Bytes s) {
    const __m512i pairs = _mm512_maddubs_epi16(u, s);
    return _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}

}  // namespace
