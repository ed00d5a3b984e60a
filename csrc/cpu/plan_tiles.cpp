#include <algorithm>
#include <array>
#include <cstring>

#include "arb/cpu.h"
#include "line.h"
#include "plan.h"
#include "pool.h"

namespace arb {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Of eight bits, bit 4 s + j at 8 j + code_bits s: the first two codes of four bytes.
std::array<uint32_t, 256> spread_bits(int64_t code_bits) {
    std::array<uint32_t, 256> spread{};
    for (uint32_t byte = 0; byte < 256; ++byte) {
        for (int64_t i = 0; i < 8; ++i) spread[byte] |= (byte >> i & 1) << (8 * (i % 4) + code_bits * (i / 4));
    }
    return spread;
}

// Fills the copy of a weight; see tiles.h for where everything goes.
class Repacking {
  public:
    Repacking(const Plan& exact, TilesPlan& plan)
        : w_(*exact.job.weight), exact_(exact.job), plan_(plan), spread_(spread_bits(plan.job.code_bits)) {}

    static Status run(void* context, int64_t begin, int64_t end) {
        const Repacking& r = *static_cast<const Repacking*>(context);
        for (int64_t tile = begin; tile < end; ++tile) {
            for (const TilesPart& part : r.plan_.parts) {
                unsigned char* const out = r.plan_.copy.get() + tile_offset(r.plan_.job, part, tile);
                std::memset(out, 0, static_cast<size_t>(part.bytes));
                r.copy_codes(part, tile, out);
                if (&part == &r.plan_.parts[static_cast<size_t>(part.lead)]) r.copy_scales(part, tile, out);
            }
        }
        return Status::ok;
    }

  private:
    // `count` bits, 32 at most, from bit `at` of a plane of `bytes`; what lies past its end is zero.
    static uint32_t bits(const unsigned char* plane, int64_t bytes, int64_t at, int64_t count) {
        uint64_t found = 0;
        const int64_t byte = at / 8;
        std::memcpy(&found, plane + byte, static_cast<size_t>(std::min<int64_t>(8, bytes - byte)));
        found >>= at % 8;
        return static_cast<uint32_t>(count < 32 ? found & ((uint64_t{1} << count) - 1) : found);
    }

    uint32_t spread(uint32_t columns) const {
        const int64_t bits = plan_.job.code_bits;
        uint32_t word = 0;
        for (int64_t k = 0; k < 4 / bits; ++k) word |= spread_[columns >> (8 * k) & 255] << (2 * bits * k);
        return word;
    }

    static void store(unsigned char* to, uint32_t word) { std::memcpy(to, &word, 4); }

    void copy_codes(const TilesPart& part, int64_t tile, unsigned char* out) const {
        const TilesJob& job = plan_.job;
        const int64_t columns = 32 / job.code_bits, plane = exact_.words * 8;  // of a step; bytes of a plane's row
        const auto* const sign = static_cast<const unsigned char*>(w_.sign.data);
        const auto* const group = static_cast<const unsigned char*>(w_.group.data);
        const auto* const second = static_cast<const unsigned char*>(w_.second.data);
        for (int64_t r = 0, row = tile * kTileRows; r < std::min(kTileRows, w_.rows - tile * kTileRows); ++r, ++row) {
            for (int64_t c = 0; c < part.columns; c += columns) {
                const int64_t count = std::min(columns, part.columns - c);
                uint32_t word = spread(bits(sign + row * plane, plane, part.first + c, count));
                for (int64_t g = 0; g < exact_.group_bits; ++g) {
                    const unsigned char* const from = group + (row * exact_.group_bits + g) * plane;
                    word |= spread(bits(from, plane, part.first + c, count)) << (g + 1);
                }
                store(out + c / columns * kStepBytes + 4 * r, word);
            }
            for (int64_t c = 0; part.second < part.scales && c < part.salient; c += columns) {
                const int64_t at = row * exact_.salient_columns + part.before + c;
                const uint32_t word =
                    spread(bits(second, w_.second.length * 4, at, std::min(columns, part.salient - c)));
                unsigned char* const step = out + part.second + c / columns * (job.code_bits > 1 ? 64 : 128);
                if (job.code_bits == 1) {
                    store(step + 4 * r, word);
                    continue;
                }
                uint32_t both;  // rows r % 16 and r % 16 + 16
                std::memcpy(&both, step + 4 * (r % 16), 4);
                store(step + 4 * (r % 16), both | word << (r / 16));
            }
        }
    }

