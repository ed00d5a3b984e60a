// The C functions of arb/cuda.h: check every argument, choose a kernel and a grid, start it.
#include <math.h>
#include <stdio.h>

#include "gemv_bf16.cuh"
#include "gemv_binary.cuh"
#include "launch.cuh"
#include "plain.cuh"

namespace arb::cuda {
namespace {

constexpr int64_t kMaxDim = 1 << 24;  // arb/packed.h
constexpr int64_t kMaxBlock = 65536;
constexpr int64_t kMaxSecondWords = int64_t{1} << 31;
constexpr int64_t kMaxBatch = 65535;
constexpr int kMaxGrid = 1 << 16;
constexpr int kLeastShared = 99 * 1024;  // bytes that a block of threads may have on every device from sm_80 on
constexpr int kFirstWithoutBinary = 10;  // compute capability, major
constexpr int kMaxSplits = 32;
constexpr int kReserved = 1024;  // bytes of shared memory that the system takes of every block of threads

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int fail(int status, const char* what, const char* why, char* message, int64_t capacity) {
    if (message != nullptr && capacity > 0) snprintf(message, static_cast<size_t>(capacity), "%s: %s", what, why);
    return status;
}

bool aligned(const void* pointer, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

bool is_scale(int64_t type) { return type == ARB_F16 || type == ARB_F32; }

uintptr_t type_bytes(int64_t type) { return type == ARB_F32 ? 4 : type == ARB_U8 ? 1 : 2; }

// null: the weight may be used; otherwise what is wrong with it.
const char* check_layout(const arb_cuda_weight& a) {
    if (a.rows < 1 || a.rows > kMaxDim || a.cols < 1 || a.cols > kMaxDim) return "rows or cols is outside 1..2^24";
    if (a.block_size < 1 || a.block_size > kMaxBlock) return "block_size is outside 1..65536";
    if (a.groups != 1 && a.groups != 2 && a.groups != 4) return "groups is not 1, 2 or 4";
    if (a.salient_groups != 1 && a.salient_groups != a.groups) return "salient_groups is neither 1 nor groups";
    if (a.salient_order != 1 && a.salient_order != 2) return "salient_order is not 1 or 2";
    if (a.exponent < -126 || a.exponent > 126) return "exponent is outside -126..126";
    if (a.shared_columns != 0 && a.shared_columns != 1) return "shared_columns is not 0 or 1";
    if (!is_scale(a.scale_type)) return "scale_type is neither fp16 nor fp32";
    if (a.row_scale_type != a.scale_type && a.row_scale_type != ARB_U8) return "row_scale_type is not allowed";
    return nullptr;
}

const char* check_parts(const arb_cuda_weight& a, const Weight& w) {
    const int64_t blocks = w.blocks, words = w.words, scales = w.salient_groups * w.salient_order + w.groups;
    const auto required = [](const arb_cuda_buffer& b, int64_t length) {
        return b.length == length && (b.data != nullptr || length == 0);
    };
    const auto optional = [&](const arb_cuda_buffer& b, int64_t length) {
        return b.data == nullptr || b.length == length;
    };
    if (!required(a.sign, a.rows * words)) return "sign does not have the size of its layout";
    if (!required(a.group, a.rows * w.group_bits * words)) return "group does not have the size of its layout";
    if (!required(a.row_scale, a.rows * blocks * scales)) return "row_scale does not have the size of its layout";
    if (!required(a.order, a.cols)) return "order does not have the size of its layout";
    if (!required(a.counts, blocks)) return "counts does not have the size of its layout";
    const bool bytes = a.row_scale_type == ARB_U8;
    if (bytes != (a.row_base.data != nullptr)) return "row_base must be there exactly with 8-bit row scales";
    if (!optional(a.row_base, a.rows)) return "row_base does not have the size of its layout";
    if (bytes && a.mean.data != nullptr) return "8-bit row scales and means exclude each other";
    if (!optional(a.mean, a.rows * blocks * (w.salient_groups + w.groups))) {
        return "mean does not have the size of its layout";
    }
    const int64_t lines = a.shared_columns ? 1 : a.groups;
    if (!optional(a.col_scale, lines * a.cols)) return "col_scale does not have the size of its layout";
    if (a.shared_columns && a.col_scale.data == nullptr) return "shared_columns needs col_scale";
    if (a.second.length < 0 || a.second.length > divide_up(a.rows * a.cols, 64) * 2 || a.second.length % 2 != 0) {
        return "second does not have the size of its layout";
    }
    if (w.salient_order == 1 && a.second.length != 0) return "second must be empty when salient_order is 1";
    if (a.second.length > 0 && a.second.data == nullptr) return "second has no address";
    // Without salient columns `second` and col_scale2 are empty, and an empty tensor may have no address.
    const bool scaled2 = a.second.length > 0 && a.col_scale.data != nullptr && !a.shared_columns;
    if (scaled2 && (a.col_scale2.data == nullptr || a.col_scale2.length < w.salient_groups ||
                    a.col_scale2.length > w.salient_groups * a.cols)) {
        return "col_scale2 does not have the size of its layout";
    }
    return nullptr;
}

const char* check_alignment(const arb_cuda_weight& a) {
    if (!aligned(a.sign.data, 8) || !aligned(a.group.data, 8)) return "sign and group must be aligned to 8 bytes";
    const uintptr_t scale = type_bytes(a.scale_type);
    if (!aligned(a.second.data, 4) || !aligned(a.order.data, 4) || !aligned(a.counts.data, 4) ||
        !aligned(a.row_scale.data, type_bytes(a.row_scale_type)) || !aligned(a.row_base.data, scale) ||
        !aligned(a.mean.data, scale) || !aligned(a.col_scale.data, scale) || !aligned(a.col_scale2.data, scale)) {
        return "a part is not aligned to its element size";
    }
    return nullptr;
}

const char* make_weight(const arb_cuda_weight* from, Weight& w) {
    if (from == nullptr) return "no weight";
    const arb_cuda_weight& a = *from;
    if (const char* wrong = check_layout(a)) return wrong;
    w.rows = static_cast<int>(a.rows);
    w.cols = static_cast<int>(a.cols);
    w.block_size = static_cast<int>(a.block_size);
    w.blocks = static_cast<int>(divide_up(a.cols, a.block_size));
    w.words = static_cast<int>(divide_up(a.cols, 64) * 2);
    w.groups = static_cast<int>(a.groups);
    w.group_bits = w.groups == 4 ? 2 : w.groups - 1;
    w.salient_groups = static_cast<int>(a.salient_groups);
    w.salient_order = static_cast<int>(a.salient_order);
    w.shared_columns = static_cast<int>(a.shared_columns);
    w.scale_type = static_cast<int>(a.scale_type);
    w.row_scale_type = static_cast<int>(a.row_scale_type);
    w.factor = ldexpf(1.0f, static_cast<int>(a.exponent));
    if (const char* wrong = check_parts(a, w)) return wrong;
    if (const char* wrong = check_alignment(a)) return wrong;
    w.sign = static_cast<const uint32_t*>(a.sign.data);
    w.group = static_cast<const uint32_t*>(a.group.data);
    w.second = static_cast<const uint32_t*>(a.second.data);
    w.second_words = a.second.length;
    w.row_scale = a.row_scale.data;
    w.row_base = a.row_base.data;
    w.mean = a.mean.data;
    w.col_scale = a.col_scale.data;
    w.col_scale2 = a.col_scale2.data;
    w.col_scale2_length = a.col_scale2.length;
    w.order = static_cast<const int32_t*>(a.order.data);
    w.counts = static_cast<const int32_t*>(a.counts.data);
    w.has_second = w.salient_order == 2 && w.second_words > 0;
    w.paired_scales = w.groups == 2 && w.salient_groups == 2 && w.salient_order == 2 && w.row_scale_type == ARB_F16 &&
                      aligned(w.row_scale, 4);
    return nullptr;
}

// The tensor-core kernel takes units of 128 columns within a block, columns in pairs, and means only where there are no
// column scales.
bool is_fast(const Weight& w) {
    const bool units = w.block_size % kUnit == 0 || w.blocks == 1;
    const bool pairs = w.cols % 2 == 0 && aligned(w.order, 8) && aligned(w.col_scale, 2 * type_bytes(w.scale_type));
    return units && pairs && w.second_words < kMaxSecondWords && w.groups <= 2 &&
           (w.mean == nullptr || w.col_scale == nullptr);
}

bool is_x_type(int64_t type) { return type == ARB_F32 || type == ARB_F16 || type == ARB_BF16; }

// 1: a block of threads has a single chunk.
int stages_of(const Weight& w, int splits) { return divide_up(divide_up(w.cols, kUnit), splits) > kUnits ? 2 : 1; }

// How the product is cut up: splits of the columns, and warps, and so rows, of a block of threads.
struct Plan {
    int splits, warps;
};

// Warps that a processor needs at once to start an instruction in every cycle, and that its registers allow.
constexpr int kWarpsAtOnce = 16;

// Cycles, but for a factor, of the busiest processor, where blocks of threads are dealt out in turn. The numbers are
// instructions of the binary kernel for one row of x: docs/gpu-cuda.md. Plain int, as every product asks for this many
// times; rows and cols are at most 2^24.
float cost(const Weight& w, const Device& device, const Plan& plan) {
    constexpr int kOwn = 330, kPreparing = 790, kAround = 270;  // a warp's unit; a block's unit; a warp
    const auto up = [](int a, int b) { return (a + b - 1) / b; };
    const int processors = device.processors > 1 ? device.processors : 1;
    const int tiles = up(w.rows, plan.warps * kWarpRows), units = up(w.cols, kUnit), share = units / plan.splits;
    const int all = up(tiles * plan.splits, processors), larger = up(tiles * (units - share * plan.splits), processors);
    const int most = all * share + larger;  // units
    const int stages = share + (share * plan.splits < units ? 1 : 0) > kUnits ? 2 : 1;
    const int bytes = binary_bytes<2, 2, false>(stages, plan.warps);
    const int fit = (device.shared_memory + kReserved) / (bytes + kReserved);
    if (fit < 1) return INFINITY;
    const int together = plan.warps * (fit < all ? fit : all);
    const auto instructions = static_cast<float>(plan.warps * kOwn + kPreparing) * static_cast<float>(most) +
                              static_cast<float>(plan.warps * kAround) * static_cast<float>(all);
    // What splits write and read again.
    const float sums = plan.splits > 1 ? 2.0f * static_cast<float>(w.rows) * static_cast<float>(plan.splits) : 0.0f;
    return (instructions + sums / static_cast<float>(processors)) /
           static_cast<float>(together < kWarpsAtOnce ? together : kWarpsAtOnce);
}

// Depends on shape and device alone, so that a row of y does not depend on the batch.
Plan plan_of(const Weight& w, const Device& device) {
    const int64_t units = divide_up(w.cols, kUnit);
    Plan best = {1, kFewWarps};
    float least = cost(w, device, best);
    for (int splits = 1; splits <= (units < kMaxSplits ? units : kMaxSplits); ++splits) {
        for (const int warps : {kManyWarps, kFewWarps}) {
            const float now = cost(w, device, {splits, warps});
            if (now < least) {
                least = now;
                best = {splits, warps};
            }
        }
    }
    return best;
}

// `bytes(warps)` of shared memory for few or many warps. Not every device has room for many; few fit everywhere.
template <typename Bytes>
const char* start(void (*kernel)(GemvJob), const GemvJob& job, const Plan& plan, Bytes bytes, const Device& device,
                  void* stream) {
    const int warps = bytes(plan.warps) > device.shared_memory ? kFewWarps : plan.warps;
    const dim3 grid(static_cast<unsigned>(divide_up(job.w.rows, warps * kWarpRows)), static_cast<unsigned>(plan.splits),
                    static_cast<unsigned>(divide_up(job.batch, job.slice)));
    return launch(kernel, grid, warps * 32, bytes(warps), stream, job);
}

template <int kGroups, int kTiles, bool kMeans>
const char* start_bf16(GemvJob job, const Plan& plan, const Device& device, void* stream) {
    job.slice = job.x_type == ARB_F32 ? kTiles : 2 * kTiles;
    static_assert(bf16_bytes<kGroups, kTiles>(true, 2, kFewWarps) <= kLeastShared);
    const auto bytes = [&](int many) { return bf16_bytes<kGroups, kTiles>(job.w.has_second, job.stages, many); };
    return start(bf16_gemv_kernel<kGroups, kTiles, kMeans>, job, plan, bytes, device, stream);
}

const char* start_bf16(const GemvJob& job, const Plan& plan, const Device& device, void* stream) {
    const bool means = job.w.mean != nullptr;
    if (job.w.groups == 1) {
        return means ? start_bf16<1, 1, true>(job, plan, device, stream)
                     : start_bf16<1, 1, false>(job, plan, device, stream);
    }
    if (means) return start_bf16<2, 1, true>(job, plan, device, stream);
    const bool one = job.batch <= (job.x_type == ARB_F32 ? 1 : 2);
    return one ? start_bf16<2, 1, false>(job, plan, device, stream)
               : start_bf16<2, 2, false>(job, plan, device, stream);
}

template <int kGroups, int kTiles, bool kMeans>
const char* start_binary(GemvJob job, const Plan& plan, const Device& device, void* stream) {
    job.slice = 1;
    static_assert(binary_bytes<kGroups, kTiles, kMeans>(2, kFewWarps) <= kLeastShared);
    const auto bytes = [&](int many) { return binary_bytes<kGroups, kTiles, kMeans>(job.stages, many); };
    return start(binary_gemv_kernel<kGroups, kTiles, kMeans>, job, plan, bytes, device, stream);
}

template <int kGroups, bool kMeans>
const char* start_binary(const GemvJob& job, const Plan& plan, const Device& device, void* stream) {
    return job.x_type == ARB_F32 ? start_binary<kGroups, 3, kMeans>(job, plan, device, stream)
                                 : start_binary<kGroups, 2, kMeans>(job, plan, device, stream);
}

const char* start_gemv(GemvJob job, const Plan& plan, const Device& device, void* stream) {
    job.stages = stages_of(job.w, plan.splits);
    if (job.batch > 1 || device.major >= kFirstWithoutBinary) return start_bf16(job, plan, device, stream);
    const bool means = job.w.mean != nullptr;
    if (job.w.groups == 1) {
        return means ? start_binary<1, true>(job, plan, device, stream)
                     : start_binary<1, false>(job, plan, device, stream);
    }
    return means ? start_binary<2, true>(job, plan, device, stream) : start_binary<2, false>(job, plan, device, stream);
}

const char* start_plain(const Weight& w, const void* x, int64_t x_type, int64_t batch, void* y, void* stream) {
    const dim3 grid(static_cast<unsigned>(divide_up(w.rows, kPlainWarps)),
                    static_cast<unsigned>(divide_up(batch, kPlainBatch)), 1);
    return launch(plain_gemv_kernel, grid, kPlainWarps * 32, 0, stream, w, x, static_cast<int>(x_type),
                  static_cast<int>(batch), y);
}

const char* check_bits(const void* from, const void* to, int64_t rows, int64_t length) {
    if (rows < 0 || length < 0 || (length > 0 && rows > (int64_t{1} << 50) / length))
        return "rows or length is out of range";
    if (rows * length > 0 && (from == nullptr || to == nullptr)) return "a pointer is null";
    return nullptr;
}

dim3 blocks_for(int64_t threads) {
    const int64_t blocks = divide_up(threads, 256);
    return dim3(static_cast<unsigned>(blocks < kMaxGrid ? blocks : kMaxGrid), 1, 1);
}

}  // namespace
}  // namespace arb::cuda

using namespace arb::cuda;

extern "C" int64_t arb_cuda_linear_workspace(const arb_cuda_weight* weight, int64_t x_type, int64_t batch) {
    Weight w;
    Device device;
    if (make_weight(weight, w) != nullptr || !is_x_type(x_type) || batch < 0 || batch > kMaxBatch) return -1;
    if (!is_fast(w) || batch == 0) return 0;
    if (ask_device(device) != nullptr) return -1;
    const int splits = plan_of(w, device).splits;
    return splits > 1 ? splits * batch * w.rows * 4 : 0;
}

extern "C" int arb_cuda_linear(const arb_cuda_weight* weight, const void* x, int64_t x_type, int64_t batch, void* y,
                               void* workspace, int64_t workspace_bytes, void* stream, char* message,
                               int64_t capacity) {
    const auto refuse = [&](const char* why) {
        return fail(ARB_CUDA_BAD_ARGUMENT, "arb_cuda_linear", why, message, capacity);
    };
    const auto broken = [&](const char* why) {
        return fail(ARB_CUDA_ERROR, "arb_cuda_linear", why, message, capacity);
    };
    Weight w;
    if (const char* wrong = make_weight(weight, w)) return refuse(wrong);
    if (!is_x_type(x_type)) return refuse("x_type is not fp32, fp16 or bf16");
    if (batch < 0 || batch > kMaxBatch) return refuse("batch is outside 0..65535");
    if (batch == 0) return ARB_CUDA_OK;
    if (x == nullptr || y == nullptr) return refuse("x or y is null");
    if (!aligned(x, type_bytes(x_type)) || !aligned(y, type_bytes(x_type))) return refuse("x or y is not aligned");
    if (!is_fast(w)) {
        const char* wrong = start_plain(w, x, x_type, batch, y, stream);
        return wrong == nullptr ? ARB_CUDA_OK : broken(wrong);
    }
    Device device;
    if (const char* wrong = ask_device(device)) return broken(wrong);
    const Plan plan = plan_of(w, device);
    const int splits = plan.splits;
    if (splits > 1 &&
        (workspace == nullptr || !aligned(workspace, 4) || workspace_bytes < splits * batch * w.rows * 4)) {
        return refuse("workspace is too small; ask arb_cuda_linear_workspace");
    }
    GemvJob job = {};
    job.w = w;
    job.x = x;
    job.y = y;
    job.partial = static_cast<float*>(workspace);
    job.x_type = static_cast<int>(x_type);
    job.batch = static_cast<int>(batch);
    job.wide = w.words % 4 == 0 && aligned(w.sign, 16) && aligned(w.group, 16);
    if (const char* wrong = start_gemv(job, plan, device, stream)) return broken(wrong);
    if (splits == 1) return ARB_CUDA_OK;
    const int64_t count = batch * w.rows;
    const char* wrong = launch(finish_kernel, dim3(static_cast<unsigned>(divide_up(count, 256)), 1, 1), 256, 0, stream,
                               static_cast<const float*>(workspace), splits, count, y, static_cast<int>(x_type));
    return wrong == nullptr ? ARB_CUDA_OK : broken(wrong);
}

extern "C" int arb_cuda_dequantize(const arb_cuda_weight* weight, float* out, void* stream, char* message,
                                   int64_t capacity) {
    Weight w;
    const char* wrong = make_weight(weight, w);
    if (wrong == nullptr && (out == nullptr || !aligned(out, 4))) wrong = "out is null or not aligned";
    if (wrong != nullptr) return fail(ARB_CUDA_BAD_ARGUMENT, "arb_cuda_dequantize", wrong, message, capacity);
    const dim3 grid(static_cast<unsigned>(divide_up(w.rows, kPlainWarps)), 1, 1);
    wrong = launch(dequantize_kernel, grid, kPlainWarps * 32, 0, stream, w, out);
    return wrong == nullptr ? ARB_CUDA_OK : fail(ARB_CUDA_ERROR, "arb_cuda_dequantize", wrong, message, capacity);
}

extern "C" int arb_cuda_pack_bits(const uint8_t* bits, int64_t rows, int64_t length, uint32_t* words, void* stream,
                                  char* message, int64_t capacity) {
    const char* wrong = check_bits(bits, words, rows, length);
    if (wrong != nullptr) return fail(ARB_CUDA_BAD_ARGUMENT, "arb_cuda_pack_bits", wrong, message, capacity);
    if (rows * length == 0) return ARB_CUDA_OK;
    const int64_t line = divide_up(length, 64) * 2;
    wrong = launch(pack_kernel, blocks_for(rows * line * 32), 256, 0, stream, bits, rows, length, line, words);
    return wrong == nullptr ? ARB_CUDA_OK : fail(ARB_CUDA_ERROR, "arb_cuda_pack_bits", wrong, message, capacity);
}

extern "C" int arb_cuda_unpack_bits(const uint32_t* words, int64_t rows, int64_t length, uint8_t* bits, void* stream,
                                    char* message, int64_t capacity) {
    const char* wrong = check_bits(words, bits, rows, length);
    if (wrong != nullptr) return fail(ARB_CUDA_BAD_ARGUMENT, "arb_cuda_unpack_bits", wrong, message, capacity);
    if (rows * length == 0) return ARB_CUDA_OK;
    const int64_t line = divide_up(length, 64) * 2;
    wrong = launch(unpack_kernel, blocks_for(rows * length), 256, 0, stream, words, rows, length, line, bits);
    return wrong == nullptr ? ARB_CUDA_OK : fail(ARB_CUDA_ERROR, "arb_cuda_unpack_bits", wrong, message, capacity);
}

extern "C" int arb_cuda_is_fast(const arb_cuda_weight* weight) {
    Weight w;
    return make_weight(weight, w) != nullptr ? -1 : is_fast(w) ? 1 : 0;
}
