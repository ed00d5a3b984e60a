// y = x W^T for few rows of x, on tensor cores that multiply bfloat16, reading the bit planes once: for 2 rows or more,
// and for devices from sm_100 on, which have no binary ones (gemv_binary.cuh). docs/gpu-cuda.md gives the reasons.
//
// The group plane splits the signs into two matrices A0, A1 with entries 0 and +-2: bit 14 of a bfloat16 alone is 2.0
// and bit 15 its sign, so a sign bit and a group bit side by side, shifted to the top, are an entry. The other operand
// is x c as a sum of 2 or 3 bfloat16 ("parts"; 3 are an exact float32), each part a column n of B. Products are exact,
// sums are float32. Row scales multiply the sums of a unit.
//
// B's 8 columns: n = zone * 4 + slot, where zone 1 holds the salient columns' activations and zeros elsewhere, zone 0
// the reverse, so that one pass over the bits yields the sums of both zones. A row of x has 2 slots, or 4 where it has
// three parts; `kTiles` Bs hold the rows of a slice. What no row uses is never written: columns of B do not mix.
//
// Lanes: g = lane / 4 is a row of W (and n of B), t = lane % 4 a word of 32 columns; step j of a unit multiplies
// columns 2j + 1, 2j + 17, 2j, 2j + 16 of each of the four words. The oracle is PackedWeight.dequantize.
#pragma once

#include "chunks.cuh"

namespace arb::cuda {

constexpr int kSlots = 4;               // activations of a zone in one B
constexpr uint32_t kTwo = 0x40004000u;  // a pair of 2.0
constexpr uint32_t kSigns = 0x80008000u;

// Shared memory: units, B's fragments of the first plane and of the second, staged planes.
template <int kTiles>
constexpr int kFragments = 8 * kTiles * 32;  // of a unit
template <int kTiles>
constexpr int kFragments2 = 8 * kTiles * 4 * kSlots;
template <int kGroups, int kTiles>
__host__ __device__ constexpr int bf16_bytes(bool has_second, int stages, int warps) {
    const int fragments = kFragments<kTiles> + (has_second ? kFragments2<kTiles> : 0);
    return kUnits * (static_cast<int>(sizeof(Unit)) + 16 * fragments) + stages * warps * kGroups * kPlaneWords * 4;
}

// bfloat16 parts of an activation.
__host__ __device__ constexpr int parts_of(int x_type) { return x_type == ARB_F32 ? 3 : 2; }

// ---- activations: B's fragments

// Two neighbouring entries of an array of fp16 or fp32; `at` is even and the array aligned to a pair.
__device__ __forceinline__ float2 load_pair(const void* data, int type, int64_t at) {
    if (type == ARB_F32) return *reinterpret_cast<const float2*>(static_cast<const float*>(data) + at);
    const uint32_t bits = *reinterpret_cast<const uint32_t*>(static_cast<const uint16_t*>(data) + at);
    return make_float2(from_half(static_cast<uint16_t>(bits)), from_half(static_cast<uint16_t>(bits >> 16)));
}

// Four columns of a unit, at + 1, at + 17, at, at + 16, and their scales for group 0 and 1. column -1: nothing there.
struct Columns {
    int column[4];
    float scale[2][4];
};

// Halves of the columns: pair 0 is (at, at + 1), pair 1 (at + 16, at + 17); `end` bounds the positions that count.
template <int kGroups>
__device__ __forceinline__ void load_columns(const Weight& w, const Unit& unit, int at, int end, Columns& c) {
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
        const int local = at + 16 * pair, position = unit.begin + local;
        const bool inside = position < w.cols;
        const int2 columns = inside ? *reinterpret_cast<const int2*>(w.order + position) : make_int2(0, 0);
        c.column[2 + pair] = inside && local < end ? clamped_column(w, columns.x) : -1;
        c.column[pair] = inside && local + 1 < end ? clamped_column(w, columns.y) : -1;
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
            float2 scale = make_float2(1.0f, 1.0f);
            if (w.col_scale != nullptr && inside) {
                const int64_t line = w.shared_columns ? 0 : group;
                scale = load_pair(w.col_scale, w.scale_type, line * w.cols + position);
            }
            c.scale[group][2 + pair] = scale.x;
            c.scale[group][pair] = scale.y;
        }
        // Salient columns without groups of their own count as group 0, whatever their group bit says.
        if (kGroups == 2 && w.salient_groups == 1) {
            if (local < unit.salient) c.scale[1][2 + pair] = c.scale[0][2 + pair];
            if (local + 1 < unit.salient) c.scale[1][pair] = c.scale[0][pair];
        }
    }
}

