// Multiplication by a packed weight, reading its bit planes: the dense matrix never exists.
#pragma once

#include <memory>

#include "arb/packed.h"

namespace arb {

enum class Activations {
    exact,  // as good as float32 products and sums; of x of 16 bits perhaps 16 bits per part of a block (digits_of)
    int8,   // x is rounded to 8 bits per part of a block, where there is a kernel (Weight::covers_int8)
};

// Whether the product is computed by line (cpu/line.h), exact and int8: two groups, 8-bit row scales, at most
// one scale per column, one block or blocks of at least 512 columns.
bool covers_line(const PackedView& weight);

// Whether it is computed faster, exact and int8, in a repacked copy (cpu/tiles.h): all but what goes by line.
bool gains_by_copy(const PackedView& weight);

// Into how many digits of 8 bits x is rounded where the product is computed in whole numbers: 1 for int8, else 3. Two
// for bf16, and for fp16 in a repacked copy: an outlier takes digits from the columns that share its unit, and in the
// wide blocks of the way by line that would show in the 11 bits of an fp16.
int64_t digits_of(const PackedView& weight, Element element, Activations activations);

struct Plans;

// A weight and the plan of its product, which is made at the first call and again when the instruction set changes. The
// buffers must outlive it; `order` and `counts` must not change. Calls may come from several threads.
class Weight {
  public:
    // `repack`: the product is computed in a copy of the weight, exact and int8, where gains_by_copy. It is made at the
    // first call, which gives back the buffers' pages where these map a file (cpu/pages.h), and does not see what is
    // written to the buffers later.
    explicit Weight(const PackedView& view, bool repack = false);
    ~Weight();
    Weight(const Weight&) = delete;
    Weight& operator=(const Weight&) = delete;

    const PackedView& view() const { return view_; }
    // Whether `int8` has kernels for this weight. Where it has none, gemm is exact whatever was asked for.
    bool covers_int8() const { return repack_ || covers_line(view_); }

    // y = x * W^T with x [batch, m] and y [batch, n], contiguous, both of the same elements. A row of y depends neither
    // on the batch it came in nor on the number of threads. `threads` is an upper limit; small matrices use fewer.
    // `ran` (may be null) receives the name of the instruction set.
    Status gemm(const void* x, Element element, int64_t batch, void* y, int64_t threads, Activations activations,
                const char** ran = nullptr);

  private:
    PackedView view_;
    bool repack_;
    std::shared_ptr<const Plans> plans_;
};

// The same for a single call.
Status gemm(const PackedView& weight, const void* x, Element element, int64_t batch, void* y, int64_t threads,
            Activations activations, const char** ran = nullptr);

}  // namespace arb
