// ARB-RC: row and column scales in turn (equations 12, 13 and 8), each turn one pass over the rows (rank_one.inc).
// Oracle: arbllm_kernels/methods/arb_rc.py.
//
// Rows are padded with non-members to whole vectors. A chunk's column sums are float32, the sum over chunks is double;
// chunks have a fixed size, so that the number of threads changes no digit.
#include <algorithm>
#include <new>
#include <vector>

#include "arb/solver.h"
#include "kernels.h"
#include "pool.h"
#include "solver_kernels.h"
#include "sorted_rows.h"

namespace arb {
namespace {

constexpr int64_t kChunkRows = 64;
constexpr double kEps = 1e-8;

// A zone being fitted. Planes are held as B: +1 or -1 on members, 0 elsewhere.
struct Work {
    int64_t rows, stride;
    std::vector<float> weight, member;            // [rows, stride]; 0 where not a member
    std::vector<float> plane[2], row[2], col[2];  // [rows, stride], [rows], [stride]
    std::vector<float> sums;                      // [chunks, 2, stride]: numerators and denominators of a column scale

    Work(const Entries& zone, int64_t order) : rows(zone.rows), stride((zone.cols + kLanes - 1) / kLanes * kLanes) {
        const auto size = static_cast<size_t>(rows * stride);
        weight.resize(size);
        member.resize(size);
        for (int64_t o = 0; o < order; ++o) {
            plane[o].resize(size);
            row[o].resize(static_cast<size_t>(rows));
            col[o].resize(static_cast<size_t>(stride));
        }
        sums.resize(static_cast<size_t>((rows + kChunkRows - 1) / kChunkRows * 2 * stride));
        for (int64_t i = 0; i < rows; ++i) {
            for (int64_t j = 0; j < zone.cols; ++j) {
                if (zone.members != nullptr && zone.members[i * zone.cols + j] == 0) continue;
                weight[static_cast<size_t>(i * stride + j)] = zone.s[i * zone.cols + j];
                member[static_cast<size_t>(i * stride + j)] = 1;
            }
        }
    }
};

struct Pass {
    const SolverKernels& kernels;
    Work& work;
    int64_t order;
    Turn turn;
    int64_t o;
    bool planes_first;  // alternate: take the nearest of the four levels before
};

Status run_chunks(void* context, int64_t begin, int64_t end) {
    const Pass& pass = *static_cast<const Pass*>(context);
    Work& w = pass.work;
    for (int64_t c = begin; c < end; ++c) {
        const int64_t first = c * kChunkRows;
        const auto from = static_cast<size_t>(first * w.stride);
        RankOneRows rows{
            std::min(kChunkRows, w.rows - first),          w.stride, &w.weight[from], &w.member[from], {}, {}, {},
            &w.sums[static_cast<size_t>(c * 2 * w.stride)]};
        for (int64_t o = 0; o < pass.order; ++o) {
            rows.plane[o] = &w.plane[o][from];
            rows.row[o] = &w.row[o][static_cast<size_t>(first)];
            rows.col[o] = w.col[o].data();
        }
        std::fill_n(rows.sums, 2 * w.stride, 0.0f);
        pass.kernels.rank_one_pass(rows, pass.order, pass.turn, pass.o, pass.planes_first);
    }
    return Status::ok;
}

// One pass over all rows, then the column scales from the sums of its chunks.
Status run(Pass pass, int64_t threads) {
    Work& w = pass.work;
    const int64_t chunks = (w.rows + kChunkRows - 1) / kChunkRows;
    const Status status = parallel_for(chunks, 1, threads, run_chunks, &pass);
    if (status != Status::ok || pass.turn == Turn::planes) return status;
    std::vector<double> sums(static_cast<size_t>(2 * w.stride));
    for (int64_t c = 0; c < chunks; ++c) {
        for (size_t j = 0; j < sums.size(); ++j)
            sums[j] += static_cast<double>(w.sums[static_cast<size_t>(c) * sums.size() + j]);
    }
    for (size_t j = 0; j < static_cast<size_t>(w.stride); ++j) {
        const double denominator = sums[static_cast<size_t>(w.stride) + j];
        const double safe = pass.turn == Turn::start ? std::max(denominator, 1.0) : denominator + kEps;
        w.col[pass.o][j] = static_cast<float>(sums[j] / safe);
    }
    return Status::ok;
}

Status fit(const SolverKernels& kernels, Work& work, int64_t order, int64_t iters, int64_t threads) {
    for (int64_t o = 0; o < order; ++o) {
        if (const Status s = run({kernels, work, order, Turn::start, o, false}, threads); s != Status::ok) return s;
    }
    for (int64_t t = 0; t < iters; ++t) {
        for (int64_t o = 0; o < order; ++o) {
            const bool planes_first = order == 2 && o == 0 && t > 0;
            if (const Status s = run({kernels, work, order, Turn::alternate, o, planes_first}, threads);
                s != Status::ok)
                return s;
        }
    }
    return order == 2 && iters > 0 ? run({kernels, work, order, Turn::planes, 0, false}, threads) : Status::ok;
}

}  // namespace

Status fit_arb_rc(const Entries& zone, int64_t order, int64_t iters, int64_t threads, uint8_t* planes, float* row_scale,
                  float* col_scale) {
    if (!is_valid(zone) || threads < 1 || order < 1 || order > 2 || iters < 0) return Status::bad_range;
    const Isa* isa = nullptr;
    if (const Status status = active_kernels(&isa); status != Status::ok) return status;
    try {
        Work work(zone, order);
        if (const Status status = fit(*isa->solver, work, order, iters, threads); status != Status::ok) return status;
        for (int64_t o = 0; o < order; ++o) {
            std::copy_n(work.col[o].data(), zone.cols, col_scale + o * zone.cols);
            for (int64_t i = 0; i < zone.rows; ++i) {
                row_scale[i * order + o] = work.row[o][static_cast<size_t>(i)];
                const float* plane = &work.plane[o][static_cast<size_t>(i * work.stride)];
                uint8_t* out = planes + (o * zone.rows + i) * zone.cols;
                for (int64_t j = 0; j < zone.cols; ++j) out[j] = plane[j] > 0 ? 1 : 0;
            }
        }
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
    return Status::ok;
}

}  // namespace arb
