// y = x W^T for few rows of x, on the tensor cores, reading the bit planes once. docs/gpu-kernels.md gives the reasons.
//
// A warp multiplies 64 rows of W ("row tile") by spans of 256 columns; a span is two units of 128 columns, and a unit
// lies in one block. The group planes split the signs into two matrices A0, A1 with entries 0 and +-2: bit 14 of a
// bfloat16 alone is 2.0 and bit 15 its sign, so a sign bit and a group bit side by side, shifted to the top, are an
// entry. 0.5 x c is the other operand, as a sum of 2 or 3 bfloat16 ("parts"; 3 are an exact float32), each part a
// column n of B. Products are exact and sums are float32. Row scales multiply the sums of a unit.
//
// B's 8 columns: n = zone * 4 + slot, where zone 1 holds the salient columns' activations and zeros elsewhere, zone 0
// the reverse, so that one pass over the bits yields the sums of both zones. slot = row of x * parts + part, over
// `kTiles` Bs.
//
// Lanes: g = lane / 4 is a row of W (and n of B), t = lane % 4 a word of 32 columns; step j of a unit multiplies
// columns 2j + 1, 2j + 17, 2j, 2j + 16 of each of the four words. The oracle is PackedWeight.dequantize.
#pragma once

#include "weight.cuh"

