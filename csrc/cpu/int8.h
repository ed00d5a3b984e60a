// Multiplication with activations rounded to int8 (docs/cpu-kernels.md): the plan of a weight, and what every
// instruction set implements. Plain data only (see arb/packed.h).
//
// For a row of x, block b and column j, q = round(x_j * c / t_b) with one float t_b for the block, such that the
// largest |q| is 127; c is the column scale of the weight's group and plane. The row scales of row i of the weight are
// whole numbers u times one float e_i. Then
//     lane l of the block = sum of sign * u * q over columns 4l .. 4l+3 of every 64, both planes: an exact integer
//     lane l of the row   = fma(float(lane l of the block), t_b, lane l of the row), blocks ascending
//     y_i                 = (sum of the 16 lanes: l + (l + 8), then 4, 2 and 1 apart) * e_i
// which fixes every bit of the result on every instruction set.
#pragma once

#include "arb/packed.h"

namespace arb {

constexpr int64_t kWordColumns = 64;     // columns of one step through a block: a word of a plane
constexpr int64_t kTableBytes = 16;      // what a lookup reads: the u of a row and block, and whatever follows
constexpr int64_t kInt8MaxBlock = 8192;  // the largest k whose sums surely fit 32 bits
constexpr int64_t kInt8Tile = 4;         // rows of x that share the unpacking of the bits
constexpr int64_t kInt8Rows = 4;         // most rows of the weight worked on at once

struct Int8Block {
    int64_t words;          // of 64 columns; the last may be partly empty
    int64_t salient_words;  // the first so many hold salient columns
    int64_t salient;        // salient columns
    int64_t second;         // salient columns of the blocks before
};

// A prepared row of x holds -q, word by word: `copies` vectors of 64 columns, and in words with salient columns of a
// weight with two planes `copies` vectors more for the second plane. Lanes without a column are zero.
struct Int8Job {
    const PackedView* weight;
    const int32_t* order;  // as in Job
    const Int8Block* list;
    int64_t blocks;
    int64_t words;            // words per row of a plane
    int64_t salient_columns;  // C
    int64_t steps;            // row scales per row and block
    int64_t copies;           // 2 where each group has column scales of its own, else 1
    bool grouped;             // there is a group plane
    bool two_planes;          // salient columns have a second sign
    const uint8_t* kinds;     // [salient words, 2, 64]: the step of each column if it is of group 0 and if of group 1
    int64_t line;             // bytes of a prepared row
    int64_t widest;           // columns of the largest block, in whole words
    int64_t scratch;          // bytes of working memory that multiply needs
    float factor;             // 2^exponent
};

struct Int8Kernels {
    // x [m] in column order -> line [job.line] and scales t [job.blocks]. `values` is working memory of 4 * widest
    // floats.
    void (*prepare)(const Int8Job& job, const float* x, float* values, int8_t* line, float* scales);

    // y[t][i] for rows begin..end-1 of the weight and t < tile, which is 1 or kInt8Tile. Prepared rows and their scales
    // follow one another.
    void (*multiply)(const Int8Job& job, const int8_t* lines, const float* scales, int64_t tile, int64_t begin,
                     int64_t end, unsigned char* scratch, float* const* y);
};

extern const Int8Kernels scalar_int8;
#if defined(__x86_64__)
extern const Int8Kernels avx2_int8;
extern const Int8Kernels avx512_int8;
extern const Int8Kernels avx512vnni_int8;
#elif defined(__aarch64__)
extern const Int8Kernels neon_int8;
extern const Int8Kernels neondot_int8;
#endif

}  // namespace arb
