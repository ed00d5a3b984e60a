#include <algorithm>
#include <cmath>

#include "arb/gemm.h"
#include "plan.h"

namespace arb {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The number of every column's row scale among those of its block, if it is of group 0 and if of group 1.
void add_kinds(const PackedView& w, const Int8Block& block, std::vector<uint8_t>& kinds) {
    const int64_t others = w.salient_groups * w.salient_order;
    for (int64_t word = 0; word < block.salient_words; ++word) {
        for (int64_t g = 0; g < 2; ++g) {
            const int64_t salient = w.salient_groups > 1 ? g * w.salient_order : 0;
            for (int64_t c = 0; c < kWordColumns; ++c) {
                const bool is_salient = word * kWordColumns + c < block.salient;
                kinds.push_back(static_cast<uint8_t>(is_salient ? salient : others + std::min(g, w.groups - 1)));
            }
        }
    }
}

}  // namespace

bool covers_int8(const PackedView& w) {
    const bool words = w.block_size % kWordColumns == 0 || w.block_size >= w.cols;
    return w.groups <= 2 && w.mean.data == nullptr && words && std::min(w.block_size, w.cols) <= kInt8MaxBlock;
}

void make_int8_plan(const Plan& exact, Int8Plan& plan) {
    const Job& whole = exact.job;
    const PackedView& w = *whole.weight;
    Int8Job& job = plan.job;
    job.weight = &w;
    job.order = whole.order;
    job.blocks = whole.blocks;
    job.words = whole.words;
    job.salient_columns = whole.salient_columns;
    job.steps = whole.row_scales / whole.blocks;
    job.copies = w.groups == 2 && w.col_scale.data != nullptr && w.shared_columns == 0 ? 2 : 1;
    job.grouped = w.groups == 2;
    job.two_planes = w.salient_order == 2 && whole.salient_columns > 0;
    job.factor = whole.factor;
    plan.list.resize(static_cast<size_t>(job.blocks));
    for (int64_t b = 0; b < job.blocks; ++b) {
        const int64_t columns = std::min(w.block_size, w.cols - b * w.block_size);
        plan.list[static_cast<size_t>(b)] = {divide_up(columns, kWordColumns), 0, 0, 0};
    }
    for (const Run& run : exact.runs) {
        Int8Block& block = plan.list[static_cast<size_t>(run.block)];
        if (run.salient) {
            block.salient = run.length;
            block.salient_words = divide_up(run.length, kWordColumns);
            block.second = run.second;
        }
    }
    for (const Int8Block& block : plan.list) {
        add_kinds(w, block, plan.kinds);
        const int64_t vectors = block.words + (job.two_planes ? block.salient_words : 0);
        job.line += vectors * job.copies * kWordColumns;
        job.widest = std::max(job.widest, block.words * kWordColumns);
    }
    job.list = plan.list.data();
    job.kinds = plan.kinds.data();
    // Each row: its scales, 4 bytes each at most, or its part of the second plane, and what may be read past their end.
    const int64_t line = std::max(4 * job.blocks * job.steps, job.salient_columns / 8) + 2 * kWordColumns;
    job.scratch = 3 * kInt8Rows * divide_up(line, kWordColumns) * kWordColumns;
}

}  // namespace arb
