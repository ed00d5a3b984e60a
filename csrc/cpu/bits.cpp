#include "arb/bits.h"

#include "arb/packed.h"

namespace arb {

int64_t words_for(int64_t length) { return (length + kWordBits - 1) / kWordBits * (kWordBits / 32); }

void pack_bits(const uint8_t* bits, int64_t rows, int64_t length, uint32_t* words) {
    const int64_t width = words_for(length);
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t w = 0; w < width; ++w) {
            uint32_t word = 0;
            for (int64_t i = 0; i < 32 && w * 32 + i < length; ++i) {
                word |= static_cast<uint32_t>(bits[r * length + w * 32 + i] != 0) << i;
            }
            words[r * width + w] = word;
        }
    }
}

void unpack_bits(const uint32_t* words, int64_t rows, int64_t length, uint8_t* bits) {
    const int64_t width = words_for(length);
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < length; ++i) {
            bits[r * length + i] = words[r * width + i / 32] >> (i % 32) & 1;
        }
    }
}

}  // namespace arb
