// y = x W^T for one row of x, on the binary tensor cores that sm_80 to sm_90 have: an mma of single bits counts the
// ones of a & b. docs/gpu-cuda.md gives the reasons; gemv_bf16.cuh is the kernel for more rows and for later devices.
//
// A is the weight's own words, a bit a column: of a group, the columns with sign + ("plus") and with sign - ("minus").
// B is x c in whole numbers u of `kBits` bits, in steps of a power of two that fit the largest of 128 columns; a plane,
// bit p of all columns' u, is a column of B. As -u = ~u + 1,
//
//     sum of sign * u = sum over p of 2^p (ones(plus & plane p) + ones(minus & ~plane p)) + ones(minus)
//
// where the sign bit's 2^p is negative, and the last addend is one more plane. A unit has up to three such terms, each
// with row scales and steps of its own: 0 the columns that are not salient, 1 and 2 the salient ones' two planes. The
// oracle is PackedWeight.dequantize.
#pragma once

#include "chunks.cuh"

namespace arb::cuda {

// A tile is 8 columns of B. Two hold fp16 and bf16 x in 15 bits, three float32 x in 23; one more is the ones' plane.
template <int kTiles>
constexpr int kBits = 8 * kTiles - 1;
constexpr int kTerms = 3;
constexpr int kNarrow = 32;            // so many salient columns take a B of one tile
constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: the float of kMagicBits + i is kMagic + i
constexpr int kMagicBits = 0x4b400000;

// Row scales of a warp's 32 rows in shared memory: [row][unit][term, then means][group], rows apart so that 8 of them
// share no bank.
template <int kGroups, bool kMeans>
constexpr int kRowScales = (kMeans ? kTerms + 2 : kTerms) * kGroups;
template <int kGroups, bool kMeans>
constexpr int kScaleStride = kUnits * kRowScales<kGroups, kMeans> + (kGroups == 2 ? 4 : 1);

// Shared memory: units, steps, B, then for every warp row scales and planes.
template <int kTiles>
constexpr int kUnitFragments = kTerms * kTiles * 32;
template <int kGroups, int kTiles, bool kMeans>
__host__ __device__ constexpr int binary_bytes(int stages, int warps) {
    const int unit = static_cast<int>(sizeof(Unit)) + 16 * (1 + kUnitFragments<kTiles>);
    return kUnits * unit + warps * (kWarpRows * kScaleStride<kGroups, kMeans> + stages * kGroups * kPlaneWords) * 4;
}

// ---- row scales

// Row scales of a block in the order they are kept in; `line`: row * blocks + block.
template <int kGroups, typename T>
__device__ __forceinline__ void load_block_scales(const Weight& w, const T* data, int64_t line, float* out) {
    const T* at = data + line * scales_per_block(w);
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
        const int salient = (w.salient_groups == 1 ? 0 : group) * w.salient_order;
        out[group] = to_float(at[w.salient_groups * w.salient_order + group]);
        out[kGroups + group] = to_float(at[salient]);
        out[2 * kGroups + group] = w.has_second ? to_float(at[salient + 1]) : 0.0f;
    }
}

// The same for the paper's layout, two groups, two orders and fp16: two scales in a load.
__device__ __forceinline__ void load_scale_pairs(const Weight& w, int64_t line, float* out) {
    const uint32_t* at = static_cast<const uint32_t*>(w.row_scale) + line * 3;
    const uint32_t pairs[3] = {at[2], at[0], at[1]};  // groups; orders of group 0; of group 1
    out[0] = from_half(static_cast<uint16_t>(pairs[0]));
    out[1] = from_half(static_cast<uint16_t>(pairs[0] >> 16));
#pragma unroll
    for (int group = 0; group < 2; ++group) {
        out[2 + group] = from_half(static_cast<uint16_t>(pairs[1 + group]));
        out[4 + group] = from_half(static_cast<uint16_t>(pairs[1 + group] >> 16));
    }
}

template <int kGroups>
__device__ __forceinline__ void load_block_means(const Weight& w, int64_t line, float* out) {
    const int64_t zones = line * (w.salient_groups + w.groups);
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
        const int own = w.salient_groups == 1 ? 0 : group;
        out[group] = load_scale(w.mean, w.scale_type, zones + w.salient_groups + group);
        out[kGroups + group] = load_scale(w.mean, w.scale_type, zones + own);
    }
}

