// ARB-X (equation 11): with the planes held, mean and scales of a row are the coefficients of a few vectors, each in
// turn the best given the others. Oracle: `alternate` in arbllm_kernels/methods/arb_x.py.
#include "arb/solver.h"
#include "pool.h"

namespace arb {
namespace {

constexpr double kEps = 1e-10;
constexpr int64_t kGrain = 256;  // rows worth another thread

struct Fit {
    const float* gram;
    int64_t vectors, iters;
    float* coefficients;
};

Status fit_rows(void* context, int64_t begin, int64_t end) {
    const Fit& fit = *static_cast<const Fit*>(context);
    const int64_t count = fit.vectors, side = count + 1;
    for (int64_t row = begin; row < end; ++row) {
        const float* gram = fit.gram + row * side * side;
        float* out = fit.coefficients + row * count;
        double c[kMaxVectors] = {};
        for (int64_t i = 0; i < count; ++i) c[i] = static_cast<double>(out[i]);
        for (int64_t t = 0; t < fit.iters; ++t) {
            for (int64_t i = 0; i < count; ++i) {
                const float* basis = gram + (i + 1) * side;  // the target first, then the vectors
                double left = static_cast<double>(basis[0]);
                for (int64_t o = 0; o < count; ++o) left -= o == i ? 0.0 : static_cast<double>(basis[o + 1]) * c[o];
                c[i] = left / (static_cast<double>(basis[i + 1]) + kEps);
            }
        }
        for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(c[i]);
    }
    return Status::ok;
}

}  // namespace

Status fit_arb_x(const float* gram, int64_t rows, int64_t vectors, int64_t iters, int64_t threads,
                 float* coefficients) {
    if (rows < 1 || vectors < 1 || vectors > kMaxVectors || iters < 0 || threads < 1) return Status::bad_range;
    Fit fit{gram, vectors, iters, coefficients};
    return parallel_for(rows, kGrain, threads, fit_rows, &fit);
}

}  // namespace arb
