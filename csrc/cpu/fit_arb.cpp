// ARB on sorted rows. Both planes of a row are functions of the weight alone, constant between a few cuts, so an
// iteration of Algorithm 1 needs only how many members lie between the cuts and their sum: running sums answer that,
// and no iteration touches the weights again. Oracle: arbllm_kernels/methods/arb.py and billm.py.
#include <algorithm>
#include <cmath>
#include <limits>
#include <new>

#include "arb/solver.h"
#include "kernels.h"
#include "pool.h"
#include "sorted_rows.h"

namespace arb {
namespace {

constexpr double kEps = 1e-8;
constexpr int kClasses = 4;  // signs (B1, B2) in the order --, -+, +-, ++
constexpr double kSign1[kClasses] = {-1, -1, 1, 1};
constexpr double kSign2[kClasses] = {-1, 1, -1, 1};

// The classes of a row: class_of[i] between cut i - 1 (inclusive) and cut i (exclusive).
struct Cuts {
    double cut[kClasses - 1];
    int32_t class_of[kClasses];
};

struct Row {
    double mean, scale1, scale2;
    Cuts cuts;
};

// What an iteration needs to know of the members of each class.
struct Sums {
    double count[kClasses] = {};
    double sum[kClasses] = {};

    // Cuts move little from one iteration to the next, so each is searched from where it was.
    Sums(const SortedRow& row, const Cuts& cuts, int64_t* near) {
        int64_t begin = 0;
        for (int i = 0; i < kClasses; ++i) {
            int64_t end = row.count;
            if (i < kClasses - 1) end = near[i] = std::max(begin, row.below(cuts.cut[i], near[i]));
            count[cuts.class_of[i]] += static_cast<double>(end - begin);
            sum[cuts.class_of[i]] += row.sum(end) - row.sum(begin);
            begin = end;
        }
    }