    static int64_t size_of(ScaleType type) { return type == ScaleType::u8 ? 1 : type == ScaleType::fp16 ? 2 : 4; }

    // A whole number below 256 as an IEEE half.
    static uint16_t half_of(uint32_t number) {
        if (number == 0) return 0;
        uint32_t exponent = 0;
        while (number >> (exponent + 1) != 0) ++exponent;
        return static_cast<uint16_t>((15 + exponent) << 10 | (number << (10 - exponent) & 0x3ff));
    }

    // `count` kinds of a block and tile, from `out` on, of [rows, blocks, count] scales.
    void copy_kinds(const Buffer& buffer, ScaleType type, int64_t count, int64_t block, int64_t tile,
                    unsigned char* out) const {
        const int64_t size = size_of(type), out_size = plan_.job.halves ? 2 : 4;
        const auto* const from = static_cast<const unsigned char*>(buffer.data);
        for (int64_t r = 0; r < std::min(kTileRows, w_.rows - tile * kTileRows); ++r) {
            const unsigned char* const row = from + ((tile * kTileRows + r) * exact_.blocks + block) * count * size;
            for (int64_t k = 0; k < count; ++k) {
                unsigned char* const to = out + (k * kTileRows + r) * out_size;
                if (type == ScaleType::u8) {
                    const uint16_t half = half_of(row[k]);
                    std::memcpy(to, &half, 2);
                } else {
                    std::memcpy(to, row + k * size, static_cast<size_t>(size));
                }
            }
        }
    }

    void copy_scales(const TilesPart& part, int64_t tile, unsigned char* out) const {
        const int64_t scales = exact_.row_scales / exact_.blocks, means = exact_.means / exact_.blocks;
        unsigned char* const to = out + part.scales;
        copy_kinds(w_.row_scale, w_.row_scale_type, scales, part.block, tile, to);
        if (means == 0) return;
        copy_kinds(w_.mean, w_.scale_type, means, part.block, tile,
                   to + scales * kTileRows * (plan_.job.halves ? 2 : 4));
    }

