// What the kernels ask of the machine beyond plain C++. nvcc gets the instructions below; on the host,
// tests/cuda/shim.h provides the same names, so the kernels' source is compiled and run there unchanged.
#pragma once

#include <cstdint>

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 1000
#define ARB_HAS_BINARY_MMA
#endif

#ifdef ARB_HOST_SHIM
#include "shim.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define ARB_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

namespace arb::cuda {

__device__ __forceinline__ float from_half(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
__device__ __forceinline__ uint16_t to_half(float value) { return __half_as_ushort(__float2half_rn(value)); }
__device__ __forceinline__ uint16_t to_bf16(float value) { return __bfloat16_as_ushort(__float2bfloat16_rn(value)); }
// Two bfloat16 in a register, `low` in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
__device__ __forceinline__ float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ uint32_t float_to_bits(float value) { return __float_as_uint(value); }
// Products and sums that the compiler may not fuse.
__device__ __forceinline__ float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }

__device__ __forceinline__ uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t shift) {
    return __funnelshift_r(low, high, shift);
}
template <typename T>
__device__ __forceinline__ T shuffle(T value, int lane) {
    return __shfl_sync(0xffffffffu, value, lane);
}
template <typename T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}
// The value, which the compiler then takes for anything: blockDim.y is 1, and it does not know. Values of different
// `tag` are different ones to it.
__device__ __forceinline__ int opaque(int value, int tag) {
    return shuffle(value + tag + static_cast<int>(blockDim.y) - 1, static_cast<int>(threadIdx.x % 32)) - tag;
}
// The lane, asked for anew, so that what follows from it is not kept in registers over a loop.
__device__ __forceinline__ int lane_here() {
    int lane;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}
__device__ __forceinline__ uint32_t vote(bool value) { return __ballot_sync(0xffffffffu, value); }
// Over all lanes, in one instruction.
__device__ __forceinline__ uint32_t warp_maximum(uint32_t value) { return __reduce_max_sync(0xffffffffu, value); }
__device__ __forceinline__ int warp_sum(int value) { return __reduce_add_sync(0xffffffffu, value); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }
__device__ __forceinline__ void sync_block() { __syncthreads(); }

// 16 or 8 bytes from global to shared memory without passing through registers; zeros where `valid` is false.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
    const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    const int bytes = valid ? kBytes : 0;
    if constexpr (kBytes == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
    }
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `kPending` of this thread's latest groups of copies are on their way.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// d += A B on a tensor core: A 16 x 16 and B 16 x 8 of bfloat16, d float32. With g = lane / 4 and t = lane % 4 a lane
// holds A[g][2t..], A[g+8][2t..], A[g][2t+8..], A[g+8][2t+8..]; B[2t..][g], B[2t+8..][g]; d[g][2t..], d[g+8][2t..].
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d = c + ones of A & B on a tensor core: A 16 x 128 and B 128 x 8 of bits, d int32. A lane holds words t of A's rows g
// and g + 8, word t of B's column g, and d as above. Later devices have no such instruction.
#ifdef ARB_HAS_BINARY_MMA
__device__ __forceinline__ void mma_bits(int (&d)[4], const int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
    asm("mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a0), "r"(a1), "r"(b), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}
#else
__device__ void mma_bits(int (&)[4], const int (&)[4], uint32_t, uint32_t, uint32_t);
#endif

}  // namespace arb::cuda
#endif
