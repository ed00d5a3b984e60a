// Multiplication by sums of units of columns (docs/cpu-kernels.md): the plan of a weight, and what every instruction
// set implements. Plain data only (see arb/packed.h).
//
// A unit is up to 128 consecutive columns of a block in storage order. Of every 16 units those of one block share the
// salient columns that lie in them, which come first and would else all belong to the first units. They are dealt in
// order: as many to each, the lowest multiple of 8 that is enough for all, until none is left.
// A unit's kinds are those of the row scales: a plane, salient or other columns, a group; and one for the mean of every
// zone. For a row of x, a unit u and a kind k, every column's v = x_j times its column scale (1 for means) becomes a
// whole number X = v / t, rounded, of one digit (int8: the largest |X| is 127), two (x of 16 bits: 127 * 257) or three
// (x of 32 bits: t a power of two, |X| < 2^22). Then
//     S = sum of +-X over those of the unit's columns (of salient kinds: of those dealt to it) that are of the kind in
//         this row, of X for means: an exact integer
//     lane l of the row = fma(float(S), R t, lane l of the row), units with l = 4 (u % 4) + u / 4 % 4 and their kinds
//                         ascending; R is the row scale or the mean
//     y_i = (sum of the 16 lanes: l + (l + 8), then 4, 2 and 1 apart) * p * 2^exponent * row base, in double
// where x was divided by a power of two p that makes the largest |x| less than 4. This fixes every bit of the result on
// every instruction set. A v is off by at most t / 2: with two digits 1 / 65278 of the largest of its unit and kind,
// with three 2^-22.
#pragma once

#include "arb/packed.h"

