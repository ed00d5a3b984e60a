// Checks a PackedView and cuts it into runs. After make_plan returns ok, no content of any buffer can lead a kernel
// outside its bounds.
#pragma once

#include <vector>

#include "aligned.h"
#include "kernels.h"
#include "line.h"
#include "tiles.h"

namespace arb {

struct Plan {
    Job job{};
    std::vector<int32_t> order;
    std::vector<Run> runs;
};

// For the kernels that will run. `plan.job` points into `plan` and `weight`, whose order and counts are copied: writing
// to these buffers later changes nothing.
Status make_plan(const PackedView& weight, const Kernels& kernels, Plan& plan);

// How many rows of the weight, the first ones, lie so that `spare` bytes behind each may be read, in every buffer; a
// row or two that would do are not counted.
int64_t rows_in_place(const Job& job, int64_t spare);

struct LinePlan {
    LineJob job{};
    std::vector<LineBlock> list;
    std::vector<uint8_t> masks;
};

// The plan of the product by line, for a weight that make_plan and covers_line (arb/gemm.h) accepted.
void make_line_plan(const Plan& exact, const LineKernels& kernels, LinePlan& plan);

struct TilesPlan {
    TilesJob job{};
    std::vector<TilesPart> parts;
    LargeBytes copy;
};

// A copy of a weight that make_plan accepted, and the plan of its product.
Status make_tiles_plan(const Plan& exact, int64_t threads, TilesPlan& plan);

}  // namespace arb