template <int kGroups, bool kMeans>
__device__ __forceinline__ void stage_scales(const Weight& w, int row0, const Range& units, float* staged,
                                             const Lane& lane) {
    constexpr int kScales = kRowScales<kGroups, kMeans>;
    const int block = block_of_unit(w, units.first + lane.word);
    if (units.first + lane.word >= units.end) return;
    float values[4][kScales];
    const auto load_all = [&](auto load) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const int64_t row = minimum(row0 + 8 * r + lane.row, w.rows - 1);
            load(row * w.blocks + block, values[r]);
        }
    };
    if (kGroups == 2 && w.paired_scales) {
        load_all([&](int64_t line, float* out) {
            if constexpr (kGroups == 2) load_scale_pairs(w, line, out);
        });
    } else if (w.row_scale_type == ARB_F16) {
        const auto* data = static_cast<const uint16_t*>(w.row_scale);
        load_all([&](int64_t line, float* out) { load_block_scales<kGroups>(w, data, line, out); });
    } else if (w.row_scale_type == ARB_U8) {
        const auto* data = static_cast<const uint8_t*>(w.row_scale);
        load_all([&](int64_t line, float* out) { load_block_scales<kGroups>(w, data, line, out); });
    } else {
        const auto* data = static_cast<const float*>(w.row_scale);
        load_all([&](int64_t line, float* out) { load_block_scales<kGroups>(w, data, line, out); });
    }
    if constexpr (kMeans) {
        load_all([&](int64_t line, float* out) { load_block_means<kGroups>(w, line, out + kTerms * kGroups); });
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        float* to = staged + (8 * r + lane.row) * kScaleStride<kGroups, kMeans> + lane.word * kScales;
#pragma unroll
        for (int i = 0; i < kScales; ++i) to[i] = values[r][i];
    }
}

// ---- activations: B

// A step that keeps |x c| / step below 2^(kBits - 1), from the bits of the largest |x c|; NaN if that is not finite.
struct Step {
    float size, inverse;
};
template <int kTiles>
__device__ __forceinline__ Step step_of(uint32_t largest) {
    const auto exponent = static_cast<int>(largest >> 23);
    if (exponent == 255) return {bits_to_float(0x7fffffffu), 0.0f};
    const int field = maximum(exponent, kBits<kTiles>) + 2 - kBits<kTiles>;
    return {bits_to_float(static_cast<uint32_t>(field) << 23), bits_to_float(static_cast<uint32_t>(254 - field) << 23)};
}

// Bits of u, and where kTiles is 2 nothing of use above the 16th.
template <int kTiles>
__device__ __forceinline__ uint32_t whole(float value, float inverse) {
    constexpr float kLargest = static_cast<float>((1 << (kBits<kTiles> - 1)) - 1);
    const uint32_t bits = float_to_bits(fminf(value * inverse + kMagic, kMagic + kLargest));
    return kTiles == 2 ? bits : bits ^ 0x400000u;
}

// Bit i of lane k's answer is bit k of lane i's word.
__device__ __forceinline__ uint32_t transpose(uint32_t word, int lane) {
    uint32_t low = 0x0000ffffu;  // bits whose number has a 0 where the step has its 1
#pragma unroll
    for (int step = 16, place = 4; step > 0; step /= 2, --place, low ^= low << step) {
        const uint32_t other = shuffle_xor(word, step);
        const uint32_t turned = funnel_right(other, other, static_cast<uint32_t>(2 * (lane & step) - step) % 32);
        const uint32_t own = low ^ (0u - static_cast<uint32_t>(lane >> place & 1));
        word = turned ^ ((turned ^ word) & own);
    }
    return word;
}

// Where plane q (0: the ones, then bit q - 1 of u) lies in B: `kTiles` neighbouring pairs of columns belong to a t.
template <int kTiles>
__device__ __forceinline__ int fragment_of(int q) {
    const int t = q / (2 * kTiles), slot = q % (2 * kTiles);
    return slot / 2 * 32 + (2 * t + slot % 2) * 4;
}