namespace arb {

constexpr int64_t kUnit = 128;         // 16 bytes of a plane
constexpr int64_t kDealtUnits = 16;    // that share salient columns, if they are of one block
constexpr int64_t kSumsMinBlock = 64;  // narrower blocks would leave most of a unit empty
constexpr int64_t kSumsSpare = 448;    // bytes that may be read past the end of a row
constexpr int64_t kSumsTile = 2;       // rows of x that share the unpacking of the bits
constexpr int64_t kSumsPanel = 16;     // rows of the weight that take turns with a part of x too long for the cache
constexpr int64_t kSumsLines = 6;      // of working memory for a row of the weight
constexpr int64_t kMaxKinds = 20;      // 12 row scales, 8 means

struct SumsUnit {
    int64_t first;    // storage position
    int64_t columns;  // 0: there is no such unit, the part is not full
    int64_t salient;  // the first so many, which its other kinds leave out
    int64_t dealt;    // salient columns dealt to it,
    int64_t from;     // the storage position of the first of these,
    int64_t second;   // and how many there are before them in all blocks
};

// Where the bits of 16 units are. In the second plane, within 64 bytes: of each unit the four bytes that hold them, and
// for every byte of the result where its bits begin in the two units that share eight bytes. In the first: of each unit
// the four bytes of the 64 of its quarter, units 4 n to 4 n + 3.
struct BitPicks {
    uint8_t byte[64];
    uint8_t bit[64];
    uint8_t first[64];
};

// A slice is the n-th 4 SumsPart::width columns that each unit of a part was dealt. `bytes` and `bits` [lanes] say
// where a unit's part of the first planes and of the second begins in a row; `wide`: some take more than 25 bits of the
// second. `near`: a part has 16 units, no bits are wide, and all lie in the 64 bytes from byte `byte` of the row on;
// `near_first`: a part has 16 units, and bits of every quarter lie in the 64 bytes from byte `quarter` on. `picks` is
// of these bytes.
struct SumsSlice {
    const int32_t* bytes;
    const int32_t* bits;
    bool wide, near, near_first;
    int64_t byte;
    int64_t quarter[4];
    const BitPicks* picks;
};

// Four vectors of plane bytes: `lanes` units. The n-th unit of a part has lane n % (lanes / 4) * 4 + n / (lanes / 4) of
// the sums.
struct SumsPart {
    const SumsSlice* slice;
    int64_t slices;  // that hold salient columns
    int64_t width;   // columns in every byte of these: 2, 4, 6 or 8, as few as there are salient ones
    int64_t steps;   // vectors that hold columns
    int64_t line;    // the first of a prepared row
    int64_t block;   // of the first unit
};

// What is summed up at once: a kind, or for means (which come last) the last of their kinds; all groups' means share x.
// x is multiplied by line `line` of col_scale (plane 1), of col_scale2 (2), or by nothing (0).
struct SumsTerm {
    int64_t kind, plane, line;
};

// The other columns, the salient ones in the first plane, and in the second.
struct SumsPass {
    bool salient;
    int64_t terms;
    SumsTerm term[5];
};

struct SumsJob {
    const PackedView* weight;
    const int32_t* order;   // as in Job
    const SumsUnit* units;  // [parts, lanes]
    const SumsPart* part;
    int64_t parts;
    SumsPass pass[3];
    int64_t passes;
    int64_t blocks;
    int64_t words;               // 64-bit words per row of a plane
    int64_t salient_columns;     // C
    int64_t scales;              // row scales per row and block
    int64_t means;               // means per row and block
    bool two_planes;             // salient columns have a second sign
    int64_t in_place;            // rows of the weight, the first ones, behind which kSumsSpare bytes may be read
    int64_t block_units;         // units of a block; kDealtUnits where there is one: all are of block 0
    bool aligned;                // units lie at multiples of 16 bytes
    bool even;                   // all parts of 16 units begin with a block, or lie in one
    const int32_t* scale_index;  // [parts, lanes], of the first row scale of the unit's block
    const int32_t* mean_index;   // and mean
    int64_t lines;               // of a prepared row
    int64_t x_bytes;             // so many of digits fit the first-level cache beside the planes
    int64_t room;                // bytes of a line of working memory, of which multiply needs kSumsLines kSumsPanel
    float factor;                // 2^exponent
};

// Two numbers for every sum of a part, from the halves of its units, up to 12 each (<isa>/bytes.h, pick_halves). An
// even count lies in pieces of four bytes:
//     2, 4    piece `pair` of the first 128 bytes
//     6       then piece `late`: of those so picked, or from 16 on of the 64 bytes that follow
//     8, 12   piece `pair` of the first, second or third 128 bytes, each for the lanes that `lanes` names
// and then halves `half` of what was picked. Of 1 and 3 there are halves `half` of 128 bytes.
struct HalfPick {
    alignas(64) uint32_t pair[16];
    uint32_t late[16];
    uint16_t half[32];
    uint16_t lanes[3];
};

// One row of x, prepared; the next lies behind it. A line is what one term needs for one step, a vector of plane bytes:
// [digits, 8, bytes of a vector]. The passes of a part lie behind one another, [steps, terms] lines each: 4 steps, or a
// step for every slice. `starts`, what is added to the sums, has [digits, lanes] for every line; where steps share
// their sums (sum_turned), those of the first.
struct SumsRow {
    int8_t* digits;
    int32_t* starts;
    float* units;     // t [parts, kinds, lanes]
    int32_t* totals;  // with means: of all X [parts, others and salient columns, lanes]
    double unit;      // p
};

struct SumsKernels {
    int64_t lanes;  // 32-bit sums in a vector

    // x [m] in column order -> values [m + kUnit] in storage order, divided by p, which is returned. If x is not
    // finite, zeros, and 0.
    double (*gather)(const PackedView& weight, const int32_t* order, const float* x, float* values);

    // Part `part` of a prepared row, from these values. Parts may be prepared at the same time.
    void (*prepare)(const SumsJob& job, int64_t part, const float* values, int64_t number, SumsRow& row);

    // y[t][i] for rows begin..end-1 of the weight and t < tile, which is 1 or kSumsTile.
    void (*multiply)(const SumsJob& job, const SumsRow* x, int64_t tile, int64_t number, int64_t begin, int64_t end,
                     unsigned char* scratch, float* const* y);
};

extern const SumsKernels scalar_sums;
#if defined(__x86_64__)
extern const SumsKernels avx2_sums;
extern const SumsKernels avxvnni_sums;
extern const SumsKernels avx512_sums;
extern const SumsKernels avx512vnni_sums;
extern const SumsKernels avx512vbmi_sums;
#elif defined(__aarch64__)
extern const SumsKernels neon_sums;
extern const SumsKernels neondot_sums;
#endif

}  // namespace arb
