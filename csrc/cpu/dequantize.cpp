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
    float* out;
};

Status dequantize_rows(void* context, int64_t begin, int64_t end) {
    const Rows& r = *static_cast<const Rows*>(context);
    const std::unique_ptr<float[]> scratch(new (std::nothrow) float[static_cast<size_t>(r.job->scratch)]);
    if (scratch == nullptr) return Status::out_of_memory;
    float* out = r.out + begin * r.job->weight->cols;
    r.kernels->dequantize(*r.job, r.prepared, r.from, r.first + begin, r.first + end, scratch.get(), out);
    return Status::ok;
}

// Where each column is stored.
std::vector<int32_t> inverse(const std::vector<int32_t>& order) {
    std::vector<int32_t> from(order.size());
    for (size_t i = 0; i < order.size(); ++i) from[static_cast<size_t>(order[i])] = static_cast<int32_t>(i);
    return from;
}

}  // namespace

Status dequantize(const PackedView& weight, int64_t begin, int64_t end, Columns columns, float* out, int64_t threads,
                  const char** ran) {
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
        Rows rows{kernels, &plan.job, prepared.get(), from.empty() ? nullptr : from.data(), begin, out};
        const int64_t useful = std::max<int64_t>(1, (end - begin) * weight.cols / kWeightsPerThread);
        return parallel_for(end - begin, 1, std::min(threads, useful), dequantize_rows, &rows);
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
}

}  // namespace arb
