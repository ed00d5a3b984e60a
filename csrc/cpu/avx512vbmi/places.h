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
    // (v & nibble) | place
    Bytes operator()(Bytes v) const { return _mm512_ternarylogic_epi32(v, nibble, place, 0xea); }
};

inline Ints keep_sums(Ints v) { return keep_register(v); }
inline Ints add_unsigned(Ints sums, Bytes v) { return _mm512_dpbusd_epi32(sums, v, fill_bytes(1)); }
inline Ints add_signed(Ints sums, Bytes v) { return _mm512_dpbusd_epi32(sums, fill_bytes(1), v); }

// The tables of nibbles of four bytes with CODES codes each: what their whole numbers add up to, [DIGITS, 4, 16] bytes,
// of which bits `plus` and `minus` name those that count. Code c of byte j has number 4 c + j.
template <int CODES, int DIGITS>
class MakePlaces {
  public:
    MakePlaces(const uint16_t* plus, const uint16_t* minus) {
        for (int c = 0; c < CODES; ++c) {
            const __m512 one = broadcast(1.0f);
            sign_[c] = _mm512_mask_sub_ps(_mm512_maskz_mov_ps(plus[c], one), minus[c], zero(), one);
        }
    }

    void operator()(const float* whole, int8_t* tables) const {
        __m512i sum[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            __m512 own = _mm512_mul_ps(sign_[0], broadcast(whole[j]));
#pragma GCC unroll 4
            for (int c = 1; c < CODES; ++c) own = _mm512_fmadd_ps(sign_[c], broadcast(whole[4 * c + j]), own);
            sum[j] = _mm512_cvtps_epi32(own);
        }
        // Digits 0 and 1 of two vectors, then digit 2 of them.
        static constexpr DigitBytes kDigit;
        const __m512i at = load_columns(kDigit.at);
        const __m512i low = _mm512_permutex2var_epi8(sum[0], at, sum[1]);
        const __m512i high = _mm512_permutex2var_epi8(sum[2], at, sum[3]);
        _mm512_store_si512(tables, _mm512_shuffle_i64x2(low, high, 0x44));
        if (DIGITS > 1) _mm512_store_si512(tables + 64, _mm512_shuffle_i64x2(low, high, 0xee));
        if (DIGITS > 2) {
            const __m512i last = _mm512_add_epi8(at, fill_bytes(2));
            const __m512i third = _mm512_permutex2var_epi8(sum[0], last, sum[1]);
            const __m512i other = _mm512_permutex2var_epi8(sum[2], last, sum[3]);
            _mm512_store_si512(tables + 128, _mm512_shuffle_i64x2(third, other, 0x44));
        }
    }

  private:
    // Where bytes 0 of the 32-bit numbers of two vectors are, and behind them where bytes 1 are.
    struct DigitBytes {
        uint8_t at[64];
        constexpr DigitBytes() : at() {
            for (int i = 0; i < 64; ++i) at[i] = static_cast<uint8_t>(i % 32 * 4 + i / 32);
        }
    };

    __m512 sign_[CODES];
};

}  // namespace
