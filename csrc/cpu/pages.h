// Memory that maps a file, given back while the file keeps what is in it.
#pragma once

#include <cstdint>

namespace arb {

// Takes the pages that lie wholly in `bytes` bytes from `data` on out of this process's memory, where they show a file
// as it is. Reading them again fetches them from the system's cache of files. Pages that were written to and memory
// that maps no file stay, and everything stays where the system does not tell which is which (Linux does).
void release_file_pages(const void* data, int64_t bytes);

}  // namespace arb