    const PackedView& w_;
    const Job& exact_;
    TilesPlan& plan_;
    std::array<uint32_t, 256> spread_;
};

// For which nibbles the X of every code counts: of those of `group` (all, if it is negative) by their sign, for means
// as it is.
void add_counted(int64_t code_bits, int64_t group, bool mean, TilesTerm& term) {
    std::memset(term.levels, 1, sizeof term.levels);
    for (int64_t c = 0; c < 4 / code_bits; ++c) {
        for (uint32_t nibble = 0; nibble < 16; ++nibble) {
            const uint32_t code = nibble >> (c * code_bits) & ((1u << code_bits) - 1);
            if (group >= 0 && code / 2 != group) continue;
            const bool plus = mean || code % 2 != 0;
            term.levels[c][nibble] = plus ? 2 : 0;
            uint16_t& bits = plus ? term.plus[c] : term.minus[c];
            bits = static_cast<uint16_t>(bits | 1u << nibble);
        }
    }
}

void add_passes(const Plan& exact, TilesPlan& plan) {
    TilesJob& job = plan.job;
    const PackedView& w = *job.weight;
    const bool scaled = w.col_scale.data != nullptr, own = scaled && w.shared_columns == 0;
    const int64_t scales = exact.job.row_scales / exact.job.blocks;
    const auto add = [&](bool salient, bool second, int64_t groups, int64_t first, int64_t step, int64_t mean) {
        TilesPass& pass = job.pass[job.passes++];
        pass = {salient, second, 0, {}};
        const auto add_term = [&](int64_t kind, bool is_mean, int64_t g) {
            const int64_t plane = is_mean || !scaled ? 0 : second && own ? 2 : 1;
            TilesTerm& term = pass.term[pass.terms++];
            term = {kind, plane, own && !is_mean ? g : 0, {}, {}, {}};
            add_counted(job.code_bits, groups == 1 ? -1 : g, is_mean, term);
        };
        for (int64_t g = 0; g < groups; ++g) add_term(first + g * step, false, g);
        for (int64_t g = 0; g < groups && exact.job.means > 0 && !second; ++g) add_term(scales + mean + g, true, g);
    };
    add(false, false, w.groups, w.salient_groups * w.salient_order, 1, w.salient_groups);
    if (exact.job.salient_columns == 0) return;
    add(true, false, w.salient_groups, 0, w.salient_order, 0);
    if (w.salient_order == 2) add(true, true, w.salient_groups, 1, w.salient_order, 0);
}

void add_parts(const Plan& exact, TilesPlan& plan) {
    TilesJob& job = plan.job;
    const PackedView& w = *job.weight;
    const int64_t nibble = 16 / job.code_bits, step = 2 * nibble;  // columns
    const int64_t scale_bytes = job.kinds * kTileRows * (job.halves ? 2 : 4);
    int64_t before = 0;
    std::vector<int64_t> salient(static_cast<size_t>(exact.job.blocks));
    for (const Run& run : exact.runs) {
        if (run.salient) salient[static_cast<size_t>(run.block)] = run.length;
    }
    for (int64_t b = 0; b < exact.job.blocks; ++b) {
        const int64_t start = b * w.block_size, end = std::min(start + w.block_size, w.cols);
        const int64_t lead = static_cast<int64_t>(plan.parts.size());
        for (int64_t first = start; first < end; first += kTilePart) {
            TilesPart part{};
            part.first = first;
            part.columns = std::min(kTilePart, end - first);
            part.salient = std::clamp<int64_t>(start + salient[static_cast<size_t>(b)] - first, 0, part.columns);
            part.before = before;
            part.block = b;
            part.lead = lead;
            part.at = job.tile_bytes;
            part.second = divide_up(part.columns, step) * kStepBytes;
            part.scales = part.second;
            if (w.salient_order == 2) part.scales += divide_up(part.salient, step) * (job.code_bits > 1 ? 64 : 128);
            part.bytes = part.scales + (first == start ? scale_bytes : 0);
            part.table = job.tables;
            for (int64_t p = 0; p < job.passes; ++p) {
                const bool others = !job.pass[p].salient;
                if (others && part.salient == part.columns) continue;
                part.from[p] = others ? part.salient / nibble : 0;
                part.to[p] = divide_up(others ? part.columns : part.salient, nibble);
                job.tables += (part.to[p] - part.from[p]) * job.pass[p].terms;
            }
            before += part.salient;
            job.tile_bytes += part.bytes;
            plan.parts.push_back(part);
        }
    }
    job.part = plan.parts.data();
    job.parts = static_cast<int64_t>(plan.parts.size());
}

}  // namespace

Status make_tiles_plan(const Plan& exact, int64_t threads, TilesPlan& plan) {
    TilesJob& job = plan.job;
    const PackedView& w = *exact.job.weight;
    job.weight = &w;
    job.order = exact.job.order;
    job.tiles = divide_up(w.rows, kTileRows);
    job.kinds = (exact.job.row_scales + exact.job.means) / exact.job.blocks;
    job.code_bits = w.groups;
    job.salient_columns = exact.job.salient_columns;
    job.halves = w.row_scale_type != ScaleType::fp32;
    job.factor = exact.job.factor;
    job.roomy = roomy_near_cache();
    add_passes(exact, plan);
    add_parts(exact, plan);
    plan.copy = aligned_large(job.tiles * job.tile_bytes);
    job.copy = plan.copy.get();
    Repacking repacking(exact, plan);
    return parallel_for(job.tiles, 1, threads, Repacking::run, &repacking);
}

}  // namespace arb
