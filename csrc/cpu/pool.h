// A small persistent thread pool: parallel_for over row ranges, nothing else.
#pragma once

#include <cstdint>

#include "arb/packed.h"

namespace arb {

constexpr int64_t kPiecesPerThread = 4;  // a thread that starts late takes fewer pieces

using Task = Status (*)(void* context, int64_t begin, int64_t end);

// Calls task on pieces of [0, count), each a multiple of `grain` long but the last, on up to `threads` threads
// (the caller is one of them), kPiecesPerThread for each at most. Returns the first failure. Safe after fork; nested or
// concurrent calls run serially.
Status parallel_for(int64_t count, int64_t grain, int64_t threads, Task task, void* context);

}  // namespace arb
