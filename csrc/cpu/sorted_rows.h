// Rows sorted side by side, with running sums; the sorting itself is search.inc.
#pragma once

#include <cstdint>
#include <vector>

#include "arb/solver.h"
#include "solver_kernels.h"

namespace arb {

bool is_valid(const Entries& entries);

// A sorted row of a tile: entry i at values[i * kLanes], the sum of its first i entries at sums[i * kLanes].
struct SortedRow {
    const float* values;
    const double* sums;
    int64_t count;

    double sum(int64_t first) const { return sums[first * kLanes]; }

    // How many entries lie below x. Walks there from `near`, which neighbouring questions make a short way.
    int64_t below(double x, int64_t near) const {
        int64_t at = near < count ? near : count;
        while (at < count && values[at * kLanes] < x) ++at;
        while (at > 0 && !(values[(at - 1) * kLanes] < x)) --at;
        return at;
    }
};

// The members of up to kLanes rows.
class SortedRows {
  public:
    // `with_columns`: tiles say which column each entry is.
    SortedRows(int64_t cols, const SolverKernels& kernels, bool with_columns = false);

    // Takes rows first .. first + kLanes - 1; those past the last row are rows of zeros.
    void take(const Entries& entries, int64_t first);

    SortedTile tile() const {
        return {values_.data(), sums_.data(), counts_, cols_, rows_, columns_.empty() ? nullptr : columns_.data()};
    }
    SortedRow row(int64_t lane) const { return {values_.data() + lane, sums_.data() + lane, counts_[lane]}; }

  private:
    void load(const Entries& entries, int64_t first);

    const SolverKernels& kernels_;
    int64_t cols_;
    std::vector<float> values_;     // [cols + 1, kLanes], infinite past a row's end
    std::vector<double> sums_;      // [cols + 1, kLanes]
    std::vector<int32_t> columns_;  // [cols, kLanes] or empty
    int32_t counts_[kLanes] = {};
    int64_t rows_ = 0;
};

}  // namespace arb