namespace arb::cuda {

constexpr int kGemvWarps = 4;
constexpr int kRowTile = 64;
constexpr int kSpan = 256;
constexpr int kUnit = 128;
constexpr int kSlots = 4;                           // activations of a zone in one B
constexpr int kPlaneWords = kRowTile * kSpan / 32;  // a staged plane: 64 rows of 8 words
constexpr uint32_t kTwo = 0x40004000u;              // a pair of 2.0
constexpr uint32_t kSigns = 0x80008000u;

struct GemvJob {
    Weight w;
    const void* x;
    void* y;
    float* partial;  // [splits, batch, n] when there are several splits
    int x_type, batch, parts;
    int slice;   // rows of x per block of threads
    int stages;  // 1: a warp has at most one span
    int wide;    // planes allow 16-byte loads
};

// Bytes of shared memory of a warp; `x` and `x2` are B's fragments of the first and second plane.
template <int kTiles>
constexpr int kFragments = 8 * kTiles * 32;
template <int kTiles>
constexpr int kFragments2 = 8 * kTiles * 4 * kSlots;
template <int kGroups, int kTiles>
__host__ __device__ constexpr int gemv_warp_bytes(bool has_second, int stages) {
    return 16 * (kFragments<kTiles> + (has_second ? kFragments2<kTiles> : 0)) + stages * kGroups * kPlaneWords * 4;
}

struct Lane {
    int id, row, word;  // word: t above
};

// ---- planes: global -> shared, 32 contiguous bytes per row

// Where word 0..7 of a row is staged. Halves of 16 bytes change places so that no two lanes of a read share a bank.
__device__ __forceinline__ int staged_at(int row, int word) { return row * 8 + (word ^ (row & 4)); }

template <int kGroups>
__device__ __forceinline__ void stage_span(const GemvJob& job, int row0, int span, uint32_t* staged, int lane) {
    const Weight& w = job.w;
    const int half = lane % 2 * 4;
    const int word = span * (kSpan / 32) + half;
#pragma unroll
    for (int plane = 0; plane < kGroups; ++plane) {
        const uint32_t* from = plane == 0 ? w.sign : w.group;
#pragma unroll
        for (int i = 0; i < kRowTile / 16; ++i) {
            const int local = i * 16 + lane / 2;
            const int row = row0 + local;
            const bool inside = row < w.rows;
            const uint32_t* line = from + static_cast<int64_t>(inside ? row : 0) * w.words;
            uint32_t* to = staged + plane * kPlaneWords + staged_at(local, half);
            if (job.wide) {
                const bool valid = inside && word < w.words;
                copy_async<16>(to, line + (valid ? word : 0), valid);
            } else {
#pragma unroll
                for (int pair = 0; pair < 4; pair += 2) {
                    const bool valid = inside && word + pair < w.words;
                    copy_async<8>(to + pair, line + (valid ? word + pair : 0), valid);
                }
            }
        }
    }
}

// ---- activations: B's fragments

// The columns at four storage positions and their scales, halved, for group 0 and 1. column -1: nothing there.
struct Columns {
    int column[4];
    float scale[2][4];
};

__device__ __forceinline__ void load_column(const Weight& w, bool inside, int position, bool salient, bool second,
                                            int64_t seen, int64_t total, Columns& c, int i) {
    c.column[i] = inside ? column_of(w, position) : -1;
    c.scale[0][i] = c.scale[1][i] = 0.5f;
    if (!inside || w.col_scale == nullptr) return;
    // Salient columns without groups of their own count as group 0, whatever their group bit says.
    const int other = w.groups == 1 || (salient && w.salient_groups == 1) ? 0 : 1;
    if (second) {
        c.scale[0][i] *= col_scale2(w, 0, position, seen, total);
        c.scale[1][i] *= col_scale2(w, other, position, seen, total);
    } else {
        c.scale[0][i] *= col_scale(w, 0, position);
        c.scale[1][i] *= col_scale(w, other, position);
    }
}

// value - its bfloat16 in the upper half of `bits`
__device__ __forceinline__ float remainder_of(float value, uint32_t bits) { return value - bits_to_float(bits); }

// Calls put(slot, fragment) for every row of x and part; a fragment is (group 0: pair 0, pair 1; group 1: the same).
template <typename Put>
__device__ __forceinline__ void split_activations(const GemvJob& job, int first, int row, const Columns& c, Put put) {
    float value[2][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int64_t line = static_cast<int64_t>(first + row) * job.w.cols;
        const float x = c.column[i] < 0 ? 0.0f : load_value(job.x, job.x_type, line + c.column[i]);
        value[0][i] = x * c.scale[0][i];
        value[1][i] = x * c.scale[1][i];
    }
    for (int part = 0; part < job.parts; ++part) {
        uint32_t packed[2][2];
#pragma unroll
        for (int group = 0; group < 2; ++group) {
#pragma unroll
            for (int pair = 0; pair < 2; ++pair) {
                float& low = value[group][2 * pair];
                float& high = value[group][2 * pair + 1];
                const uint32_t bits = packed[group][pair] = pack_bf16(low, high);
                low = remainder_of(low, bits << 16);
                high = remainder_of(high, bits & 0xffff0000u);
            }
        }
        put(row * job.parts + part, make_uint4(packed[0][0], packed[0][1], packed[1][0], packed[1][1]));
    }
}

__device__ __forceinline__ uint4 masked(uint4 v, uint32_t odd, uint32_t even) {
    return make_uint4(v.x & odd, v.y & even, v.z & odd, v.w & even);
}

// Which of the two columns of a pair lie before `count`, as a mask of 16 bits each.
__device__ __forceinline__ uint32_t pair_mask(int at, int count) {
    return (at < count ? 0xffffu : 0u) | (at + 16 < count ? 0xffff0000u : 0u);
}

struct Unit {
    int begin;      // first position
    int block;      //
    int salient;    // the first so many of its positions are salient
    int64_t seen;   // salient columns before the unit
    int64_t total;  // of the whole matrix
};

// First plane: lane (step, word) prepares four columns for all n.
template <int kTiles>
__device__ __forceinline__ void prepare(const GemvJob& job, const Unit& unit, int first, int count, uint4* x,
                                        int lane) {
    const int step = lane / 4, word = lane % 4;
    const int at = word * 32 + 2 * step;  // of the even pair, within the unit
    Columns columns;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int local = at + (i < 2 ? 1 : 0) + i % 2 * 16;
        const int position = unit.begin + local;
        load_column(job.w, position < job.w.cols, position, local < unit.salient, false, 0, 0, columns, i);
    }
    const uint32_t odd = pair_mask(at + 1, unit.salient), even = pair_mask(at, unit.salient);
    for (int row = 0; row < count; ++row) {
        split_activations(job, first, row, columns, [&](int slot, uint4 fragment) {
            uint4* to = x + (step * kTiles + slot / kSlots) * 32 + slot % kSlots * 4 + word;
            to[0] = masked(fragment, ~odd, ~even);
            to[kSlots * 4] = masked(fragment, odd, even);
        });
    }
}

