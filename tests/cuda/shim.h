// CUDA on the host, as far as csrc/cuda needs it: one OS thread per CUDA thread of a block, blocks one after another,
// real barriers, warp operations through a buffer of the warp. Shared memory is one heap allocation per block of
// exactly the size asked for, filled with NaN, so that AddressSanitizer sees its ends; ThreadSanitizer sees a missing
// barrier. A warp operation here orders the lanes no more than the real one does: the buffer's barriers are for its own
// slots.
#pragma once

#include <pthread.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define ARB_SHARED(name) unsigned char* name = ::shim::block->shared.get()

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3() = default;
    dim3(unsigned x_, unsigned y_, unsigned z_) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

#ifdef __SANITIZE_THREAD__
extern "C" {
void AnnotateIgnoreSyncBegin(const char*, int);
void AnnotateIgnoreSyncEnd(const char*, int);
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#endif

namespace shim {

// Between its construction and its end ThreadSanitizer sees neither this thread's accesses nor its barriers.
struct Hidden {
#ifdef __SANITIZE_THREAD__
    Hidden() {
        AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
        AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
        AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
    }
    ~Hidden() {
        AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
        AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
        AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
    }
#else
    Hidden() {}
#endif
};

class Barrier {
  public:
    explicit Barrier(unsigned count) { pthread_barrier_init(&barrier_, nullptr, count); }
    ~Barrier() { pthread_barrier_destroy(&barrier_); }
    Barrier(const Barrier&) = delete;
    void wait() { pthread_barrier_wait(&barrier_); }

  private:
    pthread_barrier_t barrier_;
};

struct Exchange {
    uint64_t value[8];  // what a lane offers the others
};

struct Warp {
    Barrier barrier{32};     // __syncwarp
    Barrier exchanging{32};  // of the operations below
    Exchange lanes[32] = {};
};

struct Block {
    Block(int threads, int shared_bytes) : barrier(static_cast<unsigned>(threads)), warps(threads / 32) {
        shared.reset(
            static_cast<unsigned char*>(std::aligned_alloc(16, static_cast<size_t>((shared_bytes + 15) / 16 * 16))));
        std::memset(shared.get(), 0xff, static_cast<size_t>(shared_bytes));
        for (auto& warp : warps) warp = std::make_unique<Warp>();
    }
    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };
    Barrier barrier;
    std::vector<std::unique_ptr<Warp>> warps;
    std::unique_ptr<unsigned char[], Free> shared;
};

inline thread_local Block* block = nullptr;

inline Warp& warp() { return *block->warps[threadIdx.x / 32]; }

// Every lane offers `mine`; read(lanes) then sees all of them.
template <typename Read>
auto exchange(const Exchange& mine, Read read) {
    const Hidden hidden;
    Warp& w = warp();
    w.lanes[threadIdx.x % 32] = mine;
    w.exchanging.wait();
    const auto result = read(w.lanes);
    w.exchanging.wait();
    return result;
}

}  // namespace shim

namespace arb::cuda {

inline float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline float from_half(uint16_t bits) {
    _Float16 value;
    std::memcpy(&value, &bits, 2);
    return static_cast<float>(value);
}
inline uint16_t to_half(float value) {
    const auto half = static_cast<_Float16>(value);
    uint16_t bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}
inline uint16_t to_bf16(float value) {
    const uint32_t bits = float_to_bits(value);
    if (std::isnan(value)) return 0x7fff;
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline uint32_t pack_bf16(float low, float high) { return to_bf16(low) | static_cast<uint32_t>(to_bf16(high)) << 16; }
inline float mul(float a, float b) { return a * b; }
inline float add(float a, float b) { return a + b; }
inline uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t shift) {
    return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (shift % 32));
}

template <typename T>
T shuffle(T value, int lane) {
    shim::Exchange mine = {};
    std::memcpy(mine.value, &value, sizeof(T));
    return shim::exchange(mine, [&](const shim::Exchange* lanes) {
        T got;
        std::memcpy(&got, lanes[lane % 32].value, sizeof(T));
        return got;
    });
}
template <typename T>
T shuffle_xor(T value, int mask) {
    return shuffle(value, static_cast<int>(threadIdx.x % 32) ^ mask);
}
inline int opaque(int value, int) { return value; }
inline int lane_here() { return static_cast<int>(threadIdx.x % 32); }
inline uint32_t warp_maximum(uint32_t value) {
    return shim::exchange({{value}}, [](const shim::Exchange* lanes) {
        uint64_t largest = 0;
        for (int i = 0; i < 32; ++i) largest = lanes[i].value[0] > largest ? lanes[i].value[0] : largest;
        return static_cast<uint32_t>(largest);
    });
}
inline int warp_sum(int value) {
    return shim::exchange({{static_cast<uint32_t>(value)}}, [](const shim::Exchange* lanes) {
        uint64_t sum = 0;
        for (int i = 0; i < 32; ++i) sum += lanes[i].value[0];
        return static_cast<int>(static_cast<uint32_t>(sum));
    });
}
inline uint32_t vote(bool value) {
    return shim::exchange({{value}}, [](const shim::Exchange* lanes) {
        uint32_t bits = 0;
        for (int i = 0; i < 32; ++i) bits |= static_cast<uint32_t>(lanes[i].value[0]) << i;
        return bits;
    });
}
inline void sync_warp() { shim::warp().barrier.wait(); }
inline void sync_block() { shim::block->barrier.wait(); }

