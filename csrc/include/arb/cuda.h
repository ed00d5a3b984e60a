// The CUDA kernels as plain C functions over device pointers: no torch, no C++ types, nothing allocated, nothing waited
// for, so every call can be captured in a CUDA graph. docs/format.md says what a packed weight means;
// arbllm_kernels/cuda.py is the caller. Part names and shapes are those of arb/packed.h.
//
// Every function returns 0 or an error code, and then writes one sentence to `message` (at most `capacity` bytes with
// the closing zero; may be null). `stream` is a cudaStream_t of the current device, on which all pointers lie.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ARB_CUDA_API __attribute__((visibility("default")))

// The order of values is also that of arbllm_kernels/cuda.py.
enum arb_cuda_type { ARB_F32 = 0, ARB_F16 = 1, ARB_BF16 = 2, ARB_U8 = 3 };
enum arb_cuda_status { ARB_CUDA_OK = 0, ARB_CUDA_BAD_ARGUMENT = 1, ARB_CUDA_ERROR = 2 };

struct arb_cuda_buffer {
    const void* data;  // null: the weight has no such part
    int64_t length;    // elements
};

struct arb_cuda_weight {
    int64_t rows, cols, block_size, groups, salient_groups, salient_order, exponent;
    int64_t shared_columns;                // 1: one column scale per column for all groups and both planes
    int64_t scale_type;                    // of mean, col_scale, col_scale2, row_base: ARB_F16 or ARB_F32
    int64_t row_scale_type;                // the same, or ARB_U8 with row_base
    struct arb_cuda_buffer sign;           // int32 [n, words], aligned to 8 bytes like `group`
    struct arb_cuda_buffer group;          // int32 [n, log2 G, words]
    struct arb_cuda_buffer second;         // int32 []
    struct arb_cuda_buffer row_scale;      // [n, blocks, scales per block]
    struct arb_cuda_buffer row_base;       // [n], or null
    struct arb_cuda_buffer mean;           // [n, blocks, zones], or null
    struct arb_cuda_buffer col_scale;      // [G or 1, m], or null
    struct arb_cuda_buffer col_scale2;     // [Gs, C], or null
    struct arb_cuda_buffer order, counts;  // int32 [m], [blocks]
};

// y = x W^T: x [batch, m] and y [batch, n] of x_type (fp32, fp16, bf16), contiguous; sums in fp32. A row of y does not
// depend on the batch it came in, but one row alone may have a kernel of its own. `workspace` is device memory of at
// least arb_cuda_linear_workspace bytes.
ARB_CUDA_API int arb_cuda_linear(const struct arb_cuda_weight* weight, const void* x, int64_t x_type, int64_t batch,
                                 void* y, void* workspace, int64_t workspace_bytes, void* stream, char* message,
                                 int64_t capacity);

// Bytes of workspace for a call, or -1 where arb_cuda_linear would refuse the arguments or no device answers.
ARB_CUDA_API int64_t arb_cuda_linear_workspace(const struct arb_cuda_weight* weight, int64_t x_type, int64_t batch);

// The dense matrix, float32 [n, m], in column order: bit for bit PackedWeight.dequantize().
ARB_CUDA_API int arb_cuda_dequantize(const struct arb_cuda_weight* weight, float* out, void* stream, char* message,
                                     int64_t capacity);

// bits: bytes 0 or 1, [rows, length] <-> words: int32 [rows, 2 ceil(length / 64)], as arb/bits.h.
ARB_CUDA_API int arb_cuda_pack_bits(const uint8_t* bits, int64_t rows, int64_t length, uint32_t* words, void* stream,
                                    char* message, int64_t capacity);
ARB_CUDA_API int arb_cuda_unpack_bits(const uint32_t* words, int64_t rows, int64_t length, uint8_t* bits, void* stream,
                                      char* message, int64_t capacity);

// Whether arb_cuda_linear takes the tensor-core kernel for this weight (1) or the plain one (0); -1 if it is invalid.
ARB_CUDA_API int arb_cuda_is_fast(const struct arb_cuda_weight* weight);

#ifdef __cplusplus
}
#endif
