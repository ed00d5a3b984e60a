// Sums over the rows of a block, on several threads, the same to the last digit however many there are.
#pragma once

#include <algorithm>
#include <new>
#include <vector>

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

// Row(lane's sorted row, row number, gains [count]) adds to the gains; made once per piece of work.
template <typename Rows>
struct Sum {
    const Entries& entries;
    const Rows& rows;
    int64_t chunk;
    int64_t count;
    double* partial;  // [chunks, count]
};

template <typename Rows>
Status sum_chunks(void* context, int64_t begin, int64_t end) {
    const auto& sum = *static_cast<const Sum<Rows>*>(context);
    try {
        SortedRows sorted(sum.entries.cols);
        auto add_row = sum.rows.worker();
        for (int64_t c = begin; c < end; ++c) {
            const int64_t last = std::min((c + 1) * sum.chunk, sum.entries.rows);
            for (int64_t first = c * sum.chunk; first < last; first += kLanes) {
                sorted.take(sum.entries, first);
                for (int64_t row = first; row < std::min(first + kLanes, last); ++row) {
                    add_row(sorted.row(row - first), row, sum.partial + c * sum.count);
                }
            }
        }
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
    return Status::ok;
}

template <typename Rows>
Status sum_rows(const Entries& entries, const Rows& rows, int64_t count, int64_t threads, double* gains) {
    const int64_t chunk = chunk_rows(entries.rows), chunks = (entries.rows + chunk - 1) / chunk;
    try {
        std::vector<double> partial(static_cast<size_t>(chunks * count));
        Sum<Rows> sum{entries, rows, chunk, count, partial.data()};
        const Status status = parallel_for(chunks, 1, threads, sum_chunks<Rows>, &sum);
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
