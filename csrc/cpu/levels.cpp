// Codes with shared column scales: the alternating fit of a part, and the column by column sweep that finds its codes.
// Oracle: arbllm_kernels/methods/levels.py (`fit`, `sweep`); the same steps in the same order, sums in double.
//
// Everything is transposed, [columns, rows]: a step works on one column, a vector over rows. Rows are independent but
// for the column scale, one number that a step finds from all rows before it applies it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "arb/solver.h"
#include "pool.h"

namespace arb {
namespace {

constexpr int64_t kWide = 8;      // independent sums of a reduction
constexpr int64_t kGrain = 2048;  // rows worth another thread in one step of a sweep

// The nearest fp16 value, ties to even; infinite where fp16 would be.
float round_to_half(float x) {
    const float magnitude = std::fabs(x);
    float rounded;
    if (magnitude < 0x1p-14f) {
        rounded = (magnitude + 0.75f) - 0.75f;  // a float of that size counts in fp16's smallest steps, 2^-24
    } else {
        uint32_t bits;
        std::memcpy(&bits, &magnitude, sizeof bits);
        bits = (bits + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu;
        std::memcpy(&rounded, &bits, sizeof rounded);
        if (rounded > 65504.0f) rounded = HUGE_VALF;
    }
    return std::copysign(rounded, x);
}

// The magnitudes a column's weights can take: row scales times the column scale, the format's order of operations.
// Salient columns have four, first plane plus or minus second plane in two groups; the others two.
template <int kLevels>
struct Magnitudes {
    const float* row[kLevels];

    // Row scales [6, rows]; the last two belong to columns that are not salient.
    Magnitudes(const float* scales, int64_t rows) {
        for (int z = 0; z < kLevels; ++z) row[z] = scales + (kLevels == 4 ? z : 4 + z) * rows;
    }

    void at(int64_t i, float col, float* level) const {
        if constexpr (kLevels == 4) {
            const float first = row[0][i] * col, second = row[1][i] * col, third = row[2][i] * col,
                        fourth = row[3][i] * col;
            level[0] = first + second;
            level[1] = first - second;
            level[2] = third + fourth;
            level[3] = third - fourth;
        } else {
            level[0] = row[0][i] * col;
            level[1] = row[1][i] * col;
        }
    }
};

// Magnitudes of a fit, stored as they are: [levels, rows].
template <int kLevels>
struct Plain {
    const float* row[kLevels];

    Plain(const float* levels, int64_t rows) {
        for (int z = 0; z < kLevels; ++z) row[z] = levels + z * rows;
    }

    void at(int64_t i, float col, float* level) const {
        for (int z = 0; z < kLevels; ++z) level[z] = row[z][i] * col;
    }
};

// Which of the levels is nearest to `magnitude`; the first wins a tie.
template <int kLevels>
int32_t nearest(float magnitude, const float* level) {
    int32_t index = 0;
    float best = std::fabs(magnitude - level[0]);
    for (int32_t z = 1; z < kLevels; ++z) {
        const float distance = std::fabs(magnitude - level[z]);
        index = distance < best ? z : index;
        best = distance < best ? distance : best;
    }
    return index;
}

template <int kLevels>
float pick(const float* level, int32_t index) {
    float value = level[0];
    for (int32_t z = 1; z < kLevels; ++z) value = index == z ? level[z] : value;
    return value;
}

// The column scale that fits a column best when every weight keeps its nearest level: [product, square] sums.
template <int kLevels, typename Source>
void add_sums(const Source& source, const float* target, float col, int64_t begin, int64_t end, double* sums) {
    double product[kWide] = {}, square[kWide] = {};
    const auto add = [&](int64_t i, int64_t lane) {
        float level[kLevels], unit[kLevels];
        source.at(i, col, level);
        source.at(i, 1.0f, unit);
        const float magnitude = std::fabs(target[i]);
        const double value = static_cast<double>(pick<kLevels>(unit, nearest<kLevels>(magnitude, level)));
        product[lane] += static_cast<double>(magnitude) * value;
        square[lane] += value * value;
    };
    int64_t i = begin;
    for (; i + kWide <= end; i += kWide) {
        for (int64_t lane = 0; lane < kWide; ++lane) add(i + lane, lane);
    }
    for (; i < end; ++i) add(i, 0);
    for (int64_t lane = 0; lane < kWide; ++lane) {
        sums[0] += product[lane];
        sums[1] += square[lane];
    }
}

float scale_of(const double* sums, float before) {
    const auto scale = static_cast<float>(sums[0] / sums[1]);
    return sums[0] > 0 && sums[1] > 0 ? scale : before;
}

// ---- fit

struct Fit {
    const LevelsFit& part;
    std::vector<double> product, square;  // [levels, rows]: numerators and denominators of the row magnitudes
};

template <int kLevels>
Status fit_columns(void* context, int64_t begin, int64_t end) {
    const LevelsFit& part = static_cast<Fit*>(context)->part;
    const Plain<kLevels> source(part.levels, part.rows);
    for (int64_t j = begin; j < end; ++j) {
        double sums[2] = {};
        add_sums<kLevels>(source, part.weight + j * part.rows, part.col[j], 0, part.rows, sums);
        part.col[j] = scale_of(sums, part.col[j]);
    }
    return Status::ok;
}

template <int kLevels>
Status fit_rows(void* context, int64_t begin, int64_t end) {
    Fit& fit = *static_cast<Fit*>(context);
    const LevelsFit& part = fit.part;
    const Plain<kLevels> source(part.levels, part.rows);
    double *product[kLevels], *square[kLevels];
    for (int z = 0; z < kLevels; ++z) {
        product[z] = &fit.product[static_cast<size_t>(z * part.rows)];
        square[z] = &fit.square[static_cast<size_t>(z * part.rows)];
        std::fill(product[z] + begin, product[z] + end, 0.0);
        std::fill(square[z] + begin, square[z] + end, 0.0);
    }
    for (int64_t j = 0; j < part.cols; ++j) {
        const float *weight = part.weight + j * part.rows, col = part.col[j];
        const double importance = static_cast<double>(part.importance[j]) * static_cast<double>(col);
        const double squared = importance * static_cast<double>(col);
        for (int64_t i = begin; i < end; ++i) {
            float level[kLevels];
            source.at(i, col, level);
            const float magnitude = std::fabs(weight[i]);
            const int32_t index = nearest<kLevels>(magnitude, level);
            for (int32_t z = 0; z < kLevels; ++z) {
                product[z][i] += index == z ? importance * static_cast<double>(magnitude) : 0.0;
                square[z][i] += index == z ? squared : 0.0;
            }
        }
    }
    for (int z = 0; z < kLevels; ++z) {
        float* level = part.levels + z * part.rows;
        for (int64_t i = begin; i < end; ++i) {
            if (square[z][i] > 0) level[i] = static_cast<float>(product[z][i] / square[z][i]);
        }
    }
    return Status::ok;
}

template <int kLevels>
Status run_fit(Fit& fit, int64_t iters, int64_t threads) {
    for (int64_t t = 0; t < iters; ++t) {
        if (const Status s = parallel_for(fit.part.cols, 1, threads, fit_columns<kLevels>, &fit); s != Status::ok)
            return s;
        if (const Status s = parallel_for(fit.part.rows, kWide, threads, fit_rows<kLevels>, &fit); s != Status::ok)
            return s;
    }
    return Status::ok;
}

// ---- sweep

struct Step {
    const LevelsSweep& panel;
    int64_t column;
    float col;
    std::vector<double>* sums;  // [pieces of kGrain rows, 2]
};

template <int kLevels>
Status sum_column(void* context, int64_t begin, int64_t end) {
    const Step& step = *static_cast<const Step*>(context);
    const LevelsSweep& p = step.panel;
    const Magnitudes<kLevels> source(p.row_scale, p.rows);
    for (int64_t piece = begin; piece < end; ++piece) {
        double* sums = &(*step.sums)[static_cast<size_t>(2 * piece)];
        sums[0] = sums[1] = 0;
        add_sums<kLevels>(source, p.work + step.column * p.rows, step.col, piece * kGrain,
                          std::min((piece + 1) * kGrain, p.rows), sums);
    }
    return Status::ok;
}

template <int kLevels>
Status code_column(void* context, int64_t begin, int64_t end) {
    const Step& step = *static_cast<const Step*>(context);
    const LevelsSweep& p = step.panel;
    const Magnitudes<kLevels> source(p.row_scale, p.rows);
    const int64_t first = begin * kGrain, last = std::min(end * kGrain, p.rows), j = step.column;
    const float* target = p.work + j * p.rows;
    float *value = p.value + j * p.rows, *change = p.change + j * p.rows;
    uint8_t* code = p.code + j * p.rows;
    for (int64_t i = first; i < last; ++i) {
        float level[kLevels];
        source.at(i, step.col, level);
        const int32_t index = nearest<kLevels>(std::fabs(target[i]), level);
        const float magnitude = pick<kLevels>(level, index);
        const bool negative = target[i] < 0;
        const float before = p.refine != 0 ? value[i] : target[i];
        value[i] = negative ? -magnitude : magnitude;
        change[i] = value[i] - before;
        code[i] = static_cast<uint8_t>(index | (negative ? 0 : 4));
    }
    for (int64_t l = j + 1; l < p.cols; ++l) {
        float* work = p.work + l * p.rows;
        const float coupling = p.coupling[j * p.cols + l];
        for (int64_t i = first; i < last; ++i) work[i] += coupling * change[i];
    }
    return Status::ok;
}

template <int kLevels>
Status run_step(const LevelsSweep& p, int64_t column, int64_t threads, std::vector<double>& sums) {
    const int64_t pieces = (p.rows + kGrain - 1) / kGrain;
    Step step{p, column, p.col[column], &sums};
    if (const Status s = parallel_for(pieces, 1, threads, sum_column<kLevels>, &step); s != Status::ok) return s;
    double total[2] = {};
    for (int64_t piece = 0; piece < pieces; ++piece) {
        total[0] += sums[static_cast<size_t>(2 * piece)];
        total[1] += sums[static_cast<size_t>(2 * piece + 1)];
    }
    const float scale = scale_of(total, step.col);
    step.col = p.half != 0 ? round_to_half(scale) : scale;
    p.col[column] = step.col;
    return parallel_for(pieces, 1, threads, code_column<kLevels>, &step);
}

}  // namespace

Status fit_levels(const LevelsFit& part, int64_t iters, int64_t threads) {
    if (part.rows < 1 || part.cols < 1 || iters < 0 || threads < 1) return Status::bad_range;
    if (part.count != 2 && part.count != 4) return Status::bad_range;
    try {
        const auto size = static_cast<size_t>(part.count * part.rows);
        Fit fit{part, std::vector<double>(size), std::vector<double>(size)};
        return part.count == 4 ? run_fit<4>(fit, iters, threads) : run_fit<2>(fit, iters, threads);
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
}

Status sweep_levels(const LevelsSweep& panel, int64_t threads) {
    if (panel.rows < 1 || panel.cols < 1 || threads < 1) return Status::bad_range;
    try {
        std::vector<double> sums(static_cast<size_t>(2 * ((panel.rows + kGrain - 1) / kGrain)));
        for (int64_t j = 0; j < panel.cols; ++j) {
            const Status status =
                panel.salient[j] != 0 ? run_step<4>(panel, j, threads, sums) : run_step<2>(panel, j, threads, sums);
            if (status != Status::ok) return status;
        }
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
    return Status::ok;
}

}  // namespace arb
