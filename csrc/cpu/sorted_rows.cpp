#include "sorted_rows.h"

#include <algorithm>
#include <cstddef>
#include <limits>

namespace arb {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

}  // namespace

bool is_valid(const Entries& entries) {
    return entries.s != nullptr && entries.rows >= 1 && entries.rows <= kMaxDim && entries.cols >= 1 &&
           entries.cols <= kMaxBlock;
}

SortedRows::SortedRows(int64_t cols, const SolverKernels& kernels, bool with_columns)
    : kernels_(kernels),
      cols_(cols),
      values_(static_cast<size_t>((cols + 1) * kLanes), kInfinity),
      sums_(static_cast<size_t>((cols + 1) * kLanes)),
      columns_(with_columns ? static_cast<size_t>(cols * kLanes) : 0) {}

void SortedRows::take(const Entries& entries, int64_t first) {
    rows_ = std::min(kLanes, entries.rows - first);
    load(entries, first);
    const int64_t most = *std::max_element(counts_, counts_ + kLanes);
    kernels_.sort(most, values_.data(), columns_.empty() ? nullptr : columns_.data(), sums_.data());
}

void SortedRows::load(const Entries& entries, int64_t first) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
        int64_t taken = 0;
        float* out = &values_[static_cast<size_t>(lane)];
        const int64_t row = first + lane;
        const float* s = entries.s + row * cols_;
        if (row >= entries.rows) {
            for (; taken < cols_; ++taken) out[taken * kLanes] = 0;
        } else if (entries.members == nullptr) {
            for (; taken < cols_; ++taken) {
                out[taken * kLanes] = s[taken];
                if (!columns_.empty())
                    columns_[static_cast<size_t>(taken * kLanes + lane)] = static_cast<int32_t>(taken);
            }
        } else {
            const uint8_t* members = entries.members + row * cols_;
            for (int64_t j = 0; j < cols_; ++j) {
                out[taken * kLanes] = s[j];
                if (!columns_.empty()) columns_[static_cast<size_t>(taken * kLanes + lane)] = static_cast<int32_t>(j);
                taken += members[j] != 0 ? 1 : 0;
            }
        }
        counts_[lane] = static_cast<int32_t>(taken);
        for (int64_t j = taken; j < cols_; ++j) out[j * kLanes] = kInfinity;
    }
}

}  // namespace arb
