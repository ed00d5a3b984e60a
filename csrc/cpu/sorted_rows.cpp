#include "sorted_rows.h"

#include <cstring>
#include <limits>

namespace arb {
namespace {

// Four floats, the vector that every 64-bit processor has.
using Floats = float __attribute__((vector_size(16)));
constexpr int64_t kWidth = 4;

// Orders entry by entry. Both outcomes of a comparison keep the two values, so even NaN neither vanishes nor doubles.
void exchange(float* low, float* high) {
    for (int64_t i = 0; i < kLanes; i += kWidth) {
        Floats a, b;
        std::memcpy(&a, low + i, sizeof a);
        std::memcpy(&b, high + i, sizeof b);
        const Floats small = a < b ? a : b;
        const Floats large = a < b ? b : a;
        std::memcpy(low + i, &small, sizeof a);
        std::memcpy(high + i, &large, sizeof b);
    }
}

}  // namespace

bool is_valid(const Entries& entries) {
    return entries.s != nullptr && entries.rows >= 1 && entries.rows <= kMaxDim && entries.cols >= 1 &&
           entries.cols <= kMaxBlock;
}

SortedRows::SortedRows(int64_t cols)
    : cols_(cols), values_(static_cast<size_t>(cols * kLanes)), sums_(static_cast<size_t>((cols + 1) * kLanes)) {}

void SortedRows::take(const Entries& entries, int64_t first) {
    load(entries, first);
    sort();
    for (int64_t i = 0; i < cols_; ++i) {
        const double* before = &sums_[static_cast<size_t>(i * kLanes)];
        double* after = &sums_[static_cast<size_t>((i + 1) * kLanes)];
        const float* value = &values_[static_cast<size_t>(i * kLanes)];
        for (int64_t lane = 0; lane < kLanes; ++lane) after[lane] = before[lane] + static_cast<double>(value[lane]);
    }
}

void SortedRows::load(const Entries& entries, int64_t first) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
        int64_t taken = 0;
        float* out = &values_[static_cast<size_t>(lane)];
        if (first + lane < entries.rows) {
            const float* s = entries.s + (first + lane) * cols_;
            const uint8_t* members = entries.members == nullptr ? nullptr : entries.members + (first + lane) * cols_;
            for (int64_t j = 0; j < cols_; ++j) {
                out[taken * kLanes] = s[j];
                taken += members == nullptr || members[j] != 0 ? 1 : 0;
            }
        }
        counts_[lane] = taken;
        for (int64_t j = taken; j < cols_; ++j) out[j * kLanes] = std::numeric_limits<float>::infinity();
    }
}

void SortedRows::sort() {
    int64_t top = 1;
    while (top < cols_) top *= 2;
    for (int64_t p = top / 2; p > 0; p /= 2) {
        int64_t offset = 0, distance = p;
        for (int64_t q = top / 2;; q /= 2) {
            for (int64_t i = 0; i + distance < cols_; ++i) {
                if ((i & p) == offset)
                    exchange(&values_[static_cast<size_t>(i * kLanes)],
                             &values_[static_cast<size_t>((i + distance) * kLanes)]);
            }
            if (q == p) break;
            distance = q - p;
            offset = p;
        }
    }
}

}  // namespace arb