// Stores a plane of 32 columns, word `word` of the unit, for one group. {x, y}: group 0's plus and minus; {z, w}: 1's.
template <int kTiles>
__device__ __forceinline__ void store_plane(uint2* b, int plane, int group, int word, uint32_t bits, uint32_t valid) {
    const bool ones = plane == kBits<kTiles>;
    const int at = fragment_of<kTiles>(ones ? 0 : plane + 1) + word;
    b[at * 2 + group] = ones ? make_uint2(0, valid) : make_uint2(bits, ~bits & valid);
}

// Up to 32 columns: words of B repeat them, so that a plane of weight 2 counts twice. Column n has plane 2n in word 0
// and 2n + 1 in words 1 and 2; the last has the sign alone; word 3 of the first is the ones' plane.
__device__ __forceinline__ void store_narrow(uint2* b, int plane, int group, uint32_t bits, uint32_t valid) {
    const uint2 both = make_uint2(bits, ~bits & valid);
    const int at = plane / 2 * 4;
    if (plane == kBits<2>) {
        b[3 * 2 + group] = make_uint2(0, valid);
    } else if (plane % 2 == 0) {
        b[at * 2 + group] = both;
    } else {
        b[(at + 1) * 2 + group] = b[(at + 2) * 2 + group] = both;
    }
}

// Whether the salient columns of a unit take the B above.
template <int kTiles>
__device__ __forceinline__ bool is_narrow(const Unit& unit) {
    return kTiles == 2 && unit.salient <= kNarrow;
}

// A lane's columns for one term, one in each of kWords words; -1: not of the term. Positions from .. to-1 of the unit.
template <int kGroups, int kWords>
struct TermColumns {
    int column[kWords];
    uint32_t valid[kWords];  // of the word's 32 columns
    float scale[kWords][kGroups];
};

template <int kGroups, int kWords>
__device__ __forceinline__ void load_term_columns(const Weight& w, const Unit& unit, int from, int to, int lane,
                                                  TermColumns<kGroups, kWords>& c) {
#pragma unroll
    for (int word = 0; word < kWords; ++word) {
        const int local = 32 * word + lane;
        const bool inside = local >= from && local < to;
        c.column[word] = inside ? clamped_column(w, w.order[unit.begin + local]) : -1;
        c.valid[word] = vote(inside);
    }
}

template <int kGroups, int kWords>
__device__ __forceinline__ void load_term_scales(const Weight& w, const Unit& unit, int term, int total, int to,
                                                 int lane, TermColumns<kGroups, kWords>& c) {
#pragma unroll
    for (int i = 0; i < kWords * kGroups; ++i) c.scale[i / kGroups][i % kGroups] = 1.0f;
    if (w.col_scale == nullptr) return;
    const bool second = term == 2 && !w.shared_columns;
    const int line = w.shared_columns || (term > 0 && w.salient_groups == 1) ? 0 : second ? total : w.cols;
    const int begin = second ? unit.seen : unit.begin;
    const int last = second ? static_cast<int>(w.col_scale2_length) - 1 : begin + line + kUnit;
    const auto load = [&](auto* data) {
#pragma unroll
        for (int word = 0; word < kWords; ++word) {
            const int at = begin + minimum(32 * word + lane, to - 1);
#pragma unroll
            for (int group = 0; group < kGroups; ++group) {
                // Salient columns without groups of their own count as group 0, whatever their group bit says.
                c.scale[word][group] = to_float(data[minimum(at + group * line, last)]);
            }
        }
    };
    const void* data = second ? w.col_scale2 : w.col_scale;
    if (w.scale_type == ARB_F16) {
        load(static_cast<const uint16_t*>(data));
    } else {
        load(static_cast<const float*>(data));
    }
}

// One activation; where B has two tiles, of 16 bits.
template <int kTiles>
__device__ __forceinline__ float load_activation(const GemvJob& job, int at) {
    if constexpr (kTiles == 3) return static_cast<const float*>(job.x)[at];
    const uint16_t bits = static_cast<const uint16_t*>(job.x)[at];
    return job.x_type == ARB_F16 ? from_half(bits) : bits_to_float(static_cast<uint32_t>(bits) << 16);
}

