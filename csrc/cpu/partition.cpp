// Gains of the partition's candidates, whose formulas are in search.inc, and quantiles.
#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include "arb/solver.h"
#include "sum_rows.h"
#include "thresholds.h"

namespace arb {
namespace {

struct SalientRows {
    static constexpr bool kWithColumns = false;

    const Entries& entries;
    const int64_t* ranked;
    int64_t count;  // candidates

    struct Worker {
        const SalientRows& of;
        const SolverKernels& kernels;
        std::vector<float> top, top_values;
        std::vector<double> top_sums, gain;  // gain: [candidates, kLanes]

        void operator()(const SortedRows& rows, int64_t first, double* gains) {
            for (int64_t lane = 0; lane < kLanes; ++lane) {
                const int64_t row = first + lane;
                for (int64_t c = 0; c < of.count; ++c) {
                    const float s = row < of.entries.rows ? of.entries.s[row * of.entries.cols + of.ranked[c]] : 0;
                    top[static_cast<size_t>(c * kLanes + lane)] = s;
                }
            }
            kernels.salient_gains(rows.tile(), top.data(), of.count, top_values.data(), top_sums.data(), gain.data());
            for (int64_t i = 0; i < of.count * kLanes; ++i) gains[i / kLanes] += gain[static_cast<size_t>(i)];
        }
    };

    Worker worker(const SolverKernels& kernels) const {
        const auto size = static_cast<size_t>((count + 1) * kLanes);
        return {*this,
                kernels,
                std::vector<float>(size),
                std::vector<float>(size),
                std::vector<double>(size),
                std::vector<double>(size)};
    }
};

struct SplitRows {
    static constexpr bool kWithColumns = false;

    const ThresholdList& thresholds;
    int64_t order;

    auto worker(const SolverKernels& kernels) const {
        return [this, &kernels, room = SplitRoom(thresholds.all().size)](const SortedRows& rows, int64_t,
                                                                         double* gains) mutable {
            kernels.split_gains(rows.tile(), thresholds.all(), order, room.memory(), gains);
        };
    }
};

// ---- order statistics

// Non-negative floats sort like their bit patterns, so the upper bits of |s| say which of these bins it belongs to.
constexpr int kBinShift = 15;
constexpr size_t kBins = size_t{1} << (31 - kBinShift);

uint32_t magnitude_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits & 0x7fffffffu;
}

template <typename Visit>
void for_nonzero_members(const Entries& entries, const Visit& visit) {
    for (int64_t i = 0; i < entries.rows * entries.cols; ++i) {
        const uint32_t bits = magnitude_bits(entries.s[i]);
        if (bits != 0 && (entries.members == nullptr || entries.members[i] != 0)) visit(bits);
    }
}

// Collects the bins that hold a wanted rank, sorts those alone, and looks the ranks up in them.
Status select(const Entries& entries, int64_t zeros, const int64_t* ranks, int64_t count, float* values) {
    std::vector<int64_t> ends(kBins), next(kBins, -1);
    for_nonzero_members(entries, [&](uint32_t bits) { ++ends[bits >> kBinShift]; });
    for (size_t bin = 1; bin < kBins; ++bin) ends[bin] += ends[bin - 1];

    std::vector<int64_t> wanted(static_cast<size_t>(count));  // bin of each rank; -1: a zero
    int64_t collected = 0;
    std::vector<int64_t> starts(kBins);  // where a collected bin begins
    for (int64_t i = 0; i < count; ++i) {
        const int64_t rank = ranks[i] - zeros;
        if (ranks[i] < 0 || rank >= ends.back()) return Status::bad_range;
        const auto bin = rank < 0 ? -1 : std::upper_bound(ends.begin(), ends.end(), rank) - ends.begin();
        wanted[static_cast<size_t>(i)] = bin;
        if (bin < 0 || next[static_cast<size_t>(bin)] >= 0) continue;
        const auto b = static_cast<size_t>(bin);
        starts[b] = next[b] = collected;
        collected += ends[b] - (b == 0 ? 0 : ends[b - 1]);
    }
    std::vector<uint32_t> entries_of(static_cast<size_t>(collected));
    for_nonzero_members(entries, [&](uint32_t bits) {
        int64_t& at = next[bits >> kBinShift];
        if (at >= 0) entries_of[static_cast<size_t>(at++)] = bits;
    });
    for (size_t bin = 0; bin < kBins; ++bin) {
        if (next[bin] >= 0) std::sort(entries_of.begin() + starts[bin], entries_of.begin() + next[bin]);
    }
    for (int64_t i = 0; i < count; ++i) {
        uint32_t bits = 0;
        if (const int64_t bin = wanted[static_cast<size_t>(i)]; bin >= 0) {
            const auto b = static_cast<size_t>(bin);
            const int64_t before = b == 0 ? 0 : ends[b - 1];
            bits = entries_of[static_cast<size_t>(starts[b] + ranks[i] - zeros - before)];
        }
        std::memcpy(values + i, &bits, sizeof bits);
    }
    return Status::ok;
}

}  // namespace

Status salient_gains(const Entries& entries, const int64_t* ranked, int64_t limit, int64_t threads, double* gains) {
    if (!is_valid(entries) || threads < 1 || entries.members != nullptr || limit < 1 || limit > entries.cols) {
        return Status::bad_range;
    }
    for (int64_t c = 0; c < limit; ++c) {
        if (ranked[c] < 0 || ranked[c] >= entries.cols) return Status::bad_order;
    }
    return sum_rows(entries, SalientRows{entries, ranked, limit - 1}, limit - 1, threads, gains);
}

Status split_gains(const Entries& entries, const float* thresholds, int64_t count, int64_t order, int64_t threads,
                   double* gains) {
    if (!is_valid(entries) || threads < 1 || count < 1 || order < 1 || order > 2) return Status::bad_range;
    try {
        const ThresholdList list(thresholds, count);
        return sum_rows(entries, SplitRows{list, order}, count, threads, gains);
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
}

Status order_statistics(const Entries& entries, int64_t zeros, const int64_t* ranks, int64_t count, float* values) {
    if (!is_valid(entries) || zeros < 0 || count < 0) return Status::bad_range;
    try {
        return select(entries, zeros, ranks, count, values);
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
}

}  // namespace arb