    static double dot(const double* a, const double* b) {
        return a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
    }
};

// sum |w - x| over a class of members on one side of x.
double distance(const Sums& sums, int which, double x) { return std::abs(sums.sum[which] - x * sums.count[which]); }

constexpr double kNever = std::numeric_limits<double>::infinity();

Cuts one_cut(double mean) { return {{mean, kNever, kNever}, {0, 2, 2, 2}}; }

// Residual binarization (BiLLM), where ARB starts. Order 1 leaves scale2 = 0 and uses the classes -- and +- only.
Row start(const SortedRow& row, int64_t order, int64_t* near) {
    const double count = static_cast<double>(row.count);
    Row fit{row.sum(row.count) / count, 0, 0, {}};
    fit.cuts = one_cut(fit.mean);
    const Sums first(row, fit.cuts, near);
    fit.scale1 = (distance(first, 0, fit.mean) + distance(first, 2, fit.mean)) / count;
    if (order == 1) return fit;
    const double mean2 = fit.scale1 * (first.count[0] - first.count[2]) / count;
    const double low = fit.mean - fit.scale1 + mean2, high = fit.mean + fit.scale1 + mean2;
    fit.cuts = {{std::min(low, fit.mean), fit.mean, std::max(high, fit.mean)}, {0, 1, 2, 3}};
    const Sums second(row, fit.cuts, near);
    fit.scale2 =
        (distance(second, 0, low) + distance(second, 1, low) + distance(second, 2, high) + distance(second, 3, high)) /
        count;
    fit.mean += mean2;
    return fit;
}

// Every member takes the nearest of the four levels: cuts half way between neighbouring ones. Of equal levels the first
// class takes all.
Cuts nearest_of_four(const Row& fit) {
    double level[kClasses];
    int order[kClasses];
    int kept = 0;
    for (int c = 0; c < kClasses; ++c) {
        const double value = kSign1[c] * fit.scale1 + kSign2[c] * fit.scale2;
        int at = kept;
        while (at > 0 && value < level[at - 1]) --at;
        if (at > 0 && value == level[at - 1]) continue;
        for (int i = kept; i > at; --i) {
            level[i] = level[i - 1];
            order[i] = order[i - 1];
        }
        level[at] = value;
        order[at] = c;
        ++kept;
    }
    Cuts cuts;
    for (int i = 0; i < kClasses; ++i) {
        cuts.class_of[i] = order[std::min(i, kept - 1)];
        if (i > 0) cuts.cut[i - 1] = i < kept ? fit.mean + (level[i - 1] + level[i]) / 2 : kNever;
    }
    return cuts;
}

void refine(const SortedRow& row, int64_t order, Row& fit, int64_t* near) {
    const Sums sums(row, fit.cuts, near);
    const double count = static_cast<double>(row.count), exact = count + kEps;
    const double b1 = Sums::dot(kSign1, sums.count), b1w = Sums::dot(kSign1, sums.sum);
    if (order == 1) {
        fit.mean = (row.sum(row.count) - fit.scale1 * b1) / count;
        fit.scale1 = (b1w - fit.mean * b1) / exact;
        fit.cuts = one_cut(fit.mean);
        return;
    }
    const double b2 = Sums::dot(kSign2, sums.count), b2w = Sums::dot(kSign2, sums.sum);
    const double b12 = sums.count[0] - sums.count[1] - sums.count[2] + sums.count[3];
    fit.mean = (row.sum(row.count) - fit.scale1 * b1 - fit.scale2 * b2) / count;
    fit.scale1 = (b1w - fit.mean * b1 - fit.scale2 * b12) / exact;
    fit.scale2 = (b2w - fit.mean * b2 - fit.scale1 * b12) / exact;
    fit.cuts = nearest_of_four(fit);
}

struct Fit {
    const Entries& zone;
    const SolverKernels& kernels;
    int64_t order, iters;
    uint8_t* planes;
    float *row_scale, *mean;
};

// The smallest float that is not below x.
float round_up(double x) {
    const float near = static_cast<float>(x);
    return static_cast<double>(near) < x ? std::nextafter(near, std::numeric_limits<float>::infinity()) : near;
}

void store(const Fit& out, int64_t number, const Row& fit) {
    const int64_t cols = out.zone.cols, plane = out.zone.rows * cols;
    out.mean[number] = static_cast<float>(fit.mean);
    out.row_scale[number * out.order] = static_cast<float>(fit.scale1);
    if (out.order == 2) out.row_scale[number * 2 + 1] = static_cast<float>(fit.scale2);
    float cut[kClasses - 1];
    for (int i = 0; i < kClasses - 1; ++i) cut[i] = round_up(fit.cuts.cut[i]);
    uint8_t* first = out.planes + number * cols;
    out.kernels.classify(out.zone.s + number * cols, cols, cut, fit.cuts.class_of, first,
                         out.order == 2 ? first + plane : nullptr);
}

Status fit_rows(void* context, int64_t begin, int64_t end) {
    const Fit& out = *static_cast<const Fit*>(context);
    try {
        SortedRows sorted(out.zone.cols, out.kernels);
        for (int64_t first = begin; first < end; first += kLanes) {
            sorted.take(out.zone, first);
            for (int64_t number = first; number < std::min(first + kLanes, end); ++number) {
                const SortedRow row = sorted.row(number - first);
                int64_t near[kClasses - 1] = {};
                Row fit{0, 0, 0, one_cut(0)};
                if (row.count > 0) {
                    fit = start(row, out.order, near);
                    for (int64_t t = 0; t < out.iters; ++t) refine(row, out.order, fit, near);
                }
                store(out, number, fit);
            }
        }
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
    return Status::ok;
}

}  // namespace

Status fit_arb(const Entries& zone, int64_t order, int64_t iters, int64_t threads, uint8_t* planes, float* row_scale,
               float* mean) {
    if (!is_valid(zone) || threads < 1 || order < 1 || order > 2 || iters < 0) return Status::bad_range;
    const Isa* isa = nullptr;
    if (const Status status = active_kernels(&isa); status != Status::ok) return status;
    Fit fit{zone, *isa->solver, order, iters, planes, row_scale, mean};
    return parallel_for(zone.rows, kLanes, threads, fit_rows, &fit);
}

}  // namespace arb