// B of a unit for one term: a lane is a column of each word, then a plane.
template <int kGroups, int kTiles, int kWords>
__device__ __forceinline__ void store_fragments(const TermColumns<kGroups, kWords>& c, const float (&x)[kWords],
                                                uint4* b, float* step_size, int lane) {
    constexpr bool kNarrowTerm = kWords == 1;
    float value[kWords][kGroups];
    uint32_t largest = 0;  // as bits, so that not-a-numbers are
#pragma unroll
    for (int i = 0; i < kWords * kGroups; ++i) {
        const int word = i / kGroups, group = i % kGroups;
        value[word][group] = x[word] * c.scale[word][group];
        const uint32_t size = float_to_bits(value[word][group]) & 0x7fffffffu;
        largest = size > largest ? size : largest;
    }
    const Step step = step_of<kTiles>(warp_maximum(largest));
    if (lane == 0) *step_size = step.size;
    uint2* pairs = reinterpret_cast<uint2*>(b);
    if constexpr (kNarrowTerm) {
        b[lane] = make_uint4(0, 0, 0, 0);
        sync_warp();
    }
#pragma unroll
    for (int word = 0; word < kWords; ++word) {
        uint32_t bits[kGroups];
#pragma unroll
        for (int group = 0; group < kGroups; ++group) bits[group] = whole<kTiles>(value[word][group], step.inverse);
        if constexpr (kTiles == 2) {  // 16 planes of either group
            uint32_t planes = bits[0];
            if constexpr (kGroups == 2) planes = (bits[0] & 0xffffu) | bits[1] << 16;
            planes = transpose(planes, lane);
            if (lane / 16 >= kGroups) continue;
            if constexpr (kNarrowTerm) {
                store_narrow(pairs, lane % 16, lane / 16, planes, c.valid[word]);
            } else {
                store_plane<kTiles>(pairs, lane % 16, lane / 16, word, planes, c.valid[word]);
            }
        } else {
#pragma unroll
            for (int group = 0; group < kGroups; ++group) {
                const uint32_t planes = transpose(bits[group], lane);
                if (lane <= kBits<kTiles>) store_plane<kTiles>(pairs, lane, group, word, planes, c.valid[word]);
            }
        }
    }
}

// Terms `term` .. `last` of a unit, whose columns are the same. `b`: the unit's, [term][kTiles * 32]; `steps`: [4].
template <int kGroups, int kTiles, int kWords>
__device__ __forceinline__ void prepare(const GemvJob& job, const Unit& unit, int term, int last, int total, uint4* b,
                                        float* steps, int lane) {
    const int from = term == 0 ? unit.salient : 0;
    const int to = minimum(term == 0 ? kUnit : unit.salient, job.w.cols - unit.begin);
    // Not "salient == kUnit": ptxas 13.0 would answer that with the predicate of the clamp that made `salient`
    // (VIMNMX.RELU), which an H200 sets otherwise. A test looks for that instruction.
    if (from >= to) return;
    TermColumns<kGroups, kWords> columns;
    load_term_columns<kGroups, kWords>(job.w, unit, from, to, lane, columns);
    float x[kWords];
#pragma unroll
    for (int word = 0; word < kWords; ++word) {
        x[word] = columns.column[word] < 0 ? 0.0f : load_activation<kTiles>(job, columns.column[word]);
    }
#pragma unroll 1
    for (; term <= last; ++term) {
        load_term_scales<kGroups, kWords>(job.w, unit, term, total, to, lane, columns);
        store_fragments<kGroups, kTiles, kWords>(columns, x, b + term * kTiles * 32, steps + term, lane);
    }
}

// ---- the weight's words: A

template <int kGroups>
struct Words {
    uint32_t plus[4][kGroups], minus[4][kGroups];  // [row][group]
};