// Second plane, salient columns alone: 32 columns take two steps, in which lane t multiplies the pairs of columns
// 2i + 1, 2i + 17 and 2i, 2i + 16 with i = 2t + step. Four words of 32 are prepared at once, each (word, step, t) by a
// lane.
template <int kTiles>
__device__ __forceinline__ void prepare_second(const GemvJob& job, const Unit& unit, int first, int count, uint4* x2,
                                               int lane) {
    const int item = lane / 4, t = lane % 4;  // item = word * 2 + step
    const int at = item / 2 * 32 + 2 * (2 * t + item % 2);
    Columns columns;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int local = at + (i < 2 ? 1 : 0) + i % 2 * 16;
        load_column(job.w, local < unit.salient, unit.begin + local, true, true, unit.seen + local, unit.total, columns,
                    i);
    }
    for (int row = 0; row < count; ++row) {
        split_activations(job, first, row, columns, [&](int slot, uint4 fragment) {
            x2[(item * kTiles + slot / kSlots) * 16 + slot % kSlots * 4 + t] = fragment;
        });
    }
}

// ---- bits -> A

// Sign and group bit of every column side by side, odd columns in one word and even ones in the other; sign 1 is minus.
struct Codes {
    uint32_t odd, even;
};

__device__ __forceinline__ Codes interleave(uint32_t sign, uint32_t group) {
    return {(~sign & 0xaaaaaaaau) | (group >> 1 & 0x55555555u), (~sign << 1 & 0xaaaaaaaau) | (group & 0x55555555u)};
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

// One step: 16 columns of 32 rows, whose shifted codes are [A tile][register of A], times the fragments x[tile *
// stride].
template <int kGroups, int kTiles>
__device__ __forceinline__ void multiply_step(const uint32_t (&code)[2][4], const uint4* x, int stride,
                                              Sums<kGroups, kTiles>& sums) {
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

// `plane` 0 or 1; lanes of words 2 and 3 hold zone 1 of y.
template <int kGroups>
__device__ __forceinline__ void load_scales(const Weight& w, const int (&rows)[4], const Unit& unit, int plane,
                                            bool salient, Scales<kGroups>& scales) {
    const int per_block = scales_per_block(w);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        const int64_t base = (static_cast<int64_t>(rows[r]) * w.blocks + unit.block) * per_block;
        const float factor = row_factor(w, rows[r]);
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
            const int own = w.salient_groups == 1 ? 0 : group;
            const int at = salient ? own * w.salient_order + plane : w.salient_groups * w.salient_order + group;
            scales[r][group] = load_row_scale(w, base + at) * factor;
        }
    }
}

template <int kGroups>
__device__ __forceinline__ void load_means(const Weight& w, const int (&rows)[4], const Unit& unit, bool salient,
                                           Scales<kGroups>& means) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        const int64_t base = (static_cast<int64_t>(rows[r]) * w.blocks + unit.block) * (w.salient_groups + w.groups);
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
            const int own = w.salient_groups == 1 ? 0 : group;
            means[r][group] =
                load_scale(w.mean, w.scale_type, base + (salient ? own : w.salient_groups + group)) * w.factor;
        }
    }
}

// Means: y += mean of group 1 * its activations + mean of group 0 * the others. Here x has no column scales, so both
// halves of a fragment are the activations themselves. `all` are the sums over both groups, the same for all rows.
template <int kGroups, int kTiles>
__device__ __forceinline__ void add_means(const Weight& w, const int (&rows)[4], const Unit& unit, const Lane& lane,
                                          const Codes (&codes)[4], const uint4* x, const float (&all)[kTiles][4],
                                          float (*y)[kTiles][4]) {
    float second[2][kTiles][4] = {};  // sums over group 1
    if constexpr (kGroups == 2) {
#pragma unroll
        for (int step = 0; step < 8; ++step) {
            uint32_t code[2][4];
            shift_codes(codes, 14 - 2 * step, code);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                uint32_t a[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) a[i] = code[half][i] & kTwo;
#pragma unroll
                for (int tile = 0; tile < kTiles; ++tile) {
                    const uint4 b = x[(step * kTiles + tile) * 32 + lane.id];
                    mma(second[half][tile], a, b.z, b.w);
                }
            }
        }
    }
    Scales<kGroups> means;
    load_means<kGroups>(w, rows, unit, lane.word >= 2, means);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int r = 2 * half + i / 2;
                y[half][tile][i] += means[r][0] * (all[tile][i] - second[half][tile][i]);
                if constexpr (kGroups == 2) y[half][tile][i] += means[r][1] * second[half][tile][i];
            }
        }
    }
}

// ---- the second plane

// Codes of the second plane for word `v` of the unit's salient columns and one row: a stream of bits, `total` per row.
template <int kGroups>
__device__ __forceinline__ Codes second_codes(const Weight& w, const Unit& unit, int row, int v, uint32_t group) {
    const int64_t bit = row * unit.total + unit.seen + v * 32;
    const int64_t last = w.second_words - 1, at = bit / 32;
    const uint32_t low = w.second[at < last ? at : last];
    const uint32_t high = w.second[at + 1 < last ? at + 1 : last];
    return interleave(funnel_right(low, high, static_cast<uint32_t>(bit % 32)), group);
}

