// What the processor can do, and the operating system lets it.
#pragma once

namespace arb {

#if defined(__x86_64__)
bool has_avx2();
bool has_avxvnni();
bool has_avx512();
bool has_avx512vnni();
bool has_avx512vbmi();
#elif defined(__aarch64__)
bool has_dot();
#endif

}  // namespace arb
