// Checks a PackedView and cuts it into runs. After make_plan returns ok, no content of any buffer can lead a kernel
// outside its bounds.
#pragma once

#include <vector>

#include "int8.h"
#include "kernels.h"
#include "line.h"

namespace arb {

struct Plan {
    Job job{};
    std::vector<int32_t> order;
    std::vector<Run> runs;
    std::vector<Chunk> chunks;
};

// For the kernels that will run. `plan.job` points into `plan` and `weight`, whose order and counts are copied: writing
// to these buffers later changes nothing.
Status make_plan(const PackedView& weight, const Kernels& kernels, Plan& plan);

struct Int8Plan {
    Int8Job job{};
    std::vector<Int8Block> list;
    std::vector<uint8_t> kinds;
};

// The plan of the int8 product, for a weight that make_plan and covers_int8 (arb/gemm.h) accepted.
void make_int8_plan(const Plan& exact, Int8Plan& plan);

struct LinePlan {
    LineJob job{};
    std::vector<LineBlock> list;
};

// The plan of the product in whole numbers, for a weight that make_plan and covers_line (arb/gemm.h) accepted.
void make_line_plan(const Plan& exact, const LineKernels& kernels, LinePlan& plan);

}  // namespace arb
