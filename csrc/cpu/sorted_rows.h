// Rows sorted side by side, with running sums. One merge-exchange network (Knuth, volume 3, 5.2.2, algorithm M) serves
// kLanes rows at once: its comparisons do not depend on the data, so the inner loop is vectors of minima and maxima.
#pragma once

#include <cstdint>
#include <vector>

#include "arb/solver.h"

namespace arb {

constexpr int64_t kLanes = 16;

bool is_valid(const Entries& entries);

// A sorted row: entry i at values[i * stride], the sum of its first i entries at sums[i * stride].
template <int64_t kStride>
struct SortedRow {
    const float* values;
    const double* sums;
    int64_t count;

    double sum(int64_t first) const { return sums[first * kStride]; }

    // How many entries lie below x. Walks there from `near`, which neighbouring questions make a short way.
    int64_t below(double x, int64_t near) const {
        int64_t at = near < count ? near : count;
        while (at < count && values[at * kStride] < x) ++at;
        while (at > 0 && !(values[(at - 1) * kStride] < x)) --at;
        return at;
    }
};

// The members of up to kLanes rows.
class SortedRows {
  public:
    explicit SortedRows(int64_t cols);

    // Takes rows first .. first + kLanes - 1; those past the last row are empty.
    void take(const Entries& entries, int64_t first);

    SortedRow<kLanes> row(int64_t lane) const { return {&values_[lane], &sums_[lane], counts_[lane]}; }

  private:
    void load(const Entries& entries, int64_t first);
    void sort();

    int64_t cols_;
    std::vector<float> values_;  // [cols, kLanes], infinite past a row's end
    std::vector<double> sums_;   // [cols + 1, kLanes]
    int64_t counts_[kLanes] = {};
};

}  // namespace arb