// The second plane's own column scales in place of the first's.
template <int kGroups>
__device__ __forceinline__ void load_second_scales(const Weight& w, const Unit& unit, int at, int total, Columns& c) {
    if (w.col_scale == nullptr || w.shared_columns) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int seen = unit.seen + at + (i < 2 ? 1 : 0) + i % 2 * 16;
        if (c.column[i] < 0) continue;
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
            const int own = w.salient_groups == 1 ? 0 : group;
            c.scale[group][i] = col_scale2(w, own, 0, seen, total);
        }
    }
}

// Calls put(slot, fragment) for every row of x and part; a fragment is (group 0: pair 0, pair 1; group 1: the same).
template <int kGroups, typename Put>
__device__ __forceinline__ void split_activations(const GemvJob& job, int first, int count, const Columns& c, Put put) {
    const int parts = parts_of(job.x_type);
    for (int row = 0; row < count; ++row) {
        const int64_t line = static_cast<int64_t>(first + row) * job.w.cols;
        float value[kGroups][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float x = c.column[i] < 0 ? 0.0f : load_value(job.x, job.x_type, line + c.column[i]);
#pragma unroll
            for (int group = 0; group < kGroups; ++group) value[group][i] = x * c.scale[group][i];
        }
        for (int part = 0; part < parts; ++part) {
            uint32_t packed[2][2] = {};
#pragma unroll
            for (int group = 0; group < kGroups; ++group) {
#pragma unroll
                for (int pair = 0; pair < 2; ++pair) {
                    float& low = value[group][2 * pair];
                    float& high = value[group][2 * pair + 1];
                    const uint32_t bits = packed[group][pair] = pack_bf16(low, high);
                    low -= bits_to_float(bits << 16);
                    high -= bits_to_float(bits & 0xffff0000u);
                }
            }
            put(row * (parts == 3 ? 4 : 2) + part, make_uint4(packed[0][0], packed[0][1], packed[1][0], packed[1][1]));
        }
    }
}

__device__ __forceinline__ uint4 masked(uint4 v, uint32_t odd, uint32_t even) {
    return make_uint4(v.x & odd, v.y & even, v.z & odd, v.w & even);
}

// Which of the two columns of a pair lie before `count`, as a mask of 16 bits each.
__device__ __forceinline__ uint32_t pair_mask(int at, int count) {
    return (at < count ? 0xffffu : 0u) | (at + 16 < count ? 0xffff0000u : 0u);
}

// First plane of a unit: lane (step, word) prepares four columns for all n.
template <int kGroups, int kTiles>
__device__ __forceinline__ void prepare(const GemvJob& job, const Unit& unit, int first, int count, uint4* x,
                                        int lane) {
    const int step = lane / 4, word = lane % 4;
    const int at = word * 32 + 2 * step;
    Columns columns;
    load_columns<kGroups>(job.w, unit, at, kUnit, columns);
    const uint32_t odd = pair_mask(at + 1, unit.salient), even = pair_mask(at, unit.salient);
    split_activations<kGroups>(job, first, count, columns, [&](int slot, uint4 fragment) {
        uint4* to = x + (step * kTiles + slot / kSlots) * 32 + slot % kSlots * 4 + word;
        to[0] = masked(fragment, ~odd, ~even);
        to[kSlots * 4] = masked(fragment, odd, even);
    });
}

