#include <algorithm>

#include "arb/cpu.h"
#include "arb/gemm.h"
#include "plan.h"

namespace arb {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool mostly_join(const LineJob& job) {
    const auto* scales = static_cast<const uint8_t*>(job.weight->row_scale.data);
    const int64_t count = job.weight->rows * job.blocks;
    int64_t joined = 0;
    for (int64_t i = 0; i < count; ++i) joined += levels_join(job, scales + i * job.scales) ? 1 : 0;
    return joined >= count - count / 16;
}

}  // namespace

bool covers_line(const PackedView& w) {
    const bool one_scale = w.col_scale.data == nullptr || w.shared_columns != 0;
    const bool wide = w.block_size >= w.cols || (w.block_size >= kLineMinBlock && w.block_size % 8 == 0);
    return w.groups == 2 && w.row_scale_type == ScaleType::u8 && one_scale && wide;
}

void make_line_plan(const Plan& exact, const LineKernels& kernels, LinePlan& plan) {
    const Job& whole = exact.job;
    const PackedView& w = *whole.weight;
    LineJob& job = plan.job;
    job.weight = &w;
    job.order = whole.order;
    job.blocks = whole.blocks;
    job.words = whole.words;
    job.salient_columns = whole.salient_columns;
    job.scales = whole.row_scales / whole.blocks;
    job.two_planes = w.salient_order == 2 && whole.salient_columns > 0;
    job.factor = whole.factor;
    plan.list.resize(static_cast<size_t>(job.blocks));
    for (int64_t b = 0; b < job.blocks; ++b) {
        LineBlock& block = plan.list[static_cast<size_t>(b)];
        block.first = b * w.block_size;
        block.columns = std::min(w.block_size, w.cols - block.first);
    }
    for (const Run& run : exact.runs) {
        if (!run.salient) continue;
        plan.list[static_cast<size_t>(run.block)].salient = run.length;
        plan.list[static_cast<size_t>(run.block)].second = run.second;
    }
    const int64_t step = 8 * kernels.bytes;
    plan.masks.resize(static_cast<size_t>(job.blocks * step));
    for (LineBlock& block : plan.list) {
        const int64_t steps = divide_up(block.columns, step), ends = block.salient % step;
        block.byte = block.first / 8;
        block.salient_steps = block.salient / step;
        block.mixed_steps = ends > 0 ? 1 : 0;
        block.other_steps = steps - block.salient_steps - block.mixed_steps;
        uint8_t* const mask = plan.masks.data() + (&block - plan.list.data()) * step;
        for (int64_t c = 0; c < ends; ++c) mask[c % 8 * kernels.bytes + c / 8] = 255;
        block.mask = mask;
        job.line += steps * step;
        job.widest = std::max(job.widest, steps * step);
    }
    // Rows of x lie behind one another. Where each begins in a row of the cache, 4096 bytes long, they spread best by
    // the golden section; were they a multiple of 4096 bytes apart, all would share a few places.
    job.line += (2496 - job.line % 4096 + 4096) % 4096;
    job.list = plan.list.data();
    for (int64_t i = 0; i < 64; ++i) {
        for (int64_t place = 0; place < 2; ++place) {
            const int64_t sign = i >> place & 1, group = i >> (2 + place) & 1, second = i >> (4 + place) & 1;
            const int64_t salient = w.salient_groups > 1 ? group * w.salient_order : 0;
            const int64_t scales[3] = {salient, salient + w.salient_order - 1,
                                       w.salient_groups * w.salient_order + group};
            for (int64_t kind = 0; kind < 3; ++kind)
                job.picks[kind][place][i] = static_cast<uint8_t>(scales[kind] + (sign != 0 ? 0 : 8));
            job.joined_picks[place][i] = static_cast<uint8_t>(sign + 2 * second + 4 * group);
        }
    }
    job.last_pair = w.salient_groups > 1 ? w.salient_order : 0;
    for (int64_t code = 0; code < 16; ++code) {
        const int64_t first = (code >> 2 & 1) * job.last_pair;
        job.joined[0][code] = static_cast<uint8_t>(first + ((code & 1) != 0 ? 0 : 8));
        job.joined[1][code] = static_cast<uint8_t>(first + 1 + ((code & 2) != 0 ? 0 : 8));
    }
    job.joins = job.two_planes && mostly_join(job);
    job.in_place = rows_in_place(whole, kLineSpare);
    job.x_bytes = std::min<int64_t>(near_cache_bytes() * 3 / 4, 24 * 1024);
    job.roomy = roomy_near_cache();
    // Each row: a line of a plane, its scales, or its part of the second plane, and what may be read past their end.
    const int64_t row = std::max({job.words * 8, job.blocks * job.scales, job.salient_columns / 8 + 2});
    job.row_copies = 4 * divide_up(row + kLineSpare, 64) * 64;
    job.scratch = job.row_copies + job.blocks * kMaxDigits * kExactLineTile * 4 * kernels.bytes;
}

}  // namespace arb