// 32 rows from local row `top`. Each lane fetches one row's bits; the others get them by shuffles.
template <int kGroups, int kTiles>
__device__ __forceinline__ void multiply_second(const GemvJob& job, const Unit& unit, int row0, int top,
                                                const Lane& lane, const uint32_t* staged, int first_word,
                                                const uint4* x2, Sums<kGroups, kTiles>& sums) {
    const int row = minimum(row0 + top + lane.id, job.w.rows - 1);
#pragma unroll 1
    for (int v = 0; v * 32 < unit.salient; ++v) {
        const uint32_t group = kGroups == 2 ? staged[kPlaneWords + staged_at(top + lane.id, first_word + v)] : 0;
        const Codes mine = second_codes<kGroups>(job.w, unit, row, v, group);
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
            multiply_step<kGroups, kTiles>(code, x, 16, sums);
        }
    }
}

// ---- one unit: 64 rows by 128 columns

template <int kGroups, int kTiles, bool kMeans>
__device__ __forceinline__ void multiply_unit(const GemvJob& job, const Unit& unit, int row0, const Lane& lane,
                                              const uint32_t* staged, int first_word, const uint4* x, const uint4* x2,
                                              float (&y)[4][kTiles][4]) {
    const Weight& w = job.w;
    const bool salient = lane.word >= 2;
    float all[kTiles][4] = {};
    if constexpr (kMeans) {
        const uint32_t a[4] = {kTwo, kTwo, kTwo, kTwo};
#pragma unroll
        for (int i = 0; i < 8 * kTiles; ++i) mma(all[i % kTiles], a, x[i * 32 + lane.id].x, x[i * 32 + lane.id].y);
    }
#pragma unroll
    for (int top = 0; top < kRowTile; top += 32) {
        int rows[4];
        Codes codes[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const int local = top + 8 * r + lane.row;
            rows[r] = minimum(row0 + local, w.rows - 1);
            const int at = staged_at(local, first_word + lane.word);
            codes[r] = interleave(staged[at], kGroups == 2 ? staged[kPlaneWords + at] : 0);
        }
        Scales<kGroups> scales;
        load_scales<kGroups>(w, rows, unit, 0, salient, scales);
        Sums<kGroups, kTiles> sums = {};
#pragma unroll
        for (int step = 0; step < 8; ++step) {
            uint32_t code[2][4];
            shift_codes(codes, 14 - 2 * step, code);
            multiply_step<kGroups, kTiles>(code, x + step * kTiles * 32 + lane.id, 32, sums);
        }
        add_scaled<kGroups, kTiles>(scales, sums, &y[top / 16]);
        if constexpr (kMeans) {
            add_means<kGroups, kTiles>(w, rows, unit, lane, codes, x, all, &y[top / 16]);
        }
        if (w.has_second && unit.salient > 0) {
            Sums<kGroups, kTiles> sums2 = {};
            multiply_second<kGroups, kTiles>(job, unit, row0, top, lane, staged, first_word, x2, sums2);
            if (salient) {
                load_scales<kGroups>(w, rows, unit, 1, true, scales);
                add_scaled<kGroups, kTiles>(scales, sums2, &y[top / 16]);
            }
        }
    }
}

// ---- the warps' y -> memory

// Adds up warps, zones and parts, in this order whatever the batch.
template <int kTiles>
__device__ __forceinline__ void write_rows(const GemvJob& job, int row0, int first, int count, const Lane& lane,
                                           int warp, const float (&y)[4][kTiles][4], float* memory) {
    constexpr int kLine = 8 * kTiles + 1;
    sync_block();
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            const int row = i / 4 * 16 + i % 4 / 2 * 8 + lane.row;
            memory[(warp * kRowTile + row) * kLine + tile * 8 + lane.word * 2 + i % 2] = y[i / 4][tile][i % 4];
        }
    }
    sync_block();
    for (int at = static_cast<int>(threadIdx.x); at < kRowTile * count; at += kGemvWarps * 32) {
        const int row = at % kRowTile, batch = at / kRowTile;
        if (row0 + row >= job.w.rows) continue;
        float sum = 0.0f;
        for (int from = 0; from < kGemvWarps; ++from) {
            const float* line = memory + (from * kRowTile + row) * kLine;
            for (int part = 0; part < job.parts; ++part) {
                const int slot = batch * job.parts + part;
                const float* values = line + slot / kSlots * 8 + slot % kSlots;
                sum += values[0] + values[kSlots];
            }
        }
        const int64_t out = static_cast<int64_t>(first + batch) * job.w.rows + row0 + row;
        if (gridDim.y == 1) {
            store_value(job.y, job.x_type, out, sum);
        } else {
            job.partial[static_cast<int64_t>(blockIdx.y) * job.batch * job.w.rows + out] = sum;
        }
    }
}

