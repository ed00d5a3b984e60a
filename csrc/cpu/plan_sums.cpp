#include <algorithm>

#include "arb/gemm.h"
#include "cache.h"
#include "plan.h"

namespace arb {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Units of all blocks, and for each the number of its block.
void add_units(const Plan& exact, SumsPlan& plan, std::vector<int64_t>& blocks) {
    const PackedView& w = *exact.job.weight;
    std::vector<int64_t> salient(static_cast<size_t>(exact.job.blocks));
    for (const Run& run : exact.runs) {
        if (run.salient) salient[static_cast<size_t>(run.block)] = run.length;
    }
    int64_t second = 0;
    for (int64_t b = 0; b < exact.job.blocks; ++b) {
        const int64_t first = b * w.block_size, columns = std::min(w.block_size, w.cols - first);
        for (int64_t at = 0; at < columns; at += kUnit) {
            const int64_t here = std::clamp<int64_t>(salient[static_cast<size_t>(b)] - at, 0, kUnit);
            plan.units.push_back({first + at, std::min(kUnit, columns - at), here, 0, 0, second});
            blocks.push_back(b);
            second += here;
        }
    }
}

// Deals salient columns to units, and notes for each unit the byte of a plane at which those dealt to it begin.
void deal(const std::vector<int64_t>& blocks, SumsPlan& plan, std::vector<int64_t>& bytes) {
    const int64_t count = static_cast<int64_t>(blocks.size());
    for (int64_t begin = 0, end; begin < count; begin = end) {
        SumsUnit* const units = plan.units.data() + begin;
        int64_t salient = 0;
        const auto belongs = [&](int64_t u) {
            return u / kDealtUnits == begin / kDealtUnits &&
                   blocks[static_cast<size_t>(u)] == blocks[static_cast<size_t>(begin)];
        };
        for (end = begin; end < count && belongs(end); ++end) salient += plan.units[static_cast<size_t>(end)].salient;
        const int64_t share = divide_up(divide_up(salient, end - begin), 8) * 8, second = units[0].second;
        for (int64_t n = 0; n < end - begin; ++n) {
            const int64_t before = std::min(n * share, salient);
            units[n].dealt = std::min(share, salient - before);
            units[n].from = units[0].first + before;
            units[n].second = second + before;
            bytes.push_back(begin * kUnit / 8 + before / 8);
        }
    }
}

// `bytes` of the part's units, in their order.
void add_slices(const SumsUnit* units, const int64_t* bytes, int64_t lanes, SumsPlan& plan, SumsPart& part) {
    int64_t most = 0;
    for (int64_t n = 0; n < lanes; ++n) most = std::max(most, units[n].dealt);
    part.slices = divide_up(most, 32);
    if (part.slices > 0) part.width = 2 * divide_up(divide_up(most, part.slices), 8);
    const int64_t columns = 4 * part.width;
    for (int64_t s = 0; s < part.slices; ++s) {
        SumsSlice slice{};
        BitPicks picks{};
        std::vector<int32_t> first(static_cast<size_t>(lanes)), second(first);
        slice.near = slice.near_first = lanes == 16;
        slice.byte = slice.quarter[0] = slice.quarter[1] = slice.quarter[2] = slice.quarter[3] = -1;
        for (int64_t n = 0; n < lanes; ++n) {  // their bits follow one another
            const int64_t count = std::min<int64_t>(units[n].dealt - s * columns, columns);
            if (count <= 0) continue;
            const int64_t lane = n % (lanes / 4) * 4 + n / (lanes / 4);
            const int64_t bit = units[n].second + s * columns, byte = bytes[n] + s * columns / 8;
            first[static_cast<size_t>(lane)] = static_cast<int32_t>(byte);
            second[static_cast<size_t>(lane)] = static_cast<int32_t>(bit);
            slice.wide |= count > 25;
            if (lanes < 16) continue;
            int64_t& quarter = slice.quarter[lane % 4];
            if (slice.byte < 0) slice.byte = bit / 8;
            if (quarter < 0) quarter = byte;
            slice.near = slice.near && !slice.wide && (bit + count - 1) / 8 - slice.byte < 64;
            slice.near_first = slice.near_first && byte - quarter + divide_up(count, 8) <= 64;
            for (int64_t i = 0; i < 4; ++i) {
                picks.byte[lane * 4 + i] = static_cast<uint8_t>((bit / 8 - slice.byte + i) % 64);
                picks.bit[lane * 4 + i] = static_cast<uint8_t>((lane % 2 * 32 + bit % 8 + i * part.width) % 64);
                picks.first[lane * 4 + i] = static_cast<uint8_t>((byte - quarter + i) % 64);
            }
        }
        for (int64_t& quarter : slice.quarter) quarter = std::max<int64_t>(quarter, 0);  // of nothing
        // Where all this lies is filled in when the vectors have stopped growing.
        plan.places.insert(plan.places.end(), first.begin(), first.end());
        plan.places.insert(plan.places.end(), second.begin(), second.end());
        plan.picks.push_back(picks);
        plan.slices.push_back(slice);
    }
}

void add_passes(const PackedView& w, SumsJob& job) {
    const bool scaled = w.col_scale.data != nullptr, own = scaled && w.shared_columns == 0;
    const auto add = [&](bool salient, int64_t groups, int64_t plane, int64_t first, int64_t step, int64_t last_mean) {
        SumsPass& pass = job.pass[job.passes++];
        pass.salient = salient;
        for (int64_t g = 0; g < groups; ++g) {
            const int64_t kind = first + g * step;
            pass.term[pass.terms++] = own ? SumsTerm{kind, plane, g} : SumsTerm{kind, scaled ? 1 : 0, 0};
        }
        if (job.means > 0 && plane == 1) pass.term[pass.terms++] = {job.scales + last_mean, 0, 0};
    };
    add(false, w.groups, 1, w.salient_groups * w.salient_order, 1, job.means - 1);
    if (job.salient_columns > 0) add(true, w.salient_groups, 1, 0, w.salient_order, w.salient_groups - 1);
    if (job.two_planes) add(true, w.salient_groups, 2, 1, w.salient_order, 0);
}

}  // namespace

