// What the solver asks of every instruction set. Plain data only (see arb/packed.h). All instruction sets give the same
// bits.
#pragma once

#include <cstdint>

#include "arb/solver.h"

namespace arb {

constexpr int64_t kLanes = 16;

// kLanes sorted rows: entry i of a lane at values[i * kLanes + lane], the sum of its first i entries at
// sums[i * kLanes + lane]. After a row's last entry stands infinity.
struct SortedTile {
    const float* values;    // [cols + 1, kLanes]
    const double* sums;     // [cols + 1, kLanes]
    const int32_t* counts;  // [kLanes]
    int64_t cols;
    int64_t rows;            // lanes that are rows; those after them hold zeros
    const int32_t* columns;  // [cols, kLanes]: which column each entry is; null where nobody asks
};

// |s| < t is a range of a sorted row: from `first` (just above -t, which is on the high side) to below `last` = t.
// The last one repeats to fill a multiple of kLanes.
struct Thresholds {
    int64_t size;
    const float *first, *last;  // [size]
};

// What judging the splits of a row works in: [thresholds] each.
struct SplitMemory {
    int32_t *event, *first, *last;
    double* gain;
};

// What judging splits by outputs needs besides sorted rows; see output_costs in arb/solver.h.
struct OutputRows {
    int64_t cols, stride;  // stride: a multiple of kLanes * 4
    const float* S;        // [cols, stride]
    const float* z;        // [rows, cols]
};

// What output_costs works in, for one row. Cuts and pairs of them: see trace.inc.
constexpr int kCuts = 4, kCutPairs = 6;
struct OutputMemory {
    SplitMemory split;     // whose gains are costs here
    int32_t* sign_change;  // [2, thresholds]: of the low side and of the high one
    double* fall;          // [kCuts + 1, thresholds]: of the level at each cut and at the end of the row
    double* meet;          // [kCutPairs, thresholds]
    double* alone;         // [3, cols + 1]
    int32_t* order;        // [cols]
    float* sums;           // [cols + 1, stride]
};

// Some rows of a zone that ARB-RC fits. Rows are `stride` long, a multiple of kLanes. With two planes entries that are
// no members are 0 in all arrays, and a plane holds B: +1 or -1. With one there are magnitudes alone: `weight`, -0 for
// what is no member.
struct RankOneRows {
    int64_t rows, stride;
    float *weight, *member;  // [rows, stride]; member: 0 or 1
    float* plane[2];         // [rows, stride]
    float* row[2];           // [rows], the row scales
    const float* col[2];     // [stride], the column scales
    float* sums;             // [2, stride]: numerators and denominators of new column scales, which are added to
};

// Row scales of arb-levels, [levels, count]. With `pairs` the levels are the first of two row scales plus and minus the
// second.
struct LevelRows {
    const float* scale;
    int64_t count;
    int64_t levels;  // 2 or 4
    bool pairs;      // four levels only
};

enum class Turn { start, alternate, planes };

struct SolverKernels {
    // Orders every lane of values [cols, kLanes], and unless null the columns [cols, kLanes] with them, and sums it up.
    void (*sort)(int64_t cols, float* values, int32_t* columns, double* sums);

    // gains[c - 1] [., kLanes]: what the lane's first c of `count` top entries gain as one part, and the others as
    // another; see salient_gains. top: [count, kLanes], count < cols; top_values
    // and top_sums are memory for [count + 1, kLanes].
    void (*salient_gains)(const SortedTile& rows, const float* top, int64_t count, float* top_values, double* top_sums,
                          double* gains);

    // gains[q] += what the q-th threshold gains with `order` planes on both sides.
    void (*split_gains)(const SortedTile& rows, const Thresholds& thresholds, int64_t order, const SplitMemory& memory,
                        double* gains);

    // costs[q] += what the q-th threshold costs by outputs.
    void (*output_costs)(const SortedTile& tile, const OutputRows& rows, const Thresholds& thresholds,
                         const OutputMemory& memory, double* costs);

    // Which of four classes each weight of a row belongs to: class_of[i] from cut[i - 1] on, up to cut[i], which
    // ascend. Bit 1 of the class goes to first, bit 0 to second, if there is one.
    void (*classify)(const float* weight, int64_t cols, const float* cut, const int32_t* class_of, uint8_t* first,
                     uint8_t* second);

    // Fills weight and member. s, members: as in Entries, of `cols` columns.
    void (*rank_one_take)(const RankOneRows& rows, const float* s, const uint8_t* members, int64_t cols, int64_t order);

    // A turn of ARB-RC for plane `o` of `order`: row scales, and sums for the column scales. Turn::planes, or
    // `planes_first`, takes the nearest of the four levels.
    void (*rank_one_pass)(const RankOneRows& rows, int64_t order, Turn turn, int64_t o, bool planes_first);

    // A plane as bytes, 1 for +1; bits: [rows, cols], meaningful for members.
    void (*rank_one_give)(const RankOneRows& rows, int64_t o, const float* s, int64_t cols, int64_t order,
                          uint8_t* bits);

    // See arb_x_basis. plane_stride: from one plane to the next.
    void (*fill_basis)(const BasisRows& rows, const uint8_t* members, const uint8_t* planes, int64_t plane_stride,
                       float* basis);

    // See fit_arb_x.
    void (*fit_outputs)(const BasisRows& rows, int64_t iters, float* coefficients);

    // sums[0] += sum |target| * unit, sums[1] += sum unit^2 over rows begin .. end - 1 of a column, where `unit` is the
    // level nearest to |target| at column scale `col`, divided by it. begin: a multiple of kLanes.
    void (*column_sums)(const LevelRows& rows, const float* target, float col, int64_t begin, int64_t end,
                        double* sums);

    // New row magnitudes for rows begin .. end - 1; see fit_levels. begin: a multiple of kLanes.
    void (*fit_level_rows)(const LevelsFit& part, int64_t begin, int64_t end);

    // Codes rows begin .. end - 1 of column j at scale `col` and passes their changes on; see sweep_levels.
    void (*code_column)(const LevelRows& rows, const LevelsSweep& panel, int64_t j, float col, int64_t begin,
                        int64_t end);
};

extern const SolverKernels scalar_solver;
#if defined(__x86_64__)
extern const SolverKernels avx2_solver;
extern const SolverKernels avx512_solver;
#endif

}  // namespace arb
