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
constexpr int64_t kInt8WeightsPerThread = 1 << 20;

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

// ---- the same with activations in 8 bits

struct Int8Tile {
    const Int8Kernels* kernels;
    const Int8Job* job;
    const int8_t* lines;
    const float* scales;
    int64_t tile;
    float* y[kInt8Tile];
};

Status multiply_int8_rows(void* context, int64_t begin, int64_t end) {
    const Int8Tile& t = *static_cast<const Int8Tile*>(context);
    const std::unique_ptr<unsigned char[]> scratch(
        new (std::nothrow) unsigned char[static_cast<size_t>(t.job->scratch)]);
    if (scratch == nullptr) return Status::out_of_memory;
    t.kernels->multiply(*t.job, t.lines, t.scales, t.tile, begin, end, scratch.get(), t.y);
    return Status::ok;
}

Status multiply_int8(const Int8Kernels& kernels, const Int8Job& job, const float* x, int64_t batch, float* y,
                     int64_t threads) {
    const PackedView& w = *job.weight;
    const int64_t most = batch > 1 ? kInt8Tile : 1;
    const std::unique_ptr<int8_t[]> lines(new int8_t[static_cast<size_t>(most * job.line)]);
    const std::unique_ptr<float[]> scales(new float[static_cast<size_t>(most * job.blocks)]);
    const std::unique_ptr<float[]> values(new float[static_cast<size_t>(4 * job.widest + kWordColumns)]);
    for (int64_t first = 0; first < batch; first += kInt8Tile) {
        const int64_t filled = std::min(batch - first, kInt8Tile);
        Int8Tile t{&kernels, &job, lines.get(), scales.get(), filled > 1 ? kInt8Tile : 1, {}};
        for (int64_t i = 0; i < t.tile; ++i) {
            // A tile that is not full repeats its last row, which is then written to the same place again.
            const int64_t row = first + std::min(i, filled - 1);
            kernels.prepare(job, x + row * w.cols, values.get(), lines.get() + i * job.line,
                            scales.get() + i * job.blocks);
            t.y[i] = y + row * w.rows;
        }
        const int64_t useful = std::max<int64_t>(1, w.rows * w.cols * t.tile / kInt8WeightsPerThread);
        const Status status = parallel_for(w.rows, kInt8Rows, std::min(threads, useful), multiply_int8_rows, &t);
        if (status != Status::ok) return status;
    }
    return Status::ok;
}

}  // namespace

struct Plans {
    const Isa* isa;
    bool has_int8;
    Plan exact;
    Int8Plan int8;
};

namespace {

Status make_plans(const PackedView& view, const Isa& isa, std::shared_ptr<const Plans>& made) {
    const auto plans = std::make_shared<Plans>();
    plans->isa = &isa;
    if (const Status status = make_plan(view, *isa.exact, plans->exact); status != Status::ok) return status;
    plans->has_int8 = covers_int8(view);
    if (plans->has_int8) make_int8_plan(plans->exact, plans->int8);
    made = plans;
    return Status::ok;
}

}  // namespace

Weight::Weight(const PackedView& view) : view_(view) {}
Weight::~Weight() = default;

Status Weight::gemm(const float* x, int64_t batch, float* y, int64_t threads, Activations activations,
                    const char** ran) {
    if (batch < 0 || threads < 1) return Status::bad_range;
    const Isa* isa = nullptr;
    if (const Status status = active_kernels(&isa); status != Status::ok) return status;
    if (ran != nullptr) *ran = isa->name;
    try {
        std::shared_ptr<const Plans> plans;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            if (plans_ == nullptr || plans_->isa != isa) {
                if (const Status status = make_plans(view_, *isa, plans_); status != Status::ok) return status;
            }
            plans = plans_;
        }
        if (activations == Activations::int8 && plans->has_int8) {
            return multiply_int8(*isa->int8, plans->int8.job, x, batch, y, threads);
        }
        return multiply(*isa->exact, plans->exact.job, x, batch, y, threads);
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
}

Status gemm(const PackedView& weight, const float* x, int64_t batch, float* y, int64_t threads, Activations activations,
            const char** ran) {
    return Weight(weight).gemm(x, batch, y, threads, activations, ran);
}

}  // namespace arb
