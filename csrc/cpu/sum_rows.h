// Sums over the rows of a block, on several threads, the same to the last digit however many there are.
#pragma once

#include <algorithm>
#include <new>
#include <vector>

#include "kernels.h"
#include "pool.h"
#include "sorted_rows.h"

namespace arb {

// Rows are summed chunk by chunk and then the chunks in order. The chunks depend on the number of rows alone, so the
// number of threads changes no digit.
constexpr int64_t kMaxChunks = 256;

inline int64_t chunk_rows(int64_t rows) {
    const int64_t tiles = (rows + kLanes - 1) / kLanes;
    return (tiles + kMaxChunks - 1) / kMaxChunks * kLanes;
}

// Tiles::worker() is made once per piece of work; worker(sorted rows, number of the first, gains) adds to the gains:
// [count], and room up to a multiple of kLanes. Tiles::kWithColumns: whether it wants to know columns.
template <typename Tiles>
struct Sum {
    const Entries& entries;
    const Tiles& tiles;
    const SolverKernels& kernels;
    int64_t chunk;
    int64_t count;
    double* partial;  // [chunks, count]
};

template <typename Tiles>
Status sum_chunks(void* context, int64_t begin, int64_t end) {
    const auto& sum = *static_cast<const Sum<Tiles>*>(context);
    try {
        SortedRows sorted(sum.entries.cols, sum.kernels, Tiles::kWithColumns);
        std::vector<double> gains(static_cast<size_t>((sum.count + kLanes - 1) / kLanes * kLanes));
        auto add_tile = sum.tiles.worker(sum.kernels);
        for (int64_t c = begin; c < end; ++c) {
            std::fill(gains.begin(), gains.end(), 0.0);
            for (int64_t first = c * sum.chunk; first < std::min((c + 1) * sum.chunk, sum.entries.rows);
                 first += kLanes) {
                sorted.take(sum.entries, first);
                add_tile(sorted, first, gains.data());
            }
            std::copy(gains.begin(), gains.begin() + sum.count, sum.partial + c * sum.count);
        }
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
    return Status::ok;
}

template <typename Tiles>
Status sum_rows(const Entries& entries, const Tiles& tiles, int64_t count, int64_t threads, double* gains) {
    const Isa* isa = nullptr;
    if (const Status status = active_kernels(&isa); status != Status::ok) return status;
    const int64_t chunk = chunk_rows(entries.rows), chunks = (entries.rows + chunk - 1) / chunk;
    try {
        std::vector<double> partial(static_cast<size_t>(chunks * count));
        Sum<Tiles> sum{entries, tiles, *isa->solver, chunk, count, partial.data()};
        const Status status = parallel_for(chunks, 1, threads, sum_chunks<Tiles>, &sum);
        if (status != Status::ok) return status;
        std::fill(gains, gains + count, 0.0);
        for (int64_t c = 0; c < chunks; ++c) {
            for (int64_t q = 0; q < count; ++q) gains[q] += partial[static_cast<size_t>(c * count + q)];
        }
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
    return Status::ok;
}

}  // namespace arb
