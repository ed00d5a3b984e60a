#include "arb/gemm.h"

#include <algorithm>
#include <memory>
#include <new>

#include "plan.h"
#include "pool.h"

namespace arb {
namespace {

// Waking another thread costs tens of microseconds: about the time one thread needs for this many weights.
constexpr int64_t kWeightsPerThread = 1 << 19;

struct Tile {
    const Kernels* kernels;
    const Job* job;
    const float* prepared;  // [tile, lanes or table_lanes]
    int64_t tile;
    float* y[kMaxTile];  // one per prepared row
};

Status multiply_rows(void* context, int64_t begin, int64_t end) {
    const Tile& t = *static_cast<const Tile*>(context);
    const std::unique_ptr<float[]> scratch(new (std::nothrow) float[static_cast<size_t>(t.job->scratch)]);
    if (scratch == nullptr) return Status::out_of_memory;
    const auto run = t.job->tables ? t.kernels->gemm_tables : t.kernels->gemm;
    run(*t.job, t.prepared, t.tile, begin, end, scratch.get(), t.y);
    return Status::ok;
}

Status multiply(const Kernels& kernels, const Job& job, const float* x, int64_t batch, float* y, int64_t threads) {
    const PackedView& w = *job.weight;
    const int64_t lanes = job.tables ? job.table_lanes : job.lanes;
    const auto prepare = job.tables ? kernels.prepare_tables : kernels.prepare;
    const int64_t most = job.tables ? std::min(batch, kMaxTile) : batch > 1 ? kMaxTile : 1;
    const std::unique_ptr<float[]> prepared(new (std::nothrow) float[static_cast<size_t>(most * lanes)]);
    if (prepared == nullptr) return Status::out_of_memory;
    for (int64_t first = 0; first < batch; first += kMaxTile) {
        const int64_t filled = std::min(batch - first, kMaxTile);
        Tile t{&kernels, &job, prepared.get(), filled > 1 && !job.tables ? kMaxTile : filled, {}};
        for (int64_t i = 0; i < t.tile; ++i) {
            // gemm's tile that is not full repeats its last row, which is then written to the same place again.
            const int64_t row = first + std::min(i, filled - 1);
            prepare(job, x + row * w.cols, prepared.get() + i * lanes);
            t.y[i] = y + row * w.rows;
        }
        const int64_t useful = std::max<int64_t>(1, w.rows * w.cols * t.tile / kWeightsPerThread);
        const int64_t grain = job.tables ? kPanelTile : kRowTile;
        const Status status = parallel_for(w.rows, grain, std::min(threads, useful), multiply_rows, &t);
        if (status != Status::ok) return status;
    }
    return Status::ok;
}

}  // namespace

Status gemm(const PackedView& weight, const float* x, int64_t batch, float* y, int64_t threads, const char** ran) {
    if (batch < 0 || threads < 1) return Status::bad_range;
    const Kernels* kernels = nullptr;
    if (const Status status = active_kernels(&kernels); status != Status::ok) return status;
    if (ran != nullptr) *ran = kernels->name;
    try {
        Plan plan;
        if (const Status status = make_plan(weight, *kernels, plan); status != Status::ok) return status;
        return multiply(*kernels, plan.job, x, batch, y, threads);
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
}

}  // namespace arb
