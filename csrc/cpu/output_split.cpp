// ARB-X judges a split by tr(R S R^T) of the block's residual R. Per row, R = u - (a level per member), and sorted
// members take four levels in runs; with E_c = the members before cut c, R = u - sum_c w_c E_c over the cuts. So the
// trace needs only how the E_c meet in S and in u. Running sums of the columns of S, in the members' order, hold S E
// for every place a cut can have: a cut that moves past one member then costs a look-up per other cut, whatever the
// threshold. Oracle: split_by_output in arbllm_kernels/methods/partition.py.
#include <algorithm>

#include "arb/solver.h"
#include "row_sets.h"
#include "sum_rows.h"

namespace arb {
namespace {

// Cuts of a sorted row: where |s| < t begins and ends, where each side changes its sign, and the end of the row.
enum Cut { kFirst, kLast, kLowSign, kHighSign, kEnd, kCuts };

// The E_c of one row and their products with each other, with S and with u.
class Indicators {
  public:
    Indicators(const float* S, int64_t cols) : S_(S), cols_(cols), y_(static_cast<size_t>((cols + 1) * cols)) {}

    void reset(const double* z, const std::vector<int64_t>& order) {
        std::fill(position, position + kCuts, 0);
        std::fill(with_u, with_u + kCuts, 0.0);
        std::fill(&with[0][0], &with[0][0] + kCuts * kCuts, 0.0);
        z_ = z;
        order_ = order.data();
        double* sum = y_.data();  // its first row stays 0
        for (const int64_t j : order) {
            const float* column = S_ + j * cols_;
            for (int64_t i = 0; i < cols_; ++i) sum[cols_ + i] = sum[i] + static_cast<double>(column[i]);
            sum += cols_;
        }
    }

    void move(int cut, int64_t to) {
        while (position[cut] < to) flip(cut, position[cut]++, 1);
        while (position[cut] > to) flip(cut, --position[cut], -1);
    }

    int64_t position[kCuts];
    double with_u[kCuts];       // E_c S u
    double with[kCuts][kCuts];  // E_c S E_d

  private:
    // Adds `sign` times the member at `place` to E_cut.
    void flip(int cut, int64_t place, double sign) {
        const int64_t j = order_[place];
        for (int c = 0; c < kCuts; ++c) {
            if (c != cut) with[c][cut] = with[cut][c] += sign * y_[static_cast<size_t>(position[c] * cols_ + j)];
        }
        // the member meets those before it twice and itself once
        const double *before = &y_[static_cast<size_t>(place * cols_ + j)], *after = before + cols_;
        with[cut][cut] += sign * (*before + *after);
        with_u[cut] += sign * z_[j];
    }

    const float* S_;
    int64_t cols_;
    const double* z_ = nullptr;
    const int64_t* order_ = nullptr;
    std::vector<double> y_;  // [cols + 1, cols]: S times the first members
};

// Mean and scale of one side as they are used: rounded to float32.
struct Levels {
    double mean = 0, scale = 0;
    int64_t sign_changes = 0;  // position of the mean in the row
};

template <typename Set>
Levels levels(const Set& set, const Below& all, const int64_t* near, const SortedRow& row) {
    if (all.count == 0) return {0, 0, near[0]};
    const double mean = all.sum / all.count;
    const double scale = deviation(mean, all, set.below(mean, 0)) / all.count;
    const double rounded = static_cast<double>(static_cast<float>(mean));
    return {rounded, static_cast<double>(static_cast<float>(scale)), row.below(rounded, near[0])};
}

// tr(R S R^T) of one row less the part u S u that no threshold changes.
double cost(const Indicators& e, const Levels& low, const Levels& high) {
    int order[] = {kFirst, kLast, kLowSign, kHighSign, kEnd};
    for (int i = 1; i < kEnd; ++i) {
        for (int at = i; at > 0 && e.position[order[at]] < e.position[order[at - 1]]; --at)
            std::swap(order[at], order[at - 1]);
    }
    // Members before a cut have the level of the run that ends there.
    double weight[kCuts];
    double level = 0;
    for (int i = kEnd; i >= 0; --i) {
        const int64_t begin = i == 0 ? 0 : e.position[order[i - 1]];
        double here = level;
        if (begin < e.position[order[i]]) {
            const bool is_low = begin >= e.position[kFirst] && begin < e.position[kLast];
            const Levels& side = is_low ? low : high;
            const bool positive = begin >= e.position[is_low ? kLowSign : kHighSign];
            here = positive ? side.mean + side.scale : side.mean - side.scale;
        }
        weight[order[i]] = here - level;
        level = here;
    }
    double result = 0;
    for (int c = 0; c < kCuts; ++c) {
        double product = -2 * e.with_u[c];
        for (int d = 0; d < kCuts; ++d) product += weight[d] * e.with[c][d];
        result += weight[c] * product;
    }
    return result;
}

// The members' columns by ascending s, as SortedRows orders their values. Counting who comes before whom takes no
// branches: for the 128 columns of a block that beats a sort.
struct Members {
    std::vector<int64_t> order;