// Second plane, salient columns alone: 32 columns take two steps, in which lane t multiplies the pairs of columns
// 2i + 1, 2i + 17 and 2i, 2i + 16 with i = 2t + step. The four words of a unit are prepared at once.
template <int kGroups, int kTiles>
__device__ __forceinline__ void prepare_second(const GemvJob& job, const Unit& unit, int total, int first, int count,
                                               uint4* x2, int lane) {
    const int item = lane / 4, t = lane % 4;  // item = word * 2 + step
    const int at = item / 2 * 32 + 2 * (2 * t + item % 2);
    Columns columns;
    load_columns<kGroups>(job.w, unit, at, unit.salient, columns);
    load_second_scales<kGroups>(job.w, unit, at, total, columns);
    split_activations<kGroups>(job, first, count, columns, [&](int slot, uint4 fragment) {
        x2[(item * kTiles + slot / kSlots) * 16 + slot % kSlots * 4 + t] = fragment;
    });
}

// ---- bits -> A

// Sign and group bit of every column side by side, odd columns in one word and even ones in the other. A sign bit of 1
// means +1 but makes the entry negative: all sums come out negated, and write_rows turns them.
struct Codes {
    uint32_t odd, even;
};

// Bits of `a` where the mask is 1, of `b` elsewhere: one instruction, if written like this.
__device__ __forceinline__ uint32_t choose(uint32_t mask, uint32_t a, uint32_t b) { return b ^ ((a ^ b) & mask); }

__device__ __forceinline__ Codes interleave(uint32_t sign, uint32_t group) {
    return {choose(0xaaaaaaaau, sign, group >> 1), choose(0xaaaaaaaau, sign << 1, group)};
}

// Entries of a 16 x 16 A from codes shifted to the top of each half: group kGroup's, or both groups' without groups.
template <int kGroups, int kGroup>
__device__ __forceinline__ uint32_t entries(uint32_t code) {
    if constexpr (kGroups == 1) return (code & kSigns) | kTwo;
    return kGroup == 1 ? code & (kSigns | kTwo) : (code & (kSigns | kTwo)) ^ kTwo;
}

template <int kGroups, int kGroup>
__device__ __forceinline__ void all_entries(const uint32_t (&code)[4], uint32_t (&a)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = entries<kGroups, kGroup>(code[i]);
}

// Sums over a unit for 32 rows, two A tiles of 16: [A tile][group][B tile][register of d]
template <int kGroups, int kTiles>
using Sums = float[2][kGroups][kTiles][4];

// For methods with means: sums of the activations of group 1, and of all of them, which are the same for every row.
template <int kTiles>
struct MeanSums {
    float second[2][kTiles][4];
    float all[kTiles][4];
};

// One step: 16 columns of 32 rows, whose shifted codes are [A tile][register of A], times the fragments x[tile *
// stride].
template <int kGroups, int kTiles, bool kMeans>
__device__ __forceinline__ void multiply_step(const uint32_t (&code)[2][4], const uint4* x, int stride,
                                              Sums<kGroups, kTiles>& sums, MeanSums<kTiles>& means) {
    uint4 b[kTiles];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) b[tile] = x[tile * stride];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        uint32_t a[4];
        all_entries<kGroups, 0>(code[half], a);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) mma(sums[half][0][tile], a, b[tile].x, b[tile].y);
        if constexpr (kGroups == 2) {
            all_entries<kGroups, 1>(code[half], a);
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile) mma(sums[half][1][tile], a, b[tile].z, b[tile].w);
        }
        if constexpr (kMeans && kGroups == 2) {
#pragma unroll
            for (int i = 0; i < 4; ++i) a[i] &= kTwo;
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile) mma(means.second[half][tile], a, b[tile].z, b[tile].w);
        }
    }
    if constexpr (kMeans) {
        const uint32_t a[4] = {kTwo, kTwo, kTwo, kTwo};
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) mma(means.all[tile], a, b[tile].x, b[tile].y);
    }
}

