// Parts of a sorted row that candidates of the partition search ask about, and how a threshold cuts one.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "sorted_rows.h"

namespace arb {

// Members below some x: how many, and their sum.
struct Below {
    double count, sum;
};

inline Below operator-(const Below& a, const Below& b) { return {a.count - b.count, a.sum - b.sum}; }

// The entries first .. last - 1 of a sorted row.
struct Range {
    const SortedRow& row;
    int64_t first, last;

    Below up_to(int64_t position) const {
        const int64_t end = std::clamp(position, first, last);
        return {static_cast<double>(end - first), row.sum(end) - row.sum(first)};
    }
};

// Sets of entries: `below(x, question)`. A gain asks three questions, each starting where its last answer was found.
struct Inside {
    const Range& range;
    int64_t* near;  // [3]

    Below below(double x, int question) const {
        near[question] = range.row.below(x, near[question]);
        return range.up_to(near[question]);
    }
};

// The rest of the row that `range` belongs to.
struct Outside {
    const Range& range;
    int64_t* near;

    Below below(double x, int question) const {
        near[question] = range.row.below(x, near[question]);
        const Below all{static_cast<double>(near[question]), range.row.sum(near[question])};
        return all - range.up_to(near[question]);
    }
};

// sum |s - x| of a set, given what lies below x.
inline double deviation(double x, const Below& all, const Below& below) {
    return (all.sum - below.sum) - x * (all.count - below.count) + x * below.count - below.sum;
}

inline std::vector<Threshold> threshold_ranges(const float* thresholds, int64_t count) {
    std::vector<Threshold> ranges;
    for (int64_t q = 0; q < count; ++q) {
        const double t = static_cast<double>(thresholds[q]);
        ranges.push_back({std::nextafter(-t, 0.0), t});
    }
    return ranges;
}

}  // namespace arb
