#include "arb/dequantize.h"

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "plan.h"
#include "pool.h"

namespace arb {
namespace {

constexpr int64_t kWeightsPerThread = 1 << 17;

struct Rows {
    const Kernels* kernels;
    const Job* job;
    const float* prepared;
    const int32_t* from;
    int64_t first;
    Element element;
    void* out;
};

Status dequantize_rows(void* context, int64_t begin, int64_t end) {
    const Rows& r = *static_cast<const Rows*>(context);
    const int64_t cols = r.job->weight->cols;
    const bool single = r.element == Element::fp32;
    const int64_t floats = r.job->scratch + (single ? 0 : cols);
    const std::unique_ptr<float[]> scratch(new (std::nothrow) float[static_cast<size_t>(floats)]);
    if (scratch == nullptr) return Status::out_of_memory;
    const auto rows = [&](int64_t from, int64_t to, float* out) {
        r.kernels->dequantize(*r.job, r.prepared, r.from, r.first + from, r.first + to, scratch.get(), out);
    };
    if (single) {
        rows(begin, end, static_cast<float*>(r.out) + begin * cols);
        return Status::ok;
    }
    float* const line = scratch.get() + r.job->scratch;
    for (int64_t i = begin; i < end; ++i) {  // one by one, so that floats stay in the cache
        rows(i, i + 1, line);
        r.kernels->narrow(line, cols, r.element, static_cast<uint16_t*>(r.out) + i * cols);
    }
    return Status::ok;
}

// Where each column is stored.
std::vector<int32_t> inverse(const std::vector<int32_t>& order) {
    std::vector<int32_t> from(order.size());
    for (size_t i = 0; i < order.size(); ++i) from[static_cast<size_t>(order[i])] = static_cast<int32_t>(i);
    return from;
}

}  // namespace

Status dequantize(const PackedView& weight, int64_t begin, int64_t end, Columns columns, Element element, void* out,
                  int64_t threads, const char** ran) {
    if (begin < 0 || end < begin || end > weight.rows || threads < 1) return Status::bad_range;
    const Isa* isa = nullptr;
    if (const Status status = active_kernels(&isa); status != Status::ok) return status;
    if (ran != nullptr) *ran = isa->name;
    const Kernels* kernels = isa->exact;
    try {
        Plan plan;
        if (const Status status = make_plan(weight, *kernels, plan); status != Status::ok) return status;
        const std::unique_ptr<float[]> prepared(new float[static_cast<size_t>(plan.job.lanes)]);
        kernels->prepare(plan.job, nullptr, prepared.get());
        const std::vector<int32_t> from = columns == Columns::original ? inverse(plan.order) : std::vector<int32_t>();
        Rows rows{kernels, &plan.job, prepared.get(), from.empty() ? nullptr : from.data(), begin, element, out};
        const int64_t useful = std::max<int64_t>(1, (end - begin) * weight.cols / kWeightsPerThread);
        return parallel_for(end - begin, 1, std::min(threads, useful), dequantize_rows, &rows);
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
}

}  // namespace arb
