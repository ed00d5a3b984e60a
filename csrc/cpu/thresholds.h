// The thresholds of a split as the kernels want them, and memory for them.
#pragma once

#include <cmath>
#include <vector>

#include "solver_kernels.h"

namespace arb {

class ThresholdList {
  public:
    ThresholdList(const float* thresholds, int64_t count) {
        for (int64_t q = 0; q < (count + kLanes - 1) / kLanes * kLanes; ++q) {
            last_.push_back(thresholds[q < count ? q : count - 1]);
            first_.push_back(std::nextafter(-last_.back(), 0.0f));
        }
    }

    Thresholds all() const { return {static_cast<int64_t>(last_.size()), first_.data(), last_.data()}; }

  private:
    std::vector<float> first_, last_;
};

// Memory for the splits of one row.
class SplitRoom {
  public:
    explicit SplitRoom(int64_t thresholds) : size_(static_cast<size_t>(thresholds)), places_(3 * size_), gain_(size_) {}

    SplitMemory memory() { return {&places_[0], &places_[size_], &places_[2 * size_], gain_.data()}; }

  private:
    size_t size_;
    std::vector<int32_t> places_;
    std::vector<double> gain_;
};

}  // namespace arb
