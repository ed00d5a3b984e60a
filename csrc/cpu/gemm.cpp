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

// ---- the same in whole numbers

// Vectors that begin in one cache line and end in the next take twice as long to read.
struct FreeAligned {
    void operator()(int8_t* p) const { operator delete[](p, std::align_val_t(64)); }
};
using AlignedBytes = std::unique_ptr<int8_t[], FreeAligned>;

AlignedBytes aligned_bytes(int64_t count) {
    return AlignedBytes(new (std::align_val_t(64)) int8_t[static_cast<size_t>(count)]);
}

struct LineTile {
    const LineKernels* kernels;
    const LineJob* job;
    const LineRow* x;
    int64_t count;   // rows of x
    int64_t number;  // digits
    float* y;
};

Status multiply_line_rows(void* context, int64_t begin, int64_t end) {
    const LineTile& t = *static_cast<const LineTile*>(context);
    const std::unique_ptr<unsigned char[]> scratch(
        new (std::nothrow) unsigned char[static_cast<size_t>(t.job->scratch)]);
    if (scratch == nullptr) return Status::out_of_memory;
    for (int64_t i = 0, tile = t.number == 1 ? kLineTile : kExactLineTile; i < t.count; i += tile) {
        while (tile > t.count - i) tile /= 2;
        float* y[kLineTile];
        for (int64_t row = 0; row < tile; ++row) y[row] = t.y + (i + row) * t.job->weight->rows;
        t.kernels->multiply(*t.job, t.x + i, tile, t.number, begin, end, scratch.get(), y);
    }
    return Status::ok;
}

// Multiplies rows of x up to the first that is not finite; `done` says how many.
Status multiply_line(const LineKernels& kernels, const LineJob& job, int64_t number, const float* x, int64_t batch,
                     float* y, int64_t threads, int64_t& done) {
    constexpr int64_t kRows = 64;  // prepared at once
    const PackedView& w = *job.weight;
    const int64_t most = std::min(batch, kRows), line = number * job.line, sums = number * job.blocks * kernels.lanes;
    const AlignedBytes digits = aligned_bytes(most * line);
    const std::unique_ptr<int32_t[]> starts(new int32_t[static_cast<size_t>(most * sums)]);
    const std::unique_ptr<double[]> units(new double[static_cast<size_t>(most * job.blocks)]);
    const std::unique_ptr<float[]> values(new float[static_cast<size_t>(2 * job.widest)]);
    done = 0;
    for (bool finite = true; done < batch && finite;) {
        LineRow rows[kRows];
        LineTile t{&kernels, &job, rows, 0, number, y + done * w.rows};
        while (t.count < std::min(batch - done, kRows)) {
            int8_t* const row_digits = digits.get() + t.count * line;
            int32_t* const row_starts = starts.get() + t.count * sums;
            double* const row_units = units.get() + t.count * job.blocks;
            finite = kernels.prepare(job, x + (done + t.count) * w.cols, number, values.get(), row_digits, row_starts,
                                     row_units);
            if (!finite) break;
            rows[t.count++] = {row_digits, row_starts, row_units};
        }
        const int64_t useful = std::max<int64_t>(1, w.rows * w.cols * t.count * number / kInt8WeightsPerThread);
        const Status status =
            parallel_for(t.count > 0 ? w.rows : 0, kLinePanel, std::min(threads, useful), multiply_line_rows, &t);
        if (status != Status::ok) return status;
        done += t.count;
    }
    return Status::ok;
}

}  // namespace

struct Plans {
    const Isa* isa;
    bool has_int8;
    bool has_line;
    Plan exact;
    Int8Plan int8;
    LinePlan line;
};

namespace {

Status make_plans(const PackedView& view, const Isa& isa, std::shared_ptr<const Plans>& made) {
    const auto plans = std::make_shared<Plans>();
    plans->isa = &isa;
    if (const Status status = make_plan(view, *isa.exact, plans->exact); status != Status::ok) return status;
    plans->has_int8 = covers_int8(view);
    if (plans->has_int8) make_int8_plan(plans->exact, plans->int8);
    plans->has_line = covers_line(view);
    if (plans->has_line) make_line_plan(plans->exact, *isa.line, plans->line);
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
        const bool int8 = activations == Activations::int8;
        const auto others = [&](const float* from, int64_t count, float* to) {
            return int8 && plans->has_int8 ? multiply_int8(*isa->int8, plans->int8.job, from, count, to, threads)
                                           : multiply(*isa->exact, plans->exact.job, from, count, to, threads);
        };
        if (!plans->has_line) return others(x, batch, y);
        for (int64_t i = 0; i < batch; ++i) {
            int64_t done = 0;
            if (const Status status = multiply_line(*isa->line, plans->line.job, int8 ? 1 : kMaxDigits,
                                                    x + i * view_.cols, batch - i, y + i * view_.rows, threads, done);
                status != Status::ok) {
                return status;
            }
            i += done;
            if (i == batch) break;
            if (const Status status = others(x + i * view_.cols, 1, y + i * view_.rows); status != Status::ok)
                return status;
        }
        return Status::ok;
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
}

Status gemm(const PackedView& weight, const float* x, int64_t batch, float* y, int64_t threads, Activations activations,
            const char** ran) {
    return Weight(weight).gemm(x, batch, y, threads, activations, ran);
}

}  // namespace arb
