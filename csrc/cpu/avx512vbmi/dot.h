// VNNI's sums, and tables of 64 bytes: six bits hold the codes of two columns and their second signs, and what is above
// them need not be masked away.
#pragma once

#include "../avx512vnni/level_dot.h"

namespace {

constexpr bool kSixBits = true;
inline Bytes look_up_six(Bytes table, Bytes numbers) { return _mm512_permutexvar_epi8(numbers, table); }
// Numbers from 64 on name bytes of `high`.
inline Bytes look_up_seven(Bytes low, Bytes high, Bytes numbers) {
    return _mm512_permutex2var_epi8(low, numbers, high);
}

}  // namespace
