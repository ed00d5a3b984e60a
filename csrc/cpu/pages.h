// Memory that maps a file, given back while the file keeps what is in it.
#pragma once

#include <cstdint>

namespace arb {

// Asks the system to take the pages that lie wholly in `bytes` bytes from `data` on out of memory, where they show a
// file as it is and nobody else maps it. Reading them again reads the file. Pages that were written to and memory that
// maps no file stay, and everything stays where the system does not tell which is which (Linux does). Nothing is lost
// where another thread writes meanwhile: the system takes a page only while it is as it is in the file.
void release_file_pages(const void* data, int64_t bytes);

}  // namespace arb
