// ARB-RC: row and column scales in turn (equations 12, 13 and 8), each turn one pass over the rows. A pass finds a
// row's scale and at once adds the row to the sums of the column scales. Oracle: arbllm_kernels/methods/arb_rc.py.
//
// Rows are padded with non-members to whole vectors. A chunk's column sums are float32, the sum over chunks is double;
// chunks have a fixed size, so that the number of threads changes no digit.
#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include "arb/solver.h"
#include "pool.h"
#include "sorted_rows.h"

namespace arb {
namespace {

using Floats = float __attribute__((vector_size(16)));
using Mask = int32_t __attribute__((vector_size(16)));
constexpr int64_t kWidth = 4;
constexpr int64_t kChunkRows = 64;
constexpr float kEps = 1e-8f;

Floats load(const float* from) {
    Floats v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

void store(float* to, Floats v) { std::memcpy(to, &v, sizeof v); }

Floats magnitude(Floats v) { return v < 0 ? -v : v; }

float total(Floats v) { return (v[0] + v[1]) + (v[2] + v[3]); }

// A zone being fitted. Planes are held as B: +1 or -1 on members, 0 elsewhere.
struct Work {
    int64_t rows, stride;
    std::vector<float> weight, member;            // [rows, stride]; 0 where not a member
    std::vector<float> plane[2], row[2], col[2];  // [rows, stride], [rows], [stride]
    std::vector<float> sums;                      // [chunks, 2, stride]: numerators and denominators of a column scale

    Work(const Entries& zone, int64_t order) : rows(zone.rows), stride((zone.cols + kWidth - 1) / kWidth * kWidth) {
        const auto size = static_cast<size_t>(rows * stride);
        weight.resize(size);
        member.resize(size);
        for (int64_t o = 0; o < order; ++o) {
            plane[o].resize(size);
            row[o].resize(static_cast<size_t>(rows));
            col[o].resize(static_cast<size_t>(stride));
        }
        sums.resize(static_cast<size_t>((rows + kChunkRows - 1) / kChunkRows * 2 * stride));
        for (int64_t i = 0; i < rows; ++i) {
            for (int64_t j = 0; j < zone.cols; ++j) {
                if (zone.members != nullptr && zone.members[i * zone.cols + j] == 0) continue;
                weight[static_cast<size_t>(i * stride + j)] = zone.s[i * zone.cols + j];
                member[static_cast<size_t>(i * stride + j)] = 1;
            }
        }
    }
};

// One row's view of the work, for order `o` and the other one.
struct RowView {
    const float *weight, *member;
    float* plane[2];
    float scale[2];

    RowView(Work& w, int64_t order, int64_t i) : weight(&w.weight[index(w, i)]), member(&w.member[index(w, i)]) {
        for (int64_t o = 0; o < order; ++o) {
            plane[o] = &w.plane[o][index(w, i)];
            scale[o] = w.row[o][static_cast<size_t>(i)];
        }
    }
    static size_t index(const Work& w, int64_t i) { return static_cast<size_t>(i * w.stride); }
};

// What plane `o` has to stand for: the weights less what the other plane says already.
Floats target(const Work& w, const RowView& row, int64_t order, int o, int64_t j) {
    const Floats weight = load(row.weight + j);
    if (order == 1) return weight;
    return weight - row.scale[1 - o] * load(&w.col[1 - o][static_cast<size_t>(j)]) * load(row.plane[1 - o] + j);
}

// Equation 8; as nearest_of_four of methods/binarize.py.
void nearest_of_four(const Work& w, RowView& row) {
    for (int64_t j = 0; j < w.stride; j += kWidth) {
        const Floats weight = load(row.weight + j), member = load(row.member + j);
        const Floats first = row.scale[0] * load(&w.col[0][static_cast<size_t>(j)]);
        const Floats second = row.scale[1] * load(&w.col[1][static_cast<size_t>(j)]);
        Floats best = magnitude(weight + first + second), b1 = -member, b2 = -member;
        const auto consider = [&](Floats level, Floats sign1, Floats sign2) {
            const Floats distance = magnitude(weight - level);
            const Mask better = distance < best;
            best = better ? distance : best;
            b1 = better ? sign1 : b1;
            b2 = better ? sign2 : b2;
        };
        consider(second - first, -member, member);
        consider(first - second, member, -member);
        consider(first + second, member, member);
        store(row.plane[0] + j, b1);
        store(row.plane[1] + j, b2);
    }
}

// Equation 12 for plane `o` of a row: its sign, its mean magnitude, and the magnitudes relative to that.
void start_row(Work& w, RowView& row, int64_t order, int o, float* scale, float* sums) {
    Floats sum = {}, count = {};
    for (int64_t j = 0; j < w.stride; j += kWidth) {
        const Floats t = o == 0 ? load(row.weight + j) : target(w, row, order, o, j), member = load(row.member + j);
        store(row.plane[o] + j, t < 0 ? -member : member);
        sum += magnitude(t) * member;
        count += member;
    }
    *scale = total(sum) / std::max(total(count), 1.0f);
    const float safe = *scale > 0 ? *scale : 1;
    for (int64_t j = 0; j < w.stride; j += kWidth) {
        const Floats t = o == 0 ? load(row.weight + j) : target(w, row, order, o, j), member = load(row.member + j);
        store(sums + j, load(sums + j) + magnitude(t) / safe * member);
        store(sums + w.stride + j, load(sums + w.stride + j) + member);
    }
}

// Equation 13 for plane `o` of a row.
void alternate_row(const Work& w, RowView& row, int64_t order, int o, float* scale, float* products, float* sums) {
    Floats numerator = {}, denominator = {};
    for (int64_t j = 0; j < w.stride; j += kWidth) {
        const Floats plane = load(row.plane[o] + j), col = load(&w.col[o][static_cast<size_t>(j)]);
        const Floats product = plane * target(w, row, order, o, j);
        numerator += product * col;
        denominator += plane * plane * (col * col);
        store(products + j, product);
    }
    *scale = total(numerator) / (total(denominator) + kEps);
    const float square = *scale * *scale;
    for (int64_t j = 0; j < w.stride; j += kWidth) {
        const Floats plane = load(row.plane[o] + j);
        store(sums + j, load(sums + j) + load(products + j) * *scale);
        store(sums + w.stride + j, load(sums + w.stride + j) + plane * plane * square);
    }
}

enum class Turn { start, alternate, planes };

struct Pass {
    Work& work;
    int64_t order;
    Turn turn;
    int o;
    bool planes_first;  // alternate: take the nearest of the four levels before
};

Status run_chunks(void* context, int64_t begin, int64_t end) {
    const Pass& pass = *static_cast<const Pass*>(context);
    Work& w = pass.work;
    try {
        std::vector<float> products(static_cast<size_t>(w.stride));
        for (int64_t c = begin; c < end; ++c) {
            float* sums = &w.sums[static_cast<size_t>(c * 2 * w.stride)];
            std::fill(sums, sums + 2 * w.stride, 0.0f);
            for (int64_t i = c * kChunkRows; i < std::min((c + 1) * kChunkRows, w.rows); ++i) {
                RowView row(w, pass.order, i);
                if (pass.turn == Turn::planes || pass.planes_first) nearest_of_four(w, row);
                if (pass.turn == Turn::planes) continue;
                float* scale = &w.row[pass.o][static_cast<size_t>(i)];
                if (pass.turn == Turn::start) {
                    start_row(w, row, pass.order, pass.o, scale, sums);
                } else {
                    alternate_row(w, row, pass.order, pass.o, scale, products.data(), sums);
                }
            }
        }
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
    return Status::ok;
}

// One pass over all rows, then the column scales from the sums of its chunks.
Status run(Pass pass, int64_t threads) {
    Work& w = pass.work;
    const int64_t chunks = (w.rows + kChunkRows - 1) / kChunkRows;
    const Status status = parallel_for(chunks, 1, threads, run_chunks, &pass);
    if (status != Status::ok || pass.turn == Turn::planes) return status;
    std::vector<double> sums(static_cast<size_t>(2 * w.stride));
    for (int64_t c = 0; c < chunks; ++c) {
        for (size_t j = 0; j < sums.size(); ++j)
            sums[j] += static_cast<double>(w.sums[static_cast<size_t>(c) * sums.size() + j]);
    }
    for (size_t j = 0; j < static_cast<size_t>(w.stride); ++j) {
        const double denominator = sums[static_cast<size_t>(w.stride) + j];
        const double safe = pass.turn == Turn::start ? std::max(denominator, 1.0) : denominator + double{kEps};
        w.col[pass.o][j] = static_cast<float>(sums[j] / safe);
    }
    return Status::ok;
}

Status fit(Work& work, int64_t order, int64_t iters, int64_t threads) {
    for (int o = 0; o < order; ++o) {
        if (const Status s = run({work, order, Turn::start, o, false}, threads); s != Status::ok) return s;
    }
    for (int64_t t = 0; t < iters; ++t) {
        for (int o = 0; o < order; ++o) {
            const bool planes_first = order == 2 && o == 0 && t > 0;
            if (const Status s = run({work, order, Turn::alternate, o, planes_first}, threads); s != Status::ok)
                return s;
        }
    }
    return order == 2 && iters > 0 ? run({work, order, Turn::planes, 0, false}, threads) : Status::ok;
}

}  // namespace

Status fit_arb_rc(const Entries& zone, int64_t order, int64_t iters, int64_t threads, uint8_t* planes, float* row_scale,
                  float* col_scale) {
    if (!is_valid(zone) || threads < 1 || order < 1 || order > 2 || iters < 0) return Status::bad_range;
    try {
        Work work(zone, order);
        if (const Status status = fit(work, order, iters, threads); status != Status::ok) return status;
        for (int64_t o = 0; o < order; ++o) {
            std::copy_n(work.col[o].data(), zone.cols, col_scale + o * zone.cols);
            for (int64_t i = 0; i < zone.rows; ++i) {
                row_scale[i * order + o] = work.row[o][static_cast<size_t>(i)];
                const float* plane = &work.plane[o][static_cast<size_t>(i * work.stride)];
                uint8_t* out = planes + (o * zone.rows + i) * zone.cols;
                for (int64_t j = 0; j < zone.cols; ++j) out[j] = plane[j] > 0 ? 1 : 0;
            }
        }
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
    return Status::ok;
}

}  // namespace arb