// Registers of A for 32 rows: rows g, g + 8 of each A tile, odd pair first.
__device__ __forceinline__ void shift_codes(const Codes (&codes)[4], int shift, uint32_t (&out)[2][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        out[half][0] = codes[2 * half].odd << shift;
        out[half][1] = codes[2 * half + 1].odd << shift;
        out[half][2] = codes[2 * half].even << shift;
        out[half][3] = codes[2 * half + 1].even << shift;
    }
}

// ---- sums -> y

// Row scales of four rows (8 apart) for groups 0 .. kGroups-1 of one zone and plane.
template <int kGroups>
using Scales = float[4][kGroups];

// y += scale * sums; y is [A tile][B tile][register of d]
template <int kGroups, int kTiles>
__device__ __forceinline__ void add_scaled(const Scales<kGroups>& scales, const Sums<kGroups, kTiles>& sums,
                                           float (*y)[kTiles][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    y[half][tile][i] += scales[2 * half + i / 2][group] * sums[half][group][tile][i];
                }
            }
        }
    }
}

// `plane` 0 or 1; lanes of words 2 and 3 hold zone 1 of y. Without the row's factor, which y gets at the end.
template <int kGroups>
__device__ __forceinline__ void load_scales(const Weight& w, const int64_t (&lines)[4], const Unit& unit, int plane,
                                            bool salient, Scales<kGroups>& scales) {
    const int first = salient ? plane : w.salient_groups * w.salient_order;
    const int stride = salient ? (w.salient_groups == 1 ? 0 : w.salient_order) : 1;
    const int64_t begin = static_cast<int64_t>(unit.block) * scales_per_block(w) + first;
    const auto load = [&](auto* data) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const auto* at = data + begin + lines[r];
            scales[r][0] = to_float(*at);
            if constexpr (kGroups == 2) scales[r][1] = to_float(at[stride]);
        }
    };
    if (w.row_scale_type == ARB_F16) {
        load(static_cast<const uint16_t*>(w.row_scale));
    } else if (w.row_scale_type == ARB_U8) {
        load(static_cast<const uint8_t*>(w.row_scale));
    } else {
        load(static_cast<const float*>(w.row_scale));
    }
}

template <int kGroups>
__device__ __forceinline__ void load_means(const Weight& w, const int (&rows)[4], const Unit& unit, bool salient,
                                           Scales<kGroups>& means) {
    const int zones = w.salient_groups + w.groups;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        const int64_t base = (static_cast<int64_t>(rows[r]) * w.blocks + unit.block) * zones;
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
            const int own = w.salient_groups == 1 ? 0 : group;
            means[r][group] = load_scale(w.mean, w.scale_type, base + (salient ? own : w.salient_groups + group));
        }
    }
}

// y -= mean of group 1 * the sum of its activations + mean of group 0 * the others'; y is negated. Here x has no column
// scales, so both groups' fragments are the activations themselves.
template <int kGroups, int kTiles>
__device__ __forceinline__ void subtract_means(const Scales<kGroups>& means, const MeanSums<kTiles>& sums,
                                               float (*y)[kTiles][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int r = 2 * half + i / 2;
                y[half][tile][i] -= means[r][0] * (sums.all[tile][i] - sums.second[half][tile][i]);
                if constexpr (kGroups == 2) y[half][tile][i] -= means[r][1] * sums.second[half][tile][i];
            }
        }
    }
}

// ---- the second plane

// Adds word `v` of the unit's salient columns. Each lane fetches one row's bits; the others get them by shuffles.
// `stream` is the lane's row's first bit in the second plane, `group` the word of the row's group plane.
template <int kGroups, int kTiles>
__device__ __forceinline__ void multiply_second(const Weight& w, const Unit& unit, int64_t stream, int v,
                                                uint32_t group, const Lane& lane, const uint4* x2,
                                                Sums<kGroups, kTiles>& sums) {
    const Codes mine = interleave(second_word(w, stream + unit.seen + v * 32), group);
    Codes codes[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        codes[r] = {shuffle(mine.odd, 8 * r + lane.row), shuffle(mine.even, 8 * r + lane.row)};
    }
#pragma unroll
    for (int step = 0; step < 2; ++step) {
        uint32_t code[2][4];
        shift_codes(codes, 14 - 4 * lane.word - 2 * step, code);
        // n = 0..3 and 4..7 both read the salient slots; the former are not used.
        const uint4* x = x2 + (v * 2 + step) * kTiles * 16 + lane.row % kSlots * 4 + lane.word;
        MeanSums<kTiles> none;
        multiply_step<kGroups, kTiles, false>(code, x, 16, sums, none);
    }
}

