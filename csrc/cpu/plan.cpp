#include "plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace arb {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool layout_is_valid(const PackedView& w) {
    const bool groups = w.groups == 1 || w.groups == 2 || w.groups == kMaxGroups;
    const bool whole = w.row_scale_type == ScaleType::u8;
    if (w.scale_type == ScaleType::u8 || (whole && w.mean.data != nullptr)) return false;
    if (w.shared_columns < 0 || w.shared_columns > 1 || (w.shared_columns == 1 && w.col_scale.data == nullptr)) {
        return false;
    }
    return w.rows >= 1 && w.rows <= kMaxDim && w.cols >= 1 && w.cols <= kMaxDim && w.block_size >= 1 &&
           w.block_size <= kMaxBlock && groups && (w.salient_groups == 1 || w.salient_groups == w.groups) &&
           (w.salient_order == 1 || w.salient_order == 2) && w.exponent >= -kMaxExponent && w.exponent <= kMaxExponent;
}

bool copy_order(const PackedView& w, std::vector<int32_t>& order) {
    order.resize(static_cast<size_t>(w.cols));
    std::memcpy(order.data(), w.order.data, order.size() * 4);
    uint32_t largest = 0;
    for (const int32_t column : order) largest = std::max(largest, static_cast<uint32_t>(column));
    return largest < static_cast<uint32_t>(w.cols);
}

// Everything about the sizes that follows from the layout alone.
void set_sizes(const PackedView& w, Job& job) {
    job.weight = &w;
    job.blocks = divide_up(w.cols, w.block_size);
    job.group_bits = w.groups == 4 ? 2 : w.groups - 1;
    job.words = divide_up(w.cols, kWordBits);
    job.row_scales = job.blocks * (w.salient_groups * w.salient_order + w.groups);
    job.means = w.mean.data != nullptr ? job.blocks * (w.salient_groups + w.groups) : 0;
    job.factor = std::ldexp(1.0f, static_cast<int>(w.exponent));
    const bool scaled = w.col_scale.data != nullptr;
    const int64_t raw = job.means > 0 ? 1 : 0;
    job.salient_copies = scaled ? w.salient_groups * w.salient_order + raw : 1;
    job.other_copies = scaled ? w.groups + raw : 1;
}

Status add_runs(const PackedView& w, int64_t width, Plan& plan) {
    Job& job = plan.job;
    const auto* counts = static_cast<const unsigned char*>(w.counts.data);
    plan.runs.reserve(static_cast<size_t>(2 * job.blocks));
    const auto add = [&](Run run) {
        if (run.length == 0) return;
        plan.runs.push_back(run);
        job.lanes += divide_up(run.length, width) * width * (run.salient ? job.salient_copies : job.other_copies);
    };
    for (int64_t b = 0; b < job.blocks; ++b) {
        const int64_t start = b * w.block_size;
        const int64_t columns = w.cols - start < w.block_size ? w.cols - start : w.block_size;
        int32_t count;
        std::memcpy(&count, counts + b * 4, 4);
        if (count < 0 || count > columns) return Status::bad_counts;
        add({start, count, job.lanes, b, job.salient_columns, true});
        add({start + count, columns - count, job.lanes, b, 0, false});
        job.salient_columns += count;
    }
    job.runs = plan.runs.data();
    job.run_count = static_cast<int64_t>(plan.runs.size());
    return Status::ok;
}

bool lengths_match(const PackedView& w, const Job& job) {
    const auto optional = [](const Buffer& buffer, int64_t length) {
        return buffer.data == nullptr || buffer.length == length;
    };
    const bool scaled2 = w.col_scale.data != nullptr && w.salient_order == 2 && w.shared_columns == 0;
    const int64_t bases = w.row_scale_type == ScaleType::u8 ? w.rows : 0;
    return w.sign.length == w.rows * job.words * 2 && w.group.length == w.rows * job.group_bits * job.words * 2 &&
           w.second.length == job.second_words * 2 && w.row_scale.length == w.rows * job.row_scales &&
           w.row_base.length == bases && optional(w.mean, w.rows * job.means) &&
           optional(w.col_scale, (w.shared_columns != 0 ? 1 : w.groups) * w.cols) &&
           optional(w.col_scale2, w.salient_groups * job.salient_columns) &&
           (job.salient_columns == 0 || (w.col_scale2.data != nullptr) == scaled2);
}

}  // namespace

Status make_plan(const PackedView& w, const Kernels& kernels, Plan& plan) {
    const int64_t width = kernels.width;
    if (!layout_is_valid(w)) return Status::bad_layout;
    Job& job = plan.job;
    set_sizes(w, job);
    if (w.order.length != w.cols || w.counts.length != job.blocks) return Status::bad_length;
    if (!copy_order(w, plan.order)) return Status::bad_order;
    job.order = plan.order.data();
    if (const Status status = add_runs(w, width, plan); status != Status::ok) return status;
    job.second_words = w.salient_order == 2 ? divide_up(w.rows * job.salient_columns, kWordBits) : 0;
    if (!lengths_match(w, job)) return Status::bad_length;
    // Scales and means of a row tile as floats, each row padded to whole vectors; a dequantized row, whose
    // last run is padded too.
    const int64_t scales = divide_up(job.row_scales, width) * width + divide_up(job.means, width) * width;
    job.scratch = kRowTile * scales + w.cols + width;
    return Status::ok;
}

const char* message(Status status) {
    switch (status) {
        case Status::ok:
            return "success";
        case Status::bad_layout:
            return "the layout is out of range";
        case Status::bad_length:
            return "a tensor does not have the size its layout demands; PackedWeight.validate names it";
        case Status::bad_order:
            return "the column order names a column that does not exist";
        case Status::bad_counts:
            return "the salient counts do not fit the blocks";
        case Status::bad_range:
            return "the row range or batch size is out of range";
        case Status::out_of_memory:
            return "not enough memory for the working buffers";
        case Status::unknown_isa:
            return "unknown instruction set";
        case Status::missing_isa:
            return "this processor or its operating system lacks the instruction set";
    }
    return "unknown status";
}

int64_t rows_in_place(const Job& job, int64_t spare) {
    const PackedView& w = *job.weight;
    const auto size = [](ScaleType type) -> int64_t {
        return type == ScaleType::u8 ? 1 : type == ScaleType::fp16 ? 2 : 4;
    };
    int64_t rows = w.rows;
    const auto bound = [&](const Buffer& buffer, int64_t bytes, int64_t row_bits) {
        if (row_bits > 0) rows = std::min(rows, (buffer.length * bytes - spare) * 8 / row_bits - 1);
    };
    bound(w.sign, 4, job.words * 64);
    bound(w.group, 4, job.group_bits * job.words * 64);
    bound(w.second, 4, w.salient_order == 2 ? job.salient_columns : 0);
    bound(w.row_scale, size(w.row_scale_type), job.row_scales * size(w.row_scale_type) * 8);
    bound(w.mean, size(w.scale_type), job.means * size(w.scale_type) * 8);
    return std::max<int64_t>(rows, 0);
}

}  // namespace arb