    void sort(const Entries& entries, int64_t number) {
        const float* s = entries.s + number * entries.cols;
        const uint8_t* members = entries.members == nullptr ? nullptr : entries.members + number * entries.cols;
        values_.clear();
        columns_.clear();
        for (int64_t j = 0; j < entries.cols; ++j) {
            if (members != nullptr && members[j] == 0) continue;
            values_.push_back(s[j]);
            columns_.push_back(j);
        }
        const size_t count = values_.size();
        order.resize(count);
        for (size_t a = 0; a < count; ++a) {
            int32_t rank = 0;
            for (size_t b = 0; b < a; ++b) rank += values_[b] <= values_[a] ? 1 : 0;
            for (size_t b = a + 1; b < count; ++b) rank += values_[b] < values_[a] ? 1 : 0;
            order[static_cast<size_t>(rank)] = columns_[a];
        }
    }

  private:
    std::vector<float> values_;
    std::vector<int64_t> columns_;
};

struct OutputRows {
    const Entries& entries;
    const double* z;
    const float* S;
    const std::vector<Threshold>& thresholds;

    auto worker(const SolverKernels&) const {
        return [this, e = Indicators(S, entries.cols), members = Members()](const SortedRows& rows, int64_t first,
                                                                            double* costs) mutable {
            for (int64_t lane = 0; lane < std::min(kLanes, entries.rows - first); ++lane) {
                members.sort(entries, first + lane);
                e.reset(z + (first + lane) * entries.cols, members.order);
                add_costs(rows.row(lane), e, costs + lane);
            }
        };
    }

    // Adds to costs[q * kLanes].
    void add_costs(const SortedRow& row, Indicators& e, double* costs) const {
        e.move(kEnd, row.count);
        int64_t near_low[1] = {}, near_high[1] = {};
        Range range{row, 0, 0};
        const Below all{static_cast<double>(row.count), row.sum(row.count)};
        double value = 0;
        for (size_t q = 0; q < thresholds.size(); ++q) {
            const int64_t first = row.below(thresholds[q].first, range.first);
            const int64_t last = std::max(first, row.below(thresholds[q].last, range.last));
            if (q == 0 || first != range.first || last != range.last) {
                range.first = first;
                range.last = last;
                const Below inside = range.up_to(last);
                const Levels low = levels(Inside{range, near_low}, inside, near_low, row);
                const Levels high = levels(Outside{range, near_high}, all - inside, near_high, row);
                e.move(kFirst, first);
                e.move(kLast, last);
                e.move(kLowSign, low.sign_changes);
                e.move(kHighSign, high.sign_changes);
                value = cost(e, low, high);
            }
            costs[q * kLanes] += value;
        }
    }
};

bool all_finite(const Entries& entries) {
    return std::all_of(entries.s, entries.s + entries.rows * entries.cols, [](float x) { return std::isfinite(x); });
}

}  // namespace

Status output_costs(const Entries& entries, const double* z, const float* S, const float* thresholds, int64_t count,
                    int64_t threads, double* costs) {
    // The network of SortedRows can stand NaN; ranks could not.
    if (!is_valid(entries) || threads < 1 || count < 1 || !all_finite(entries)) return Status::bad_range;
    try {
        const std::vector<Threshold> ranges = threshold_ranges(thresholds, count);
        return sum_rows(entries, OutputRows{entries, z, S, ranges}, count, threads, costs);
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
}

}  // namespace arb
