// Memory that begins at a cache line: vectors that begin in one line and end in the next take twice as long to read.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace arb {

struct FreeAligned {
    void operator()(void* p) const { operator delete[](p, std::align_val_t(64)); }
};

template <typename T>
using Aligned = std::unique_ptr<T[], FreeAligned>;

// Throws std::bad_alloc.
template <typename T>
Aligned<T> aligned(int64_t count) {
    return Aligned<T>(new (std::align_val_t(64)) T[static_cast<size_t>(count)]);
}

}  // namespace arb
