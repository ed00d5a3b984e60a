#include "arb/table.h"

#include <algorithm>

#include "kernels.h"
#include "pool.h"

namespace arb {
namespace {

constexpr int64_t kBytesPerThread = 1 << 18;  // below this, waking another thread costs more than it saves

struct Tile {
    const Kernels* kernels;
    const int8_t* codes;
    int64_t cols;
    int64_t tile;
    const float* x[kMaxTile];
    float* y[kMaxTile];
};

Status multiply_rows(void* context, int64_t begin, int64_t end) {
    const Tile& t = *static_cast<const Tile*>(context);
    t.kernels->table_rows(t.codes, t.cols, t.x, t.tile, begin, end, t.y);
    return Status::ok;
}

}  // namespace

Status table_gemm(const int8_t* codes, int64_t rows, int64_t cols, const float* x, int64_t batch, float* y,
                  int64_t threads) {
    if (rows < 1 || cols < 1 || rows > kMaxDim || cols > kMaxDim || batch < 0 || threads < 1) return Status::bad_range;
    const Isa* isa = nullptr;
    if (const Status status = active_kernels(&isa); status != Status::ok) return status;
    for (int64_t first = 0; first < batch; first += kMaxTile) {
        Tile t{isa->exact, codes, cols, std::min(batch - first, kMaxTile), {}, {}};
        for (int64_t i = 0; i < t.tile; ++i) {
            t.x[i] = x + (first + i) * cols;
            t.y[i] = y + (first + i) * rows;
        }
        const int64_t useful = std::max<int64_t>(1, rows * cols * t.tile / kBytesPerThread);
        const Status status = parallel_for(rows, kRowTile, std::min(threads, useful), multiply_rows, &t);
        if (status != Status::ok) return status;
    }
    return Status::ok;
}

}  // namespace arb