bool covers_sums(const PackedView& w) { return w.block_size >= kSumsMinBlock || w.block_size >= w.cols; }

void make_sums_plan(const Plan& exact, const SumsKernels& kernels, SumsPlan& plan) {
    const Job& whole = exact.job;
    const PackedView& w = *whole.weight;
    const int64_t lanes = kernels.lanes;
    SumsJob& job = plan.job;
    job.weight = &w;
    job.order = whole.order;
    job.words = whole.words;
    job.salient_columns = whole.salient_columns;
    job.blocks = whole.blocks;
    job.scales = whole.row_scales / whole.blocks;
    job.means = whole.means / whole.blocks;
    job.two_planes = w.salient_order == 2 && whole.salient_columns > 0;
    job.block_units = whole.blocks == 1 ? kDealtUnits : divide_up(w.block_size, kUnit);
    job.aligned = w.block_size % kUnit == 0 || whole.blocks == 1;
    job.even = kDealtUnits % job.block_units == 0 || job.block_units % kDealtUnits == 0;
    job.factor = whole.factor;
    job.in_place = rows_in_place(whole, kSumsSpare);
    job.x_bytes = near_cache_bytes() * 5 / 6;  // 40 KiB of 48
    add_passes(w, job);
    std::vector<int64_t> blocks, bytes;
    add_units(exact, plan, blocks);
    deal(blocks, plan, bytes);
    job.parts = divide_up(static_cast<int64_t>(plan.units.size()), lanes);
    plan.units.resize(static_cast<size_t>(job.parts * lanes));
    blocks.resize(plan.units.size());
    bytes.resize(plan.units.size());
    for (int64_t q = 0; q < job.parts; ++q) {
        SumsPart part{};
        part.line = job.lines;
        part.block = blocks[static_cast<size_t>(q * lanes)];
        add_slices(plan.units.data() + q * lanes, bytes.data() + q * lanes, lanes, plan, part);
        for (int64_t n = 0; n < lanes; ++n) {
            if (plan.units[static_cast<size_t>(q * lanes + n)].columns > 0) part.steps = n / (lanes / 4) + 1;
        }
        for (int64_t p = 0; p < job.passes; ++p) {
            job.lines += job.pass[p].terms * (job.pass[p].salient ? part.slices : 4);
        }
        plan.parts.push_back(part);
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const auto unit = static_cast<size_t>(q * lanes + lane % 4 * (lanes / 4) + lane / 4);
            plan.scale_index.push_back(static_cast<int32_t>(blocks[unit] * job.scales));
            plan.mean_index.push_back(static_cast<int32_t>(blocks[unit] * job.means));
        }
    }
    int64_t slice = 0;
    for (SumsPart& part : plan.parts) {
        part.slice = plan.slices.data() + slice;
        for (int64_t s = 0; s < part.slices; ++s, ++slice) {
            SumsSlice& here = plan.slices[static_cast<size_t>(slice)];
            here.bytes = plan.places.data() + slice * 2 * lanes;
            here.bits = here.bytes + lanes;
            here.picks = plan.picks.data() + slice;
        }
    }
    job.units = plan.units.data();
    job.part = plan.parts.data();
    job.scale_index = plan.scale_index.data();
    job.mean_index = plan.mean_index.data();
    const int64_t numbers = job.blocks * std::max(job.scales, job.means);
    job.room =
        std::max({job.parts * lanes * 16, job.words * 8, job.salient_columns / 8 + 16, numbers * 4}) + kSumsSpare;
    job.room = divide_up(job.room, 64) * 64;
}

}  // namespace arb
