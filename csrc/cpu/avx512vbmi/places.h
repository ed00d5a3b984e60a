// Lookups for tiles.inc, sixteen rows at a time.
#pragma once

#include "dot.h"

namespace {

// Tables of 16 numbers, one for each of four bytes.
using Places = __m512i;
inline Places load_places(const void* p) { return _mm512_load_si512(p); }
inline Bytes look_up_places(Places table, Bytes numbers) { return _mm512_permutexvar_epi8(numbers, table); }

// What is looked up for the low nibble of every byte.
struct PlaceNumbers {
    Bytes nibble = keep_register(fill_bytes(15));
    Bytes place = keep_register(_mm512_set1_epi32(0x30201000));
    Bytes operator()(Bytes v) const { return _mm512_ternarylogic_epi32(v, nibble, place, 0xea); }  // (v & nibble) | place
};

inline Ints keep_sums(Ints v) { return keep_register(v); }
inline Ints add_unsigned(Ints sums, Bytes v) { return _mm512_dpbusd_epi32(sums, v, fill_bytes(1)); }
inline Ints add_signed(Ints sums, Bytes v) { return _mm512_dpbusd_epi32(sums, fill_bytes(1), v); }

inline Lanes load_half_lanes(const unsigned char* p) { return load_halves(p); }
inline Lanes fill_lanes(float value) { return broadcast(value); }
inline void store_lanes(float* p, Lanes v) { store(p, v); }

// One byte of every whole number.
inline void store_byte_of(int8_t* p, Floats whole, int shift) {
    const __m512i bits = _mm512_srl_epi32(_mm512_cvtps_epi32(whole), _mm_cvtsi32_si128(shift));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(bits));
}

}  // namespace
