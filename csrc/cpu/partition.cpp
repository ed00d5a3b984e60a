// Gains of the partition's candidates from sorted rows and running sums; every formula is the one of
// arbllm_kernels/methods/partition.py, row by row instead of table by table.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "arb/solver.h"
#include "row_sets.h"
#include "sum_rows.h"

namespace arb {
namespace {

// A row without some of its entries, which are a sorted row of their own.
struct Without {
    const SortedRow<kLanes>& row;
    const SortedRow<1>& left_out;
    int64_t* near;      // [3]
    int64_t* near_out;  // [3]

    Below below(double x, int question) const {
        const int64_t at = near[question] = row.below(x, near[question]);
        const int64_t out = near_out[question] = left_out.below(x, near_out[question]);
        return {static_cast<double>(at - out), row.sum(at) - left_out.sum(out)};
    }
};

// sum s^2 minus the squared error of `order` planes; see `gain` in methods/partition.py for the two formulas.
template <typename Set>
double gain(const Set& set, const Below& all, int64_t order) {
    if (all.count == 0) return 0;
    const double mean = all.sum / all.count;
    const Below low = set.below(mean, 0);
    const double scale = deviation(mean, all, low) / all.count;
    const double first = all.count * (mean * mean + scale * scale);
    if (order == 1) return first;
    const Below high = all - low;
    const double mean2 = scale * (low.count - high.count) / all.count;
    const double cut_low = mean - scale + mean2, cut_high = mean + scale + mean2;
    const double scale2 = (deviation(cut_low, low, set.below(std::min(cut_low, mean), 1)) +
                           deviation(cut_high, high, set.below(std::max(cut_high, mean), 2) - low)) /
                          all.count;
    return first + all.count * (mean2 * mean2 + scale2 * scale2);
}

// ---- salient columns

// The top columns' entries of one row, entering one by one.
class Top {
  public:
    explicit Top(int64_t limit) : values_(static_cast<size_t>(limit)), sums_(static_cast<size_t>(limit + 1)) {}

    void clear() { count_ = 0; }

    void insert(float value) {
        float* values = values_.data();
        double* sums = sums_.data();
        int64_t at = count_;
        while (at > 0 && value < values[at - 1]) {
            values[at] = values[at - 1];
            sums[at + 1] = sums[at] + static_cast<double>(value);
            --at;
        }
        values[at] = value;
        sums[at + 1] = sums[at] + static_cast<double>(value);
        ++count_;
    }

    SortedRow<1> row() const { return {values_.data(), sums_.data(), count_}; }

  private:
    std::vector<float> values_;
    std::vector<double> sums_;  // sums_[0] stays 0
    int64_t count_ = 0;
};

struct SalientRows {
    const Entries& entries;
    const int64_t* ranked;
    int64_t limit;

    auto worker() const {
        return [this, top = Top(limit)](const SortedRow<kLanes>& row, int64_t number, double* gains) mutable {
            const float* s = entries.s + number * entries.cols;
            int64_t near_top[3] = {}, near_all[3] = {}, near_out[3] = {};
            const Below all{static_cast<double>(row.count), row.sum(row.count)};
            top.clear();
            for (int64_t c = 1; c < limit; ++c) {
                top.insert(s[ranked[c - 1]]);
                const SortedRow<1> part = top.row();
                const Below salient{static_cast<double>(c), part.sum(c)};
                gains[c - 1] += gain(Inside<1>{Range<1>{part, 0, c}, near_top}, salient, 2) +
                                gain(Without{row, part, near_all, near_out}, all - salient, 2);
            }
        };
    }
};

// ---- split of a part

struct SplitRows {
    const std::vector<Threshold>& thresholds;
    int64_t order;

    auto worker() const {
        return [this](const SortedRow<kLanes>& row, int64_t, double* gains) {
            int64_t near_low[3] = {}, near_high[3] = {};
            Range<kLanes> range{row, 0, 0};
            const Below all{static_cast<double>(row.count), row.sum(row.count)};
            double value = 0;
            for (size_t q = 0; q < thresholds.size(); ++q) {
                const int64_t first = row.below(thresholds[q].first, range.first);
                const int64_t last = std::max(first, row.below(thresholds[q].last, range.last));
                if (q == 0 || first != range.first || last != range.last) {
                    range.first = first;
                    range.last = last;
                    const Below low = range.up_to(last);
                    value = gain(Outside<kLanes>{range, near_high}, all - low, order) +
                            gain(Inside<kLanes>{range, near_low}, low, order);
                }
                gains[q] += value;
            }
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
    return sum_rows(entries, SalientRows{entries, ranked, limit}, limit - 1, threads, gains);
}

Status split_gains(const Entries& entries, const float* thresholds, int64_t count, int64_t order, int64_t threads,
                   double* gains) {
    if (!is_valid(entries) || threads < 1 || count < 1 || order < 1 || order > 2) return Status::bad_range;
    try {
        const std::vector<Threshold> ranges = threshold_ranges(thresholds, count);
        return sum_rows(entries, SplitRows{ranges, order}, count, threads, gains);
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
