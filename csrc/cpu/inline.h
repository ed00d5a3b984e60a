// Inlining where it matters. Included by the units of an instruction set: macros alone, nothing that is linked.
#pragma once

// The inner loops must be inlined for their small arrays to become registers; `inline` alone is a hint. Under a
// sanitizer speed is no matter, and every inlined check would have to be compiled again.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define ARB_INLINE inline
#define ARB_INLINE_LAMBDA
#else
#define ARB_INLINE inline __attribute__((always_inline))
#define ARB_INLINE_LAMBDA __attribute__((always_inline))
#endif
