#include "pages.h"

#if defined(__linux__)
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#ifndef MADV_PAGEOUT  // Linux 5.4; older ones refuse it
#define MADV_PAGEOUT 21
#endif
#endif

namespace arb {

#if defined(__linux__)

namespace {

// Of an entry of /proc/self/pagemap: in memory, and a file's page (or shared memory), not this process's own. Asked for
// lest weights that map no file be swapped out.
constexpr uint64_t kOfFile = uint64_t{1} << 61 | uint64_t{1} << 63;
constexpr int64_t kEntries = 512;  // read at once

}  // namespace

void release_file_pages(const void* data, int64_t bytes) {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto begin = reinterpret_cast<uintptr_t>(data);
    const uintptr_t first = (begin + page - 1) / page, end = (begin + static_cast<uintptr_t>(bytes)) / page;
    if (first >= end) return;
    // Opened anew each time: after a fork it would still be about the parent.
    const int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (map < 0) return;
    uint64_t entries[kEntries];
    for (uintptr_t at = first; at < end;) {
        const size_t count = std::min<size_t>(end - at, kEntries);
        const auto wanted = static_cast<ssize_t>(count * sizeof(uint64_t));
        if (pread(map, entries, static_cast<size_t>(wanted), static_cast<off_t>(at * sizeof(uint64_t))) != wanted)
            break;
        for (size_t i = 0; i < count;) {
            size_t next = i;
            while (next < count && (entries[next] & kOfFile) == kOfFile) ++next;
            if (next > i) madvise(reinterpret_cast<void*>((at + i) * page), (next - i) * page, MADV_PAGEOUT);
            i = std::max(next, i + 1);
        }
        at += count;
    }
    close(map);
}

#else

void release_file_pages(const void*, int64_t) {}

#endif

}  // namespace arb