template <int kGroups>
__device__ __forceinline__ Words<kGroups> split_words(const uint32_t (&sign)[4], const uint32_t (&group)[4]) {
    Words<kGroups> words;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        if constexpr (kGroups == 1) {
            words.plus[r][0] = sign[r];
            words.minus[r][0] = ~sign[r];
        } else {
            words.plus[r][0] = sign[r] & ~group[r];
            words.minus[r][0] = ~(sign[r] | group[r]);
            words.plus[r][1] = sign[r] & group[r];
            words.minus[r][1] = ~sign[r] & group[r];
        }
    }
    return words;
}

// What a lane's sums are multiplied by: sums of a tile's planes, relative to the first, and the first itself.
template <int kTiles>
struct LaneWeights {
    int plane[2 * kTiles - 1];
    int narrow[1];
    float narrow_first;  // relative to `first`
    float first;
    int start[4];  // of a sum: it starts as kMagicBits, and so the total is a float's bits without a conversion

    __device__ explicit LaneWeights(int t) {
        // The compiler would build each `start` anew, and shift and add where one multiplication does, if it knew them.
#pragma unroll
        for (int i = 0; i < 4; ++i) start[i] = opaque(i % 2 == 0 ? kMagicBits : 0, i);
#pragma unroll
        for (int slot = 1; slot < 2 * kTiles; ++slot) plane[slot - 1] = opaque(1 << (t == 0 ? slot - 1 : slot), 0);
        narrow[0] = 4;
        if (t == 3) {
            plane[2 * kTiles - 2] = -plane[2 * kTiles - 2];
            narrow[0] = -4;
        }
        narrow_first = t == 0 ? 1.0f : 2.0f;
        first = t == 0 ? 1.0f : static_cast<float>(1 << (2 * kTiles * t - 1));
    }
};

// part[row] += scale * sum of sign * u; kSigns false: the sum of u alone, of the columns in words.plus.
template <bool kSigns, int kGroups, int kTiles>
__device__ __forceinline__ void add_sums(const Words<kGroups>& words, const uint4* x,
                                         const int (&weights)[2 * kTiles - 1], const int (&start)[4],
                                         const float (&scale)[4][kGroups], float (&part)[4]) {
    const int zero[4] = {};
    uint4 b[kTiles];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) b[tile] = x[tile * 32];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
            int sums[kTiles][4];
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile) {
                mma_bits(sums[tile], tile == 0 ? start : zero, words.plus[2 * half][group],
                         words.plus[2 * half + 1][group], group == 0 ? b[tile].x : b[tile].z);
                if constexpr (kSigns) {
                    mma_bits(sums[tile], sums[tile], words.minus[2 * half][group], words.minus[2 * half + 1][group],
                             group == 0 ? b[tile].y : b[tile].w);
                }
            }
#pragma unroll
            for (int upper = 0; upper < 2; ++upper) {
                int sum = sums[0][2 * upper];
#pragma unroll
                for (int slot = 1; slot < 2 * kTiles; ++slot) {
                    sum += weights[slot - 1] * sums[slot / 2][2 * upper + slot % 2];
                }
                const int r = 2 * half + upper;
                part[r] += scale[r][group] * (bits_to_float(static_cast<uint32_t>(sum)) - kMagic);
            }
        }
    }
}

// ---- one unit: a warp's 32 rows by 128 columns

// A block of threads' view of a unit, and a warp's.
template <int kGroups, int kTiles, bool kMeans>
struct UnitView {
    const Unit& unit;
    const uint4* b;          // [term][kTiles * 32]
    const float* steps;      // [term]
    const float* scales;     // of the lane's first row
    const uint32_t* planes;  // staged
    int first_word;          // of the planes
    const Lane& lane;
    const LaneWeights<kTiles>& weights;

    __device__ void load_words(const uint32_t* plane, int word, uint32_t (&out)[4]) const {
#pragma unroll
        for (int r = 0; r < 4; ++r) out[r] = plane[staged_at(8 * r + lane.row, first_word + word)];
    }

