// The searches of the partition (docs/architecture.md; oracle: arbllm_kernels/methods/partition.py): which columns are
// salient, which threshold splits a part into groups. And the fits of a zone (oracles: methods/arb.py, arb_rc.py).
//
// A candidate's gain is sum s^2 minus the squared error of binarizing what it selects, summed over rows in double. The
// caller takes the candidate of largest gain, the first one of equals. Gains do not depend on the number of threads.
// Every array is contiguous and row-major; values that are not finite give meaningless gains, never a bad access.
#pragma once

#include <cstdint>

#include "arb/packed.h"

namespace arb {

// Sensitivities float32 [rows, cols], and which of them count.
struct Entries {
    const float* s = nullptr;
    const uint8_t* members = nullptr;  // [rows, cols], 0 or 1; null: all of them
    int64_t rows = 0;
    int64_t cols = 0;
};

// gains[c - 1]: the columns ranked[0 .. c - 1] as one part and the others as another, both binarized with two planes,
// for c = 1 .. limit - 1. ranked: [limit] different columns. Counts every entry: `entries.members` must be null.
Status salient_gains(const Entries& entries, const int64_t* ranked, int64_t limit, int64_t threads, double* gains);

// gains[q]: the members with |s| >= thresholds[q] as one part and the others as another, both with `order` planes.
Status split_gains(const Entries& entries, const float* thresholds, int64_t count, int64_t order, int64_t threads,
                   double* gains);

// ARB-X. costs[q]: tr(R S R^T) of the block's residual R, less what no threshold changes (so the least cost wins), when
// the members with |s| >= thresholds[q] and the others each keep their mean and scale (one plane, rounded to float32).
// S: float32 [cols, cols], symmetric, the entries' columns of the block's S. z: [rows, cols], u S at these columns,
// where u is the block's row with the members as yet untouched. Infinite or NaN sensitivities are Status::bad_range.
Status output_costs(const Entries& entries, const float* z, const float* S, const float* thresholds, int64_t count,
                    int64_t threads, double* costs);

// The values that ranks[0 .. count - 1] (from 0, any order) would have among the sorted |s| of the non-zero members
// together with `zeros` zeros. A rank past the end is Status::bad_range.
Status order_statistics(const Entries& entries, int64_t zeros, const int64_t* ranks, int64_t count, float* values);

// Binarizes the members (a zone; s are weights here). planes: bytes 0 or 1, [order, rows, cols], 1 means +1, meaningful
// for members. Rows and columns without members get scales and means of 0.
//
// Residual binarization and `iters` iterations of ARB (methods/arb.py). row_scale: [rows, order]; mean: [rows].
Status fit_arb(const Entries& zone, int64_t order, int64_t iters, int64_t threads, uint8_t* planes, float* row_scale,
               float* mean);

// ARB-RC (methods/arb_rc.py). row_scale: [rows, order]; col_scale: [order, cols].
Status fit_arb_rc(const Entries& zone, int64_t order, int64_t iters, int64_t threads, uint8_t* planes, float* row_scale,
                  float* col_scale);

// ARB-X, from a fit of ARB (methods/arb_x.py). Its basis, float32 [rows, order + 1, cols]: for every row the zone's
// indicator (`zone.members` must be there), then each plane as +1 or -1 on the zone. planes: as above.
constexpr int64_t kMaxVectors = 3;
Status arb_x_basis(const Entries& zone, const uint8_t* planes, int64_t order, int64_t threads, float* basis);

struct BasisRows {
    int64_t count = 0;  // rows
    int64_t cols = 0;
    int64_t vectors = 0;              // order + 1
    const float* weight = nullptr;    // [count, cols], 0 where the zone has no member
    const float* basis = nullptr;     // [count, vectors, cols]
    const float* products = nullptr;  // [count, vectors, cols]: the basis times S, which is symmetric
};

// coefficients: [rows, vectors], in: mean and scales of the start, out: after `iters` rounds.
Status fit_arb_x(const BasisRows& rows, int64_t iters, int64_t threads, float* coefficients);

// Codes with shared column scales (methods/levels.py). Arrays are transposed: [cols, rows].
//
// One part of a block, all of its columns with `count` magnitudes per row, 2 or 4.
struct LevelsFit {
    const float* weight = nullptr;      // [cols, rows]
    const float* importance = nullptr;  // [cols]
    float* levels = nullptr;            // [count, rows], in: a start, out: the fit
    float* col = nullptr;               // [cols], likewise
    int64_t rows = 0;
    int64_t cols = 0;
    int64_t count = 0;
};

// `iters` rounds: column scales, then row magnitudes, each the weighted least squares given the nearest levels.
Status fit_levels(const LevelsFit& part, int64_t iters, int64_t threads);

// Some columns side by side.
struct LevelsSweep {
    float* work = nullptr;            // [cols, rows]: what each column should be; changed on the way
    const float* coupling = nullptr;  // [cols, cols]: a change of column j by e adds coupling[j, l] e to work[l], l > j
    const float* row_scale = nullptr;  // [6, rows]: first and second plane of both salient groups, then two groups
    float* col = nullptr;              // [cols], in: a start, out: the column scales
    float* value = nullptr;            // [cols, rows]: the weights as stored; read before only if `refine`
    float* change = nullptr;           // [cols, rows], out: value less work, or less the value before if `refine`
    uint8_t* code = nullptr;           // [cols, rows], out: index of the level, plus 4 where positive
    const uint8_t* salient = nullptr;  // [cols], 0 or 1
    int64_t rows = 0;
    int64_t cols = 0;
    int64_t refine = 0;
    int64_t half = 0;  // column scales are fp16 values
};

// Column by column: the scale that fits best, the nearest codes, and the change passed on to the columns after it.
Status sweep_levels(const LevelsSweep& panel, int64_t threads);

}  // namespace arb