// Grid: (row tiles, splits of the columns, slices of the batch).
template <int kGroups, int kTiles, bool kMeans>
__global__ void __launch_bounds__(kGemvWarps * 32) gemv_kernel(const GemvJob job) {
    ARB_SHARED(memory);
    const Weight& w = job.w;
    const int warp = static_cast<int>(threadIdx.x / 32);
    const Lane lane = {static_cast<int>(threadIdx.x % 32), static_cast<int>(threadIdx.x % 32 / 4),
                       static_cast<int>(threadIdx.x % 4)};
    const int row0 = static_cast<int>(blockIdx.x) * kRowTile;
    const int first = static_cast<int>(blockIdx.z) * job.slice;
    const int count = minimum(job.slice, job.batch - first);
    const int spans = (w.cols + kSpan - 1) / kSpan;
    const int workers = static_cast<int>(gridDim.y) * kGemvWarps;
    const int worker = static_cast<int>(blockIdx.y) * kGemvWarps + warp;

    const int bytes = gemv_warp_bytes<kGroups, kTiles>(w.has_second, job.stages);
    uint4* x = reinterpret_cast<uint4*>(memory + warp * bytes);
    uint4* x2 = x + kFragments<kTiles>;
    uint4* planes = w.has_second ? x2 + kFragments2<kTiles> : x2;
    uint32_t* staged = reinterpret_cast<uint32_t*>(planes);
    constexpr int kStageWords = kGroups * kPlaneWords;

    if (worker < spans) stage_span<kGroups>(job, row0, worker, staged, lane.id);
    commit_copies();
    // Slots that no row of x uses stay zero.
    for (int i = lane.id; i < kFragments<kTiles> + (w.has_second ? kFragments2<kTiles> : 0); i += 32) {
        x[i] = make_uint4(0, 0, 0, 0);
    }
    sync_warp();

    Unit unit = {0, 0, 0, 0, 0};
    if (w.has_second) unit.total = salient_between(w, 0, w.blocks);
    int64_t seen = 0;  // salient columns of the blocks before unit.block
    float y[4][kTiles][4] = {};
#pragma unroll 1
    for (int span = worker, turn = 0; span < spans; span += workers, turn ^= 1) {
        if (span + workers < spans) {
            stage_span<kGroups>(job, row0, span + workers, staged + (turn ^ 1) * kStageWords, lane.id);
        }
        commit_copies();
#pragma unroll 1
        for (int begin = span * kSpan; begin < minimum((span + 1) * kSpan, w.cols); begin += kUnit) {
            const int block = begin / w.block_size;
            const int inside = begin - block * w.block_size;
            if (w.has_second) seen += salient_between(w, unit.block, block);
            unit.begin = begin;
            unit.block = block;
            unit.salient = maximum(0, minimum(salient_count(w, block) - inside, kUnit));
            unit.seen = seen + inside;
            prepare<kTiles>(job, unit, first, count, x, lane.id);
            if (w.has_second && unit.salient > 0) prepare_second<kTiles>(job, unit, first, count, x2, lane.id);
            wait_copies<1>();
            sync_warp();
            multiply_unit<kGroups, kTiles, kMeans>(job, unit, row0, lane, staged + turn * kStageWords,
                                                   begin % kSpan / 32, x, x2, y);
            sync_warp();
        }
    }
    write_rows<kTiles>(job, row0, first, count, lane, warp, y, reinterpret_cast<float*>(memory));
}

// y = sum over splits of partial [splits, count], in order.
__global__ void __launch_bounds__(256)
    finish_kernel(const float* partial, int splits, int64_t count, void* y, int y_type) {
    const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= count) return;
    float sum = 0.0f;
    for (int split = 0; split < splits; ++split) sum += partial[split * count + at];
    store_value(y, y_type, at, sum);
}

}  // namespace arb::cuda