    __device__ void load_scales(int which, float (&out)[4][kGroups]) const {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const float* at = scales + 8 * r * kScaleStride<kGroups, kMeans> + which * kGroups;
            if constexpr (kGroups == 2) {
                const float2 pair = *reinterpret_cast<const float2*>(at);
                out[r][0] = pair.x;
                out[r][1] = pair.y;
            } else {
                out[r][0] = *at;
            }
        }
    }

    template <bool kNarrowTerm>
    __device__ void add_term(int term, const Words<kGroups>& words, float (&y)[4]) const {
        constexpr int kUsed = kNarrowTerm ? 1 : kTiles;
        const uint4* x = b + term * kTiles * 32 + lane.id;
        const auto& weigh = [&]() -> const int (&)[2 * kUsed - 1] {
            if constexpr (kNarrowTerm) {
                return weights.narrow;
            } else {
                return weights.plane;
            }
        }();
        float scale[4][kGroups], part[4] = {};
        load_scales(term, scale);
        add_sums<true, kGroups, kUsed>(words, x, weigh, weights.start, scale, part);
        if constexpr (kMeans) {
            if (term < 2) {
                Words<kGroups> all;
#pragma unroll
                for (int r = 0; r < 4; ++r) {
#pragma unroll
                    for (int group = 0; group < kGroups; ++group) {
                        all.plus[r][group] = words.plus[r][group] | words.minus[r][group];
                    }
                }
                load_scales(kTerms + term, scale);
                add_sums<false, kGroups, kUsed>(all, x, weigh, weights.start, scale, part);
            }
        }
        const float step = steps[term] * (kNarrowTerm ? weights.narrow_first : 1.0f);
#pragma unroll
        for (int r = 0; r < 4; ++r) y[r] += step * part[r];
    }
};

template <int kGroups, int kTiles, bool kMeans>
__device__ __forceinline__ void multiply_unit(const Weight& w, const UnitView<kGroups, kTiles, kMeans>& view, int row0,
                                              int total, float (&y)[4]) {
    const Unit& unit = view.unit;
    const Lane& lane = view.lane;
    uint32_t sign[4], group[4] = {};
    view.load_words(view.planes, lane.word, sign);
    if constexpr (kGroups == 2) view.load_words(view.planes + kPlaneWords, lane.word, group);
    const Words<kGroups> words = split_words<kGroups>(sign, group);
    if (unit.salient < kUnit) view.template add_term<false>(0, words, y);
    if (unit.salient == 0) return;
    if (is_narrow<kTiles>(unit)) {
        const int64_t stream = static_cast<int64_t>(minimum(row0 + lane.id, w.rows - 1)) * total;
        const uint32_t second = w.has_second ? second_word(w, stream + unit.seen) : 0;
        view.load_words(view.planes, 0, sign);
        if constexpr (kGroups == 2) view.load_words(view.planes + kPlaneWords, 0, group);
        view.template add_term<true>(1, split_words<kGroups>(sign, group), y);
        if (!w.has_second) return;
#pragma unroll
        for (int r = 0; r < 4; ++r) sign[r] = shuffle(second, 8 * r + lane.row);
        view.template add_term<true>(2, split_words<kGroups>(sign, group), y);
    } else {
        view.template add_term<false>(1, words, y);
        if (!w.has_second) return;
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const int64_t stream = static_cast<int64_t>(minimum(row0 + 8 * r + lane.row, w.rows - 1)) * total;
            sign[r] = second_word(w, stream + unit.seen + 32 * lane.word);
        }
        view.template add_term<false>(2, split_words<kGroups>(sign, group), y);
    }
}

// Adds up what the four lanes of a row hold, so that lane t has the sum of row 8 t + g, and applies the row's factor.
__device__ __forceinline__ void write_sums(const GemvJob& job, int row0, const Lane& lane, float weight,
                                           const float (&y)[4]) {
    const int row = row0 + 8 * lane.word + lane.row;
    const bool odd = lane.word % 2 != 0, high = lane.word >= 2;
    float half[2];  // of rows 8 t + g with the lane's last bit of t
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const float low = y[2 * i] * weight, up = y[2 * i + 1] * weight;
        half[i] = (odd ? up : low) + shuffle_xor(odd ? low : up, 1);
    }
    const float sum = (high ? half[1] : half[0]) + shuffle_xor(high ? half[0] : half[1], 2);
    if (row >= job.w.rows) return;
    const float value = sum * row_factor(job.w, row);
    if (gridDim.y == 1) {
        store_value(job.y, job.x_type, row, value);
    } else {
        job.partial[static_cast<int64_t>(blockIdx.y) * job.w.rows + row] = value;
    }
}

