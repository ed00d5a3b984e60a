// Checks a PackedView and cuts it into runs. After make_plan returns ok, no content of any buffer can lead a kernel
// outside its bounds.
#pragma once

#include <vector>

#include "kernels.h"

namespace arb {

struct Plan {
    Job job{};
    std::vector<Run> runs;
    std::vector<Chunk> chunks;
};

// For the kernels that will run. `plan.job` points into `plan` and `weight`.
Status make_plan(const PackedView& weight, const Kernels& kernels, Plan& plan);

}  // namespace arb