// ---- one unit: a warp's 32 rows by 128 columns

template <int kGroups, int kTiles, bool kMeans>
__device__ __forceinline__ void multiply_unit(const Weight& w, const Unit& unit, const int (&rows)[4],
                                              const int64_t (&lines)[4], int64_t stream, const Lane& lane,
                                              const uint32_t* staged, int first_word, const uint4* x, const uint4* x2,
                                              float (&y)[2][kTiles][4]) {
    const bool salient = lane.word >= 2;
    Scales<kGroups> scales;
    load_scales<kGroups>(w, lines, unit, 0, salient, scales);
    Codes codes[4];
    const uint32_t* words =
        staged + staged_at(lane.row, first_word + lane.word);  // 8 rows on: as far from a row's begin
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        const int at = staged_at(8 * r, 0);
        codes[r] = interleave(words[at], kGroups == 2 ? words[kPlaneWords + at] : 0);
    }
    Sums<kGroups, kTiles> sums = {};
    MeanSums<kTiles> mean_sums = {};
#pragma unroll
    for (int step = 0; step < 8; ++step) {
        uint32_t code[2][4];
        shift_codes(codes, 14 - 2 * step, code);
        multiply_step<kGroups, kTiles, kMeans>(code, x + step * kTiles * 32 + lane.id, 32, sums, mean_sums);
    }
    add_scaled<kGroups, kTiles>(scales, sums, y);
    if constexpr (kMeans) {
        load_means<kGroups>(w, rows, unit, salient, scales);
        subtract_means<kGroups, kTiles>(scales, mean_sums, y);
    }
    if (w.has_second && unit.salient > 0) {
        // Lanes of zone 0 take part in the shuffles and products, and do not add these sums.
        Sums<kGroups, kTiles> sums2 = {};
        load_scales<kGroups>(w, lines, unit, 1, true, scales);
#pragma unroll 1
        for (int v = 0; v * 32 < unit.salient; ++v) {
            const uint32_t group = kGroups == 2 ? staged[kPlaneWords + staged_at(lane.id, first_word + v)] : 0;
            multiply_second<kGroups, kTiles>(w, unit, stream, v, group, lane, x2, sums2);
        }
        if (salient) add_scaled<kGroups, kTiles>(scales, sums2, y);
    }
}

// ---- a warp's sums -> memory

// Adds up parts and zones, which neighbouring lanes hold, and applies the row's factor; A's entries were -+2.
template <int kTiles>
__device__ __forceinline__ void write_rows(const GemvJob& job, int row0, int first, int count, const Lane& lane,
                                           const float (&y)[2][kTiles][4]) {
    const bool three = parts_of(job.x_type) == 3;
#pragma unroll
    for (int i = 0; i < 4 * kTiles; ++i) {
        const int tile = i % kTiles, half = i / kTiles / 2, upper = i / kTiles % 2;
        const float* d = &y[half][tile][2 * upper];
        float sum = d[0] + (three && lane.word % 2 == 1 ? 0.0f : d[1]);
        sum += shuffle_xor(sum, 2);
        if (three) sum += shuffle_xor(sum, 1);
        const int batch = three ? tile : 2 * tile + lane.word;
        const int row = row0 + 16 * half + 8 * upper + lane.row;
        if (lane.word >= (three ? 1 : 2) || batch >= count || row >= job.w.rows) continue;
        sum *= -0.5f * row_factor(job.w, row);
        const int64_t out = static_cast<int64_t>(first + batch) * job.w.rows + row;
        if (gridDim.y == 1) {
            store_value(job.y, job.x_type, out, sum);
        } else {
            job.partial[static_cast<int64_t>(blockIdx.y) * job.batch * job.w.rows + out] = sum;
        }
    }
}