// Copies start only when they are waited for, as late as the hardware may.
struct Copy {
    unsigned char* to;
    const unsigned char* from;
    int bytes;
    bool valid;
};
inline thread_local std::vector<std::vector<Copy>> copies(1);

template <int kBytes>
void copy_async(void* shared, const void* global, bool valid) {
    if (reinterpret_cast<uintptr_t>(shared) % kBytes || reinterpret_cast<uintptr_t>(global) % kBytes) std::abort();
    copies.back().push_back(
        {static_cast<unsigned char*>(shared), static_cast<const unsigned char*>(global), kBytes, valid});
}
inline void commit_copies() { copies.emplace_back(); }
template <int kPending>
void wait_copies() {
    while (copies.size() > kPending + 1) {
        for (const Copy& c : copies.front()) {
            if (c.valid) {
                std::memcpy(c.to, c.from, static_cast<size_t>(c.bytes));
            } else {
                std::memset(c.to, 0, static_cast<size_t>(c.bytes));
            }
        }
        copies.erase(copies.begin());
    }
}

// The fragments' layout as the comment of csrc/cuda/device.cuh gives it; every sum in float32, k ascending.
inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, t = lane % 4;
    const auto half = [](uint64_t word, int upper) {
        return bits_to_float(static_cast<uint32_t>(word >> (16 * upper) & 0xffff) << 16);
    };
    struct Sums {
        float d[4];
    };
    const Sums sums = shim::exchange({{a[0], a[1], a[2], a[3], b0, b1}}, [&](const shim::Exchange* lanes) {
        Sums result;
        for (int i = 0; i < 4; ++i) {
            float sum = d[i];
            for (int k = 0; k < 16; ++k) {
                const int pair = k % 8 / 2, upper_k = k / 8;
                const float left = half(lanes[g * 4 + pair].value[i / 2 + 2 * upper_k], k % 2);
                const float right = half(lanes[(2 * t + i % 2) * 4 + pair].value[4 + upper_k], k % 2);
                sum += left * right;
            }
            result.d[i] = sum;
        }
        return result;
    });
    for (int i = 0; i < 4; ++i) d[i] = sums.d[i];
}

inline void mma_bits(int (&d)[4], const int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
    const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, t = lane % 4;
    struct Sums {
        int d[4];
    };
    const Sums sums = shim::exchange({{a0, a1, b}}, [&](const shim::Exchange* lanes) {
        Sums result;
        for (int i = 0; i < 4; ++i) {
            result.d[i] = c[i];
            for (int word = 0; word < 4; ++word) {
                const uint64_t left = lanes[g * 4 + word].value[i / 2];
                const uint64_t right = lanes[(2 * t + i % 2) * 4 + word].value[2];
                result.d[i] += __builtin_popcountll(left & right);
            }
        }
        return result;
    });
    for (int i = 0; i < 4; ++i) d[i] = sums.d[i];
}

struct Device {
    int processors = 2;
    int shared_memory = 99 * 1024;
    int major = 8;
};
inline const char* ask_device(Device& device) {
    if (const char* text = std::getenv("SHIM_PROCESSORS")) device.processors = std::atoi(text);
    if (const char* text = std::getenv("SHIM_MAJOR")) device.major = std::atoi(text);
    if (const char* text = std::getenv("SHIM_SHARED_MEMORY")) device.shared_memory = std::atoi(text);
    return nullptr;
}

#ifdef ARB_SHIM_RECORD
// Nothing runs; how a kernel with shared memory would be started: grid x, y, z, threads, bytes of shared memory.
extern "C" {
__attribute__((visibility("default"))) int64_t shim_launch[5];
}

template <typename... Parameters, typename... Arguments>
const char* launch(void (*)(Parameters...), dim3 grid, int threads, int shared_bytes, void*, Arguments...) {
    const int64_t now[5] = {grid.x, grid.y, grid.z, threads, shared_bytes};
    if (shared_bytes > 0) std::memcpy(shim_launch, now, sizeof(now));
    return nullptr;
}
#else

template <typename... Parameters, typename... Arguments>
const char* launch(void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes, void*,
                   Arguments... arguments) {
    Device device;
    ask_device(device);
    if (threads % 32 || threads > 1024 || shared_bytes > device.shared_memory || grid.y > 65535 || grid.z > 65535) {
        return "invalid configuration argument";
    }
    std::unique_ptr<shim::Block> current;
    shim::Barrier turn(static_cast<unsigned>(threads));
    const auto thread = [&](int id) {
        threadIdx = dim3(static_cast<unsigned>(id), 0, 0);
        blockDim = dim3(static_cast<unsigned>(threads), 1, 1);
        gridDim = grid;
        for (unsigned z = 0; z < grid.z; ++z) {
            for (unsigned y = 0; y < grid.y; ++y) {
                for (unsigned x = 0; x < grid.x; ++x) {
                    if (id == 0) current = std::make_unique<shim::Block>(threads, shared_bytes);
                    turn.wait();
                    shim::block = current.get();
                    blockIdx = dim3(x, y, z);
                    kernel(arguments...);
                    copies.assign(1, {});
                    turn.wait();
                }
            }
        }
    };
    std::vector<std::thread> all;
    for (int id = 0; id < threads; ++id) all.emplace_back(thread, id);
    for (std::thread& one : all) one.join();
    return nullptr;
}
#endif

}  // namespace arb::cuda
