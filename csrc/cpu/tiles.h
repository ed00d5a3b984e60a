// Multiplication by a repacked weight (docs/cpu-kernels.md, "In tiles"): the copy, its plan, and what an instruction
// set implements. Plain data only (see arb/packed.h).
//
// The copy. A part is up to 128 consecutive columns of a block in storage order, a tile 32 rows. A column's code is its
// sign and above it the bits of its group, in one, two or four bits (one, two, four groups), and c = 4, 2 or 1 codes
// are a nibble. A step is two nibbles of four bytes of every row of a tile: row r has bytes 4 r to 4 r + 3 of 128, and
// column j of the step stands in byte j % 4 of these, in code j / 4. Nibble n of a part is that of its 4 c columns from
// 4 c n on: four bytes' low nibbles if n is even. The steps of a part and tile lie behind one another, and behind them,
// where salient columns have a second sign, as many steps as hold these: in 64 bytes each, the first 16 rows' second
// signs where the signs of codes are and the others' one bit above, or in 128 as all steps if codes have one bit.
// Behind those of a block's first part are its row scales, and behind them means, [kinds, 32] as they are stored, whole
// numbers as halves. The tiles of a panel, so many or as many as are left, lie in the order in which they are read:
// [parts, tiles].
//
// The product. For a row of x, a part and a term - a kind of row scale or mean - each column's v = x_j times its column
// scale becomes a whole number X = v / t, rounded. Of four bytes of a nibble each names the codes of its columns, so 16
// numbers T say what they add up to: +-X of those of the term's group, X for means. t is such that T has one digit of 8
// bits (int8), two (x of 16 bits) or three (t a power of two). Then
//     S = sum of T over the part's columns (of its salient ones, of the others), an exact integer
//     y_i = fma(float(S), R t, y_i), parts, passes and terms ascending; R is the row scale or mean
//     y_i * p * 2^exponent * row base, in double
// where x was divided by a power of two p that makes the largest |x| less than 4. This fixes every bit of the result.
// A v is off by at most t / 2, where t is 1 / (127 - c / 2), 1 / (32639 - c / 2) or less than 2^-21 of the largest sum
// of |v| in a byte of a nibble.
#pragma once

#include "arb/packed.h"

namespace arb {

constexpr int64_t kTileRows = 32;
constexpr int64_t kTilePart = 128;     // columns of a part
constexpr int64_t kStepBytes = 128;    // of a step and tile
constexpr int64_t kTileTerms = 2;      // that are looked up together
constexpr int64_t kMostTileTerms = 8;  // four groups and their means
constexpr int64_t kPanelTiles = 32;    // of a panel
constexpr int64_t kTileBatch = 8;      // rows of x multiplied at once, at most

// v of a term: x times line `line` of col_scale (plane 1), of col_scale2 (2), or x alone (0). Of each code in a nibble,
// bits name the nibbles for which its X counts: as it is, negated.
struct TilesTerm {
    int64_t kind, plane, line;
    uint16_t plus[4], minus[4];
    unsigned char levels[4][16];  // the same as bytes: 2, 0, or 1 where X does not count
};

// The other columns, the salient ones in the first plane, and in the second.
struct TilesPass {
    bool salient, second;
    int64_t terms;
    TilesTerm term[kMostTileTerms];
};

struct TilesPart {
    int64_t first;  // storage position
    int64_t columns;
    int64_t salient;  // the first so many
    int64_t before;   // salient columns before them in all blocks
    int64_t block;
    int64_t at, bytes;       // of a tile: bytes before its own, and how many these are
    int64_t second, scales;  // where in these the second signs begin, and the row scales
    int64_t lead;            // the first part of its block, which has them
    int64_t from[3], to[3];  // nibbles that each pass looks up
    int64_t table;           // its first table in those of a row of x, of one digit
};

struct TilesJob {
    const PackedView* weight;
    const int32_t* order;  // as in Job
    const unsigned char* copy;
    int64_t tile_bytes;
    const TilesPart* part;
    int64_t parts;
    TilesPass pass[3];
    int64_t passes;
    int64_t tiles;
    int64_t kinds;
    int64_t code_bits;
    int64_t salient_columns;  // C
    bool halves;              // scales are
    int64_t tables;           // of one digit, for all parts
    float factor;             // 2^exponent
    bool roomy;               // the first-level cache has room for what is asked for ahead (arb/cpu.h)
};

// One row of x, prepared. Of a part its passes lie behind one another, of a pass every kTileTerms terms:
// [nibbles, terms, digits, TilesKernels::table_bytes], digits least significant first.
struct TilesRow {
    int8_t* tables;
    float* units;     // t [parts, kinds]
    int32_t* totals;  // of all X [parts, kinds], where lookups need them
    double unit;      // p
};

struct TilesKernels {
    int64_t table_bytes;  // of a nibble, term and digit

    // x [m] in column order -> values [m + kTilePart] in storage order, divided by p, which is returned. If x is not
    // finite, zeros, and 0.
    double (*gather)(const PackedView& weight, const int32_t* order, const float* x, float* values);

    // Part `part` of a prepared row, from these values. Parts may be prepared at the same time.
    void (*prepare)(const TilesJob& job, int64_t part, const float* values, int64_t number, TilesRow& row);

    // y[t][i] for t < count, kTileBatch at most, and rows begin..end-1 of the weight, `begin` a multiple of kTileRows.
    void (*multiply)(const TilesJob& job, const TilesRow* x, int64_t count, int64_t number, int64_t begin, int64_t end,
                     float* const* y);
};

// Where a part of a tile begins.
static inline int64_t tile_offset(const TilesJob& job, const TilesPart& part, int64_t tile) {
    const int64_t in_panel = tile % kPanelTiles, first = tile - in_panel;
    const int64_t count = job.tiles - first < kPanelTiles ? job.tiles - first : kPanelTiles;
    return first * job.tile_bytes + part.at * count + in_panel * part.bytes;
}

extern const TilesKernels scalar_tiles;
#if defined(__x86_64__)
extern const TilesKernels avx2_tiles;
extern const TilesKernels avxvnni_tiles;
extern const TilesKernels avx512_tiles;
extern const TilesKernels avx512vnni_tiles;
extern const TilesKernels avx512vbmi_tiles;
#elif defined(__aarch64__)
extern const TilesKernels neon_tiles;
extern const TilesKernels neondot_tiles;
#endif

}  // namespace arb