// Grid: (row tiles, splits of the columns, slices of the batch).
template <int kGroups, int kTiles, bool kMeans>
__global__ void __launch_bounds__(kManyWarps * 32) bf16_gemv_kernel(const GemvJob job) {
    ARB_SHARED(memory);
    const Weight& w = job.w;
    const int warp = static_cast<int>(threadIdx.x / 32);
    const Lane lane = {static_cast<int>(threadIdx.x % 32), static_cast<int>(threadIdx.x % 32 / 4),
                       static_cast<int>(threadIdx.x % 4)};
    const int warps = static_cast<int>(blockDim.x / 32);
    const int row0 = (static_cast<int>(blockIdx.x) * warps + warp) * kWarpRows;
    const int first = static_cast<int>(blockIdx.z) * job.slice;
    const int count = minimum(job.slice, job.batch - first);
    constexpr int kStageWords = kGroups * kPlaneWords;

    Unit* units = reinterpret_cast<Unit*>(memory);
    uint4* x = reinterpret_cast<uint4*>(units + kUnits);
    uint4* x2 = x + kUnits * kFragments<kTiles>;
    uint4* planes = w.has_second ? x2 + kUnits * kFragments2<kTiles> : x2;
    uint32_t* staged = reinterpret_cast<uint32_t*>(planes) + warp * job.stages * kStageWords;

    Range left = range_of_split(w, static_cast<int>(blockIdx.y), static_cast<int>(gridDim.y));
    stage_chunk<kGroups>(job, row0, left, staged, lane.id);
    commit_copies();
    int rows[4];
    int64_t lines[4];  // where a row's scales begin
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        rows[r] = minimum(row0 + 8 * r + lane.row, w.rows - 1);
        lines[r] = static_cast<int64_t>(rows[r]) * w.blocks * scales_per_block(w);
    }
    const int total = w.has_second ? salient_between(w, 0, w.blocks) : 0;
    const int64_t stream = static_cast<int64_t>(minimum(row0 + lane.id, w.rows - 1)) * total;
    float y[2][kTiles][4] = {};
#pragma unroll 1
    for (int turn = 0; left.first < left.end; left.first += kUnits, turn ^= 1) {
        const Range next = {left.first + kUnits, left.end};
        if (next.first < next.end) {
            stage_chunk<kGroups>(job, row0, next, staged + (turn ^ 1) * kStageWords, lane.id);
        }
        commit_copies();
        const int before = seen_before(w, left.first);
        for (int task = warp; task < (w.has_second ? 2 : 1) * kUnits; task += warps) {
            const int u = task % kUnits;
            if (left.first + u >= left.end) continue;
            const Unit unit = unit_at(w, left.first + u, left.first, before);
            if (task < kUnits) {
                if (lane.id == 0) units[u] = unit;
                prepare<kGroups, kTiles>(job, unit, first, count, x + u * kFragments<kTiles>, lane.id);
            } else if (unit.salient > 0) {
                prepare_second<kGroups, kTiles>(job, unit, total, first, count, x2 + u * kFragments2<kTiles>, lane.id);
            }
        }
        wait_copies<1>();
        sync_block();
#pragma unroll 1
        for (int u = 0; u < kUnits && left.first + u < left.end; ++u) {
            const Unit unit = units[u];
            multiply_unit<kGroups, kTiles, kMeans>(w, unit, rows, lines, stream, lane, staged + turn * kStageWords,
                                                   u * 4, x + u * kFragments<kTiles>, x2 + u * kFragments2<kTiles>, y);
        }
        sync_block();
    }
    write_rows<kTiles>(job, row0, first, count, lane, y);
}

}  // namespace arb::cuda
