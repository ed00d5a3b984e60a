// Memory that begins at a cache line: vectors that begin in one line and end in the next take twice as long to read.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
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

struct FreeLarge {
    void operator()(void* p) const { std::free(p); }
};

using LargeBytes = std::unique_ptr<unsigned char[], FreeLarge>;

// For megabytes that are read from front to back: in large pages where the system has them, so that neither address
// translation nor the end of a page, at which hardware prefetching stops, comes every 4 KiB. Throws std::bad_alloc.
inline LargeBytes aligned_large(int64_t bytes) {
    constexpr size_t kPage = size_t{2} << 20;
    const size_t most = static_cast<size_t>(bytes), align = most < kPage ? 64 : kPage;
    LargeBytes made(static_cast<unsigned char*>(std::aligned_alloc(align, (most + align - 1) / align * align)));
    if (made == nullptr) throw std::bad_alloc();
    if (align == kPage) madvise(made.get(), most / kPage * kPage, MADV_HUGEPAGE);  // not more than is asked for
    return made;
}

}  // namespace arb
