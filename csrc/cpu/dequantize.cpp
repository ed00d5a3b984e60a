#include "arb/dequantize.h"

#include <algorithm>
#include <memory>
#include <new>

#include "plan.h"
#include "pool.h"

namespace arb {
namespace {

constexpr int64_t kWeightsPerThread = 1 << 18;  // as in gemm.cpp; dequantizing costs about twice as much per weight

struct Rows {
    const Kernels* kernels;
    const Job* job;
    const float* prepared;
    bool scatter;
    int64_t first;
    float* out;
};

Status dequantize_rows(void* context, int64_t begin, int64_t end) {
    const Rows& r = *static_cast<const Rows*>(context);
    const std::unique_ptr<float[]> scratch(new (std::nothrow) float[static_cast<size_t>(r.job->scratch)]);
    if (scratch == nullptr) return Status::out_of_memory;
    float* out = r.out + begin * r.job->weight->cols;
    r.kernels->dequantize(*r.job, r.prepared, r.scatter, r.first + begin, r.first + end, scratch.get(), out);
    return Status::ok;
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
        Rows rows{kernels, &plan.job, prepared.get(), columns == Columns::original, begin, out};
        const int64_t useful = std::max<int64_t>(1, (end - begin) * weight.cols / kWeightsPerThread);
        return parallel_for(end - begin, 1, std::min(threads, useful), dequantize_rows, &rows);
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
}

}  // namespace arb
