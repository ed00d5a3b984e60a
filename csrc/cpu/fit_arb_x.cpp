// Threads for ARB-X's refinement, x_fit.inc.
#include "arb/solver.h"
#include "kernels.h"
#include "pool.h"
#include "solver_kernels.h"

namespace arb {
namespace {

constexpr int64_t kGrain = 128;  // rows worth another thread

bool is_valid(const BasisRows& rows) {
    return rows.count >= 1 && rows.cols >= 1 && rows.vectors >= 2 && rows.vectors <= kMaxVectors;
}

struct Fill {
    const SolverKernels& kernels;
    const BasisRows& rows;
    const uint8_t *members, *planes;
    float* basis;
};

Status fill_rows(void* context, int64_t begin, int64_t end) {
    const Fill& fill = *static_cast<const Fill*>(context);
    const int64_t cols = fill.rows.cols;
    BasisRows rows = fill.rows;
    rows.count = end - begin;
    fill.kernels.fill_basis(rows, fill.members + begin * cols, fill.planes + begin * cols, fill.rows.count * cols,
                            fill.basis + begin * rows.vectors * cols);
    return Status::ok;
}

struct Fit {
    const SolverKernels& kernels;
    const BasisRows& rows;
    int64_t iters;
    float* coefficients;
};

Status fit_rows(void* context, int64_t begin, int64_t end) {
    const Fit& fit = *static_cast<const Fit*>(context);
    const int64_t vectors = fit.rows.vectors, cols = fit.rows.cols;
    BasisRows rows = fit.rows;
    rows.count = end - begin;
    rows.weight += begin * cols;
    rows.basis += begin * vectors * cols;
    rows.products += begin * vectors * cols;
    fit.kernels.fit_outputs(rows, fit.iters, fit.coefficients + begin * vectors);
    return Status::ok;
}

}  // namespace

Status arb_x_basis(const Entries& zone, const uint8_t* planes, int64_t order, int64_t threads, float* basis) {
    const BasisRows rows{zone.rows, zone.cols, order + 1, nullptr, nullptr, nullptr};
    if (!is_valid(rows) || threads < 1 || zone.members == nullptr) return Status::bad_range;
    const Isa* isa = nullptr;
    if (const Status status = active_kernels(&isa); status != Status::ok) return status;
    Fill fill{*isa->solver, rows, zone.members, planes, basis};
    return parallel_for(rows.count, kGrain, threads, fill_rows, &fill);
}

Status fit_arb_x(const BasisRows& rows, int64_t iters, int64_t threads, float* coefficients) {
    if (!is_valid(rows) || iters < 0 || threads < 1) return Status::bad_range;
    const Isa* isa = nullptr;
    if (const Status status = active_kernels(&isa); status != Status::ok) return status;
    Fit fit{*isa->solver, rows, iters, coefficients};
    return parallel_for(rows.count, kGrain, threads, fit_rows, &fit);
}

}  // namespace arb
