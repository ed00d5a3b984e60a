// Multiplication in whole numbers, a line of a plane at a time (docs/cpu-kernels.md): the plan of a weight, and what
// every instruction set implements. Plain data only (see arb/packed.h).
//
// It serves weights whose row scales are whole numbers u and whose columns have at most one scale c (what arb-levels
// makes), in blocks that are wide or single. For a row of x and block b, every x_j c_j becomes a whole number X = x_j
// c_j / t_b, rounded, of one digit (int8: the largest |X| is 127), two (bf16: X = d1 2^8 + d0, digits -128 ..
// 127, the largest |X| is 127 * 257) or three (else: t_b a power of two, |X| < 2^22). Then
//     total of the block = sum of u X over its columns, both planes: an exact integer
//     y_i = float(e_i * sum of total_b t_b, in double, blocks ascending)
// which fixes every bit of the result on every instruction set, whatever order the integers are added in. An x_j c_j is
// off by at most t_b / 2: with two digits 1 / 65278 of the largest of its block, with three 2^-22.
#pragma once

#include "arb/packed.h"

namespace arb {

constexpr int64_t kLineMinBlock = 512;  // narrower blocks would leave most of a line empty
constexpr int64_t kLineSpare = 160;     // bytes that may be read past the end of a row
constexpr int64_t kMaxDigits = 3;
constexpr int64_t kLinePanel = 32;     // rows of the weight that meet a part of x in turn; a multiple of four
constexpr int64_t kLineTile = 8;       // most rows of x that share the unpacking of the bits, of one digit
constexpr int64_t kExactLineTile = 4;  // and of two or three: no fewer lines of digits in all

// A step takes the columns of one vector of plane bytes; the last of a block may be partly empty. Salient columns come
// first in their block, so one step at most is *mixed*: it holds columns of both kinds.
struct LineBlock {
    int64_t first;          // first column
    int64_t byte;           // of a plane, where it stands
    int64_t salient;        // salient columns
    int64_t columns;        // all columns
    int64_t second;         // salient columns of the blocks before
    int64_t salient_steps;  // from `byte` on
    int64_t mixed_steps;    // 0 or 1, after these
    int64_t other_steps;    // after it
    const uint8_t* mask;    // of a mixed step, [8, bytes of a vector]: 255 at salient columns, 0 at others
};

struct LineJob {
    const PackedView* weight;
    const int32_t* order;  // as in Job
    const LineBlock* list;
    int64_t blocks;
    int64_t words;            // 64-bit words per row of a plane
    int64_t salient_columns;  // C
    int64_t scales;           // row scales per row and block
    bool two_planes;          // salient columns have a second sign
    int64_t line;             // bytes of a prepared row per digit, some of them unused
    int64_t widest;           // columns of the widest block, in whole steps
    int64_t in_place;         // rows of the weight, the first ones, behind which kLineSpare bytes may be read
    int64_t x_bytes;          // so many of digits fit the first-level cache beside the planes
    bool roomy;               // it has room for what is asked for ahead too (arb/cpu.h)
    int64_t row_copies;       // bytes of working memory for the parts of one row of the weight
    int64_t scratch;          // these, and after them the sums of four rows: all that multiply needs
    float factor;             // 2^exponent
    // Of salient columns' first plane, their second plane and other columns: for the codes in a nibble (sign of its
    // first column, of its second, group of the first, of the second) and for either column the number of its row
    // scale among those of the block, 8 more for minus. Repeated for tables of six bits.
    alignas(64) uint8_t picks[3][2][64];
    // For six bits, these codes and the second signs of both columns: of either, sign + 2 second + 4 group,
    uint8_t joined_picks[2][64];
    // and for that the number of a salient column's row scale in its first plane and in its second.
    uint8_t joined[2][16];
    int64_t last_pair;  // where the row scales of the last salient group stand among those of the block
    bool joins;         // levels_join for almost all rows and blocks: elsewhere asking costs more than it saves
};

// Whether the two row scales of a salient column add up to at most 127, in every group. Both planes together are then
// one level, u first +- u second, which instruction sets with tables of six bits look up and multiply once. (Static:
// units of different instruction sets must not share it.)
static inline bool levels_join(const LineJob& job, const uint8_t* scales) {
    return scales[0] + scales[1] <= 127 && scales[job.last_pair] + scales[job.last_pair + 1] <= 127;
}

// One row of x, prepared. `digits` is [steps, number of digits, 8, bytes of a vector], most significant first; column
// 8 i + b of a step stands at b * bytes of a vector + i. `starts` is [number of digits, blocks, 2,
// lanes]: what the sums begin with, and what more where the planes of salient columns are multiplied apart.
struct LineRow {
    const int8_t* digits;
    const int32_t* starts;
    const double* units;  // t [blocks]
};

struct LineKernels {
    int64_t bytes;  // of a vector
    int64_t lanes;  // 32-bit sums in a vector

    // x [m] in column order -> block `block` of a prepared row. `values` is working memory of `widest` floats. Returns
    // whether x was finite; if not, it prepares zeros. Blocks may be prepared at the same time.
    bool (*prepare)(const LineJob& job, int64_t block, const float* x, int64_t number, float* values, int8_t* digits,
                    int32_t* starts, double* units);

    // y[t][i] for rows begin..end-1 of the weight and t < tile, a power of two up to kLineTile if number
    // is 1, up to kExactLineTile if it is more.
    void (*multiply)(const LineJob& job, const LineRow* x, int64_t tile, int64_t number, int64_t begin, int64_t end,
                     unsigned char* scratch, float* const* y);
};

extern const LineKernels scalar_line;
#if defined(__x86_64__)
extern const LineKernels avx2_line;
extern const LineKernels avxvnni_line;
extern const LineKernels avx512_line;
extern const LineKernels avx512vnni_line;
extern const LineKernels avx512vbmi_line;
#elif defined(__aarch64__)
extern const LineKernels neon_line;
extern const LineKernels neondot_line;
#endif

}  // namespace arb
