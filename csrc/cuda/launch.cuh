// Starting kernels and asking the device, with CUDA's errors as text. tests/cuda/shim.h has the same for the host.
#pragma once

#include "device.cuh"

#ifndef ARB_HOST_SHIM
namespace arb::cuda {

struct Device {
    int processors;     // streaming multiprocessors
    int shared_memory;  // bytes a block of threads may have
    int major;          // compute capability
};

// null: fine; otherwise what went wrong.
inline const char* ask_device(Device& device) {
    int id = 0;
    cudaError_t error = cudaGetDevice(&id);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&device.processors, cudaDevAttrMultiProcessorCount, id);
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&device.shared_memory, cudaDevAttrMaxSharedMemoryPerBlockOptin, id);
    }
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&device.major, cudaDevAttrComputeCapabilityMajor, id);
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <typename... Parameters, typename... Arguments>
const char* launch(void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes, void* stream,
                   Arguments... arguments) {
    cudaError_t error = cudaSuccess;
    if (shared_bytes > 48 * 1024) {
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    }
    if (error == cudaSuccess) {
        kernel<<<grid, threads, static_cast<size_t>(shared_bytes), static_cast<cudaStream_t>(stream)>>>(arguments...);
        error = cudaGetLastError();
    }
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace arb::cuda
#endif
