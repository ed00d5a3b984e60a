// ARB-X judges a split by tr(R S R^T) of the block's residual R: memory for trace.inc, and rows for it.
#include <algorithm>
#include <cmath>
#include <new>
#include <vector>

#include "arb/solver.h"
#include "sum_rows.h"
#include "thresholds.h"

namespace arb {
namespace {

// Judges the splits of a tile's rows.
class Judge {
  public:
    Judge(const SolverKernels& kernels, const OutputRows& rows, const Thresholds& thresholds)
        : kernels_(kernels), rows_(rows), thresholds_(thresholds), split_(thresholds.size) {
        const auto size = static_cast<size_t>(thresholds.size), places = static_cast<size_t>(rows.cols + 1);
        sign_change_.resize(2 * size);
        fall_.resize((kCuts + 1) * size);
        meet_.resize(kCutPairs * size);
        alone_.resize(3 * places);
        order_.resize(places);
        sums_.resize(places * static_cast<size_t>(rows.stride));
    }

    void operator()(const SortedRows& sorted, int64_t first, double* costs) {
        OutputRows rows = rows_;
        rows.z += first * rows.cols;
        const OutputMemory memory{split_.memory(), sign_change_.data(), fall_.data(), meet_.data(),
                                  alone_.data(),   order_.data(),       sums_.data()};
        kernels_.output_costs(sorted.tile(), rows, thresholds_, memory, costs);
    }

  private:
    const SolverKernels& kernels_;
    OutputRows rows_;
    Thresholds thresholds_;
    SplitRoom split_;
    std::vector<int32_t> sign_change_, order_;
    std::vector<double> fall_, meet_, alone_;
    std::vector<float> sums_;
};

struct JudgedRows {
    static constexpr bool kWithColumns = true;

    OutputRows rows;
    Thresholds thresholds;

    Judge worker(const SolverKernels& kernels) const { return {kernels, rows, thresholds}; }
};

bool all_finite(const Entries& entries) {
    return std::all_of(entries.s, entries.s + entries.rows * entries.cols, [](float x) { return std::isfinite(x); });
}

}  // namespace

Status output_costs(const Entries& entries, const float* z, const float* S, const float* thresholds, int64_t count,
                    int64_t threads, double* costs) {
    // After the last member of a sorted row stands infinity: an infinite member's column could get lost behind it.
    if (!is_valid(entries) || threads < 1 || count < 1 || !all_finite(entries)) return Status::bad_range;
    try {
        const ThresholdList list(thresholds, count);
        const int64_t cols = entries.cols, step = 4 * kLanes, stride = (cols + step - 1) / step * step;
        std::vector<float> padded(static_cast<size_t>(cols * stride));
        for (int64_t j = 0; j < cols; ++j) std::copy(S + j * cols, S + (j + 1) * cols, padded.begin() + j * stride);
        const JudgedRows judged{{cols, stride, padded.data(), z}, list.all()};
        return sum_rows(entries, judged, count, threads, costs);
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
}

}  // namespace arb
