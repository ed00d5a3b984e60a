// Bit planes: rows of booleans as little-endian words, padded with zero bits to a multiple of 64.
#pragma once

#include <cstdint>

namespace arb {

// Words of 32 bits per row of `length` bits.
int64_t words_for(int64_t length);

// bits: bytes 0 or 1 (any other value counts as 1), [rows, length] -> words [rows, words_for(length)].
void pack_bits(const uint8_t* bits, int64_t rows, int64_t length, uint32_t* words);

// The inverse: writes bytes 0 or 1.
void unpack_bits(const uint32_t* words, int64_t rows, int64_t length, uint8_t* bits);

}  // namespace arb
