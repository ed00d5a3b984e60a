// Codes with shared column scales: the alternating fit of a part, and the column by column sweep that finds its codes.
// Oracle: arbllm_kernels/methods/levels.py (`fit`, `sweep`); the same steps in the same order, sums in double.
//
// Everything is transposed, [columns, rows]: a step works on one column, a vector over rows. Rows are independent but
// for the column scale, one number that a step finds from all rows before it applies it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "arb/solver.h"
#include "kernels.h"
#include "pool.h"
#include "solver_kernels.h"

namespace arb {
namespace {

constexpr int64_t kGrain = 2048;  // rows worth another thread in one step of a sweep

// The nearest fp16 value, ties to even; infinite where fp16 would be.
float round_to_half(float x) {
    const float magnitude = std::fabs(x);
    float rounded;
    if (magnitude < 0x1p-14f) {
        rounded = (magnitude + 0.75f) - 0.75f;  // a float of that size counts in fp16's smallest steps, 2^-24
    } else {
        uint32_t bits;
        std::memcpy(&bits, &magnitude, sizeof bits);
        bits = (bits + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu;
        std::memcpy(&rounded, &bits, sizeof rounded);
        if (rounded > 65504.0f) rounded = HUGE_VALF;
    }
    return std::copysign(rounded, x);
}

float scale_of(const double* sums, float before) {
    const auto scale = static_cast<float>(sums[0] / sums[1]);
    return sums[0] > 0 && sums[1] > 0 ? scale : before;
}

// ---- fit

struct Fit {
    const LevelsFit& part;
    const SolverKernels& kernels;
};

Status fit_columns(void* context, int64_t begin, int64_t end) {
    const Fit& fit = *static_cast<const Fit*>(context);
    const LevelsFit& part = fit.part;
    const LevelRows rows{part.levels, part.rows, part.count, false};
    for (int64_t j = begin; j < end; ++j) {
        double sums[2] = {};
        fit.kernels.column_sums(rows, part.weight + j * part.rows, part.col[j], 0, part.rows, sums);
        part.col[j] = scale_of(sums, part.col[j]);
    }
    return Status::ok;
}

Status fit_rows(void* context, int64_t begin, int64_t end) {
    const Fit& fit = *static_cast<const Fit*>(context);
    fit.kernels.fit_level_rows(fit.part, begin, end);
    return Status::ok;
}

// ---- sweep

struct Step {
    const LevelsSweep& panel;
    const SolverKernels& kernels;
    LevelRows rows;
    int64_t column;
    float col;
    double* sums;  // [pieces of kGrain rows, 2]
};

Status sum_column(void* context, int64_t begin, int64_t end) {
    const Step& step = *static_cast<const Step*>(context);
    const int64_t rows = step.panel.rows;
    for (int64_t piece = begin; piece < end; ++piece) {
        double* sums = step.sums + 2 * piece;
        sums[0] = sums[1] = 0;
        step.kernels.column_sums(step.rows, step.panel.work + step.column * rows, step.col, piece * kGrain,
                                 std::min((piece + 1) * kGrain, rows), sums);
    }
    return Status::ok;
}

Status code_column(void* context, int64_t begin, int64_t end) {
    const Step& step = *static_cast<const Step*>(context);
    step.kernels.code_column(step.rows, step.panel, step.column, step.col, begin * kGrain,
                             std::min(end * kGrain, step.panel.rows));
    return Status::ok;
}

Status run_step(const LevelsSweep& p, const SolverKernels& kernels, int64_t column, int64_t threads,
                std::vector<double>& sums) {
    const int64_t pieces = (p.rows + kGrain - 1) / kGrain;
    const bool salient = p.salient[column] != 0;
    const LevelRows rows{salient ? p.row_scale : p.row_scale + 4 * p.rows, p.rows, salient ? 4 : 2, salient};
    Step step{p, kernels, rows, column, p.col[column], sums.data()};
    if (const Status s = parallel_for(pieces, 1, threads, sum_column, &step); s != Status::ok) return s;
    double total[2] = {};
    for (int64_t piece = 0; piece < pieces; ++piece) {
        total[0] += sums[static_cast<size_t>(2 * piece)];
        total[1] += sums[static_cast<size_t>(2 * piece + 1)];
    }
    const float scale = scale_of(total, step.col);
    step.col = p.half != 0 ? round_to_half(scale) : scale;
    p.col[column] = step.col;
    return parallel_for(pieces, 1, threads, code_column, &step);
}

}  // namespace

Status fit_levels(const LevelsFit& part, int64_t iters, int64_t threads) {
    if (part.rows < 1 || part.cols < 1 || iters < 0 || threads < 1) return Status::bad_range;
    if (part.count != 2 && part.count != 4) return Status::bad_range;
    const Isa* isa = nullptr;
    if (const Status status = active_kernels(&isa); status != Status::ok) return status;
    Fit fit{part, *isa->solver};
    for (int64_t t = 0; t < iters; ++t) {
        if (const Status s = parallel_for(part.cols, 1, threads, fit_columns, &fit); s != Status::ok) return s;
        if (const Status s = parallel_for(part.rows, kLanes, threads, fit_rows, &fit); s != Status::ok) return s;
    }
    return Status::ok;
}

Status sweep_levels(const LevelsSweep& panel, int64_t threads) {
    if (panel.rows < 1 || panel.cols < 1 || threads < 1) return Status::bad_range;
    const Isa* isa = nullptr;
    if (const Status status = active_kernels(&isa); status != Status::ok) return status;
    try {
        std::vector<double> sums(static_cast<size_t>(2 * ((panel.rows + kGrain - 1) / kGrain)));
        for (int64_t j = 0; j < panel.cols; ++j) {
            if (const Status s = run_step(panel, *isa->solver, j, threads, sums); s != Status::ok) return s;
        }
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
    return Status::ok;
}

}  // namespace arb
