// ARB-RC: row and column scales in turn (equations 12, 13 and 8), each turn one pass over the rows (rank_one.inc).
// Oracle: arbllm_kernels/methods/arb_rc.py.
//
// Rows are padded with non-members to whole vectors. A chunk's column sums are float32, the sum over chunks is double;
// chunks have a fixed size, so that the number of threads changes no digit.
#include <algorithm>
#include <memory>
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

// Memory that is written before it is read; a vector would be filled with zeros first.
std::unique_ptr<float[]> memory(int64_t floats) {
    return std::unique_ptr<float[]>(new float[static_cast<size_t>(floats)]);
}

// A zone being fitted.
struct Work {
    const SolverKernels& kernels;
    const Entries& zone;
    int64_t order, stride, chunks;
    uint8_t* bits;                                            // [order, rows, cols]
    std::unique_ptr<float[]> weight, member, plane[2], sums;  // see RankOneRows; sums: [chunks, 2, stride]
    std::vector<float> row[2], col[2];                        // [rows], [stride]

    Work(const SolverKernels& with, const Entries& of, int64_t planes, uint8_t* out)
        : kernels(with),
          zone(of),
          order(planes),
          stride((of.cols + kLanes - 1) / kLanes * kLanes),
          chunks((of.rows + kChunkRows - 1) / kChunkRows),
          bits(out),
          weight(memory(of.rows * stride)),
          sums(memory(chunks * 2 * stride)) {
        if (order == 2) {
            member = memory(of.rows * stride);
            for (auto& signs : plane) signs = memory(of.rows * stride);
        }
        for (int64_t o = 0; o < order; ++o) {
            row[o].resize(static_cast<size_t>(of.rows));
            col[o].resize(static_cast<size_t>(stride));
        }
    }

    RankOneRows chunk(int64_t number) {
        const int64_t first = number * kChunkRows, from = first * stride;
        RankOneRows rows{};
        rows.rows = std::min(kChunkRows, zone.rows - first);
        rows.stride = stride;
        rows.weight = weight.get() + from;
        rows.sums = sums.get() + number * 2 * stride;
        for (int64_t o = 0; o < order; ++o) {
            rows.row[o] = row[o].data() + first;
            rows.col[o] = col[o].data();
            if (order == 2) rows.plane[o] = plane[o].get() + from;
        }
        if (order == 2) rows.member = member.get() + from;
        return rows;
    }
};

Status take_chunks(void* context, int64_t begin, int64_t end) {
    Work& w = *static_cast<Work*>(context);
    for (int64_t c = begin; c < end; ++c) {
        const int64_t from = c * kChunkRows * w.zone.cols;
        const uint8_t* members = w.zone.members == nullptr ? nullptr : w.zone.members + from;
        w.kernels.rank_one_take(w.chunk(c), w.zone.s + from, members, w.zone.cols, w.order);
    }
    return Status::ok;
}

Status give_chunks(void* context, int64_t begin, int64_t end) {
    Work& w = *static_cast<Work*>(context);
    for (int64_t c = begin; c < end; ++c) {
        for (int64_t o = 0; o < w.order; ++o) {
            w.kernels.rank_one_give(w.chunk(c), o, w.zone.s + c * kChunkRows * w.zone.cols, w.zone.cols, w.order,
                                    w.bits + (o * w.zone.rows + c * kChunkRows) * w.zone.cols);
        }
    }
    return Status::ok;
}

struct Pass {
    Work& work;
    Turn turn;
    int64_t o;
    bool planes_first;  // alternate: take the nearest of the four levels before
};

Status run_chunks(void* context, int64_t begin, int64_t end) {
    const Pass& pass = *static_cast<const Pass*>(context);
    for (int64_t c = begin; c < end; ++c) {
        const RankOneRows rows = pass.work.chunk(c);
        std::fill_n(rows.sums, 2 * rows.stride, 0.0f);
        pass.work.kernels.rank_one_pass(rows, pass.work.order, pass.turn, pass.o, pass.planes_first);
    }
    return Status::ok;
}

// One pass over all rows, then the column scales from the sums of its chunks.
Status run(Pass pass, int64_t threads) {
    Work& w = pass.work;
    const Status status = parallel_for(w.chunks, 1, threads, run_chunks, &pass);
    if (status != Status::ok || pass.turn == Turn::planes) return status;
    std::vector<double> sums(static_cast<size_t>(2 * w.stride));
    for (int64_t c = 0; c < w.chunks; ++c) {
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

Status fit(Work& work, int64_t iters, int64_t threads) {
    if (const Status s = parallel_for(work.chunks, 1, threads, take_chunks, &work); s != Status::ok) return s;
    for (int64_t o = 0; o < work.order; ++o) {
        if (const Status s = run({work, Turn::start, o, false}, threads); s != Status::ok) return s;
    }
    for (int64_t t = 0; t < iters; ++t) {
        for (int64_t o = 0; o < work.order; ++o) {
            const bool planes_first = work.order == 2 && o == 0 && t > 0;
            if (const Status s = run({work, Turn::alternate, o, planes_first}, threads); s != Status::ok) return s;
        }
    }
    if (work.order == 2 && iters > 0) {
        if (const Status s = run({work, Turn::planes, 0, false}, threads); s != Status::ok) return s;
    }
    return parallel_for(work.chunks, 1, threads, give_chunks, &work);
}

}  // namespace

Status fit_arb_rc(const Entries& zone, int64_t order, int64_t iters, int64_t threads, uint8_t* planes, float* row_scale,
                  float* col_scale) {
    if (!is_valid(zone) || threads < 1 || order < 1 || order > 2 || iters < 0) return Status::bad_range;
    const Isa* isa = nullptr;
    if (const Status status = active_kernels(&isa); status != Status::ok) return status;
    try {
        Work work(*isa->solver, zone, order, planes);
        if (const Status status = fit(work, iters, threads); status != Status::ok) return status;
        for (int64_t o = 0; o < order; ++o) {
            std::copy_n(work.col[o].data(), zone.cols, col_scale + o * zone.cols);
            for (int64_t i = 0; i < zone.rows; ++i) row_scale[i * order + o] = work.row[o][static_cast<size_t>(i)];
        }
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
    return Status::ok;
}

}  // namespace arb