// Grid: (row tiles, splits of the columns).
template <int kGroups, int kTiles, bool kMeans>
__global__ void __launch_bounds__(kManyWarps * 32, kMeans ? 1 : 2)
    binary_gemv_kernel([[maybe_unused]] const GemvJob job) {
#ifdef ARB_HAS_BINARY_MMA
    ARB_SHARED(memory);
    const Weight& w = job.w;
    const int warp = static_cast<int>(threadIdx.x / 32), warps = static_cast<int>(blockDim.x / 32);
    const Lane lane = {static_cast<int>(threadIdx.x % 32), static_cast<int>(threadIdx.x % 32 / 4),
                       static_cast<int>(threadIdx.x % 4)};
    const int row0 = (static_cast<int>(blockIdx.x) * warps + warp) * kWarpRows;
    constexpr int kStageWords = kGroups * kPlaneWords, kScaleWords = kWarpRows * kScaleStride<kGroups, kMeans>;
    constexpr int kFragments = kUnitFragments<kTiles>;

    Unit* units = reinterpret_cast<Unit*>(memory);
    float* steps = reinterpret_cast<float*>(units + kUnits);
    uint4* b = reinterpret_cast<uint4*>(steps + kUnits * 4);
    uint32_t* own = reinterpret_cast<uint32_t*>(b + kUnits * kFragments);
    uint32_t* staged = own + warp * job.stages * kStageWords;
    float* scales = reinterpret_cast<float*>(own + warps * job.stages * kStageWords) + warp * kScaleWords;

    Range left = range_of_split(w, static_cast<int>(blockIdx.y), static_cast<int>(gridDim.y));
    stage_chunk<kGroups>(job, row0, left, staged, lane.id);
    commit_copies();
    const int total = w.has_second ? salient_between(w, 0, w.blocks) : 0;
    const LaneWeights<kTiles> weights(lane.word);
    float y[4] = {};
#pragma unroll 1
    for (int turn = 0; left.first < left.end; left.first += kUnits, turn ^= 1) {
        const Range next = {left.first + kUnits, left.end};
        if (next.first < next.end) {
            stage_chunk<kGroups>(job, row0, next, staged + (turn ^ 1) * kStageWords, lane.id);
        }
        commit_copies();
        stage_scales<kGroups, kMeans>(w, row0, left, scales, lane);
        const int before = seen_before(w, left.first);
        for (int task = warp; task < 2 * kUnits;
             task += warps) {  // the columns that are not salient, and those that are
            const int u = task % kUnits, here = lane_here();
            if (left.first + u >= left.end) continue;
            const Unit unit = unit_at(w, left.first + u, left.first, before);
            uint4* to = b + u * kFragments;
            float* sizes = steps + u * 4;
            if (task < kUnits) {
                if (here == 0) units[u] = unit;
                prepare<kGroups, kTiles, 4>(job, unit, 0, 0, total, to, sizes, here);
            } else if (unit.salient > 0) {
                const int last = w.has_second ? 2 : 1;
                if (is_narrow<kTiles>(unit)) {
                    if constexpr (kTiles == 2) prepare<kGroups, 2, 1>(job, unit, 1, last, total, to, sizes, here);
                } else {
                    prepare<kGroups, kTiles, 4>(job, unit, 1, last, total, to, sizes, here);
                }
            }
        }
        wait_copies<1>();
        sync_block();
#pragma unroll 1
        for (int u = 0; u < kUnits && left.first + u < left.end; ++u) {
            const Unit unit = units[u];
            const UnitView<kGroups, kTiles, kMeans> view = {
                unit,
                b + u * kFragments,
                steps + u * 4,
                scales + lane.row * kScaleStride<kGroups, kMeans> + u * kRowScales<kGroups, kMeans>,
                staged + turn * kStageWords,
                u * 4,
                lane,
                weights};
            multiply_unit<kGroups, kTiles, kMeans>(w, view, row0, total, y);
        }
        sync_block();
    }
    write_sums(job, row0, lane, weights.first, y);
#endif
}

}  // namespace arb::cuda
