// What every instruction set implements: functions over one Job, over a table of bytes, and over elements of 16 bits.
// Plain data only (see arb/packed.h).
#pragma once

#include "arb/packed.h"
#include "line.h"

namespace arb {

// A run is the salient or the other part of one block: consecutive storage positions that share their row scales.
struct Run {
    int64_t start;   // first storage position
    int64_t length;  // columns, at least 1
    int64_t lane;    // where its part of a prepared row begins, in floats
    int64_t block;
    int64_t second;  // salient runs: first column in the second plane
    bool salient;
};

// One packed weight, checked and planned for vectors of Kernels::width floats.
//
// A "prepared" row is x in storage order, each run padded with zeros to whole vectors, so that the lanes past its end
// add nothing. Each vector is followed by its copies (Copies says how many), one per column scale it may meet:
//   salient run: x * col_scale[g] for g < Gs, x * col_scale2[g] for g < Gs (order 2), x (if there are means)
//   other run:   x * col_scale[g] for g < G,                                          x (if there are means)
//   without column scales: x alone.
// Where column scales are shared, the copies are all equal.
struct Job {
    const PackedView* weight;
    const int32_t* order;  // [m], the column at each storage position, every one below m
    const Run* runs;
    int64_t run_count;
    int64_t lanes;  // floats of a prepared row
    int64_t salient_copies;
    int64_t other_copies;
    int64_t blocks;
    int64_t group_bits;
    int64_t words;            // 64-bit words per row of a plane
    int64_t second_words;     // 64-bit words of the second plane
    int64_t salient_columns;  // C
    int64_t row_scales;       // per row: blocks * (Gs * order + G)
    int64_t means;            // per row: blocks * (Gs + G), or 0
    int64_t scratch;          // floats of working memory that gemm and dequantize need
    float factor;             // 2^exponent
};

struct Kernels {
    int64_t width;  // floats per vector

    // x [m] in column order (null: all ones) -> one prepared row of job.lanes floats.
    void (*prepare)(const Job& job, const float* x, float* prepared);

    // y[t][i] = row i times prepared row t, for rows begin..end-1 and t < tile; tile is 1 or kMaxTile.
    void (*gemm)(const Job& job, const float* prepared, int64_t tile, int64_t begin, int64_t end, float* scratch,
                 float* const* y);

    // Rows begin..end-1 as out [end - begin, m]; `prepared` was made from ones. `from` [m] is the storage position of
    // each column, every one below m; null leaves the columns in storage order.
    void (*dequantize)(const Job& job, const float* prepared, const int32_t* from, int64_t begin, int64_t end,
                       float* scratch, float* out);

    // y[t][i] = line i of codes [., cols] times x[t], for lines begin..end-1 and t < tile (at most kMaxTile).
    void (*table_rows)(const int8_t* codes, int64_t cols, const float* const* x, int64_t tile, int64_t begin,
                       int64_t end, float* const* y);

    // `count` elements of 16 bits, bf16 or fp16, to floats, and floats to these: to the nearest, of two the even one.
    void (*widen)(const uint16_t* from, Element element, int64_t count, float* to);
    void (*narrow)(const float* from, int64_t count, Element element, uint16_t* to);
};

constexpr int64_t kMaxTile = 4;  // rows of x that one pass over the planes serves
constexpr int64_t kRowTile = 2;  // rows of the weight worked on at once by gemm

extern const Kernels scalar_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#elif defined(__aarch64__)
extern const Kernels neon_kernels;
#endif

struct SolverKernels;  // solver_kernels.h
struct TilesKernels;   // tiles.h

// An instruction set: sets of kernels under one name.
struct Isa {
    const char* name;
    const Kernels* exact;
    const LineKernels* line;
    const TilesKernels* tiles;
    const SolverKernels* solver;
};

// The one to run now.
Status active_kernels(const Isa** isa);

}  // namespace arb
