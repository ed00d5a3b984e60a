// Native self-test: every available instruction set against the scalar one, on random packed weights of awkward shapes.
// Dequantized values and products in whole numbers must be equal bit for bit; exact products within the rounding of a
// float32 sum. Needs neither Python nor torch, so it also runs under emulators and sanitizers. Prints the
// instruction sets that ran; exit status 1 on failure.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "arb/bits.h"
#include "arb/cpu.h"
#include "arb/dequantize.h"
#include "arb/gemm.h"

namespace {

struct Shape {
    int64_t rows, cols, block;
};

// Owns what a PackedView points to. Buffers are exactly as long as the format says, so that a sanitizer sees overruns.
struct Weight {
    arb::PackedView view;
    std::vector<uint32_t> sign, group, second;
    std::vector<uint16_t> row_scale, row_base, mean, col_scale, col_scale2;
    std::vector<uint8_t> codes;  // row scales of format 2
    std::vector<int32_t> order, counts;
};

template <typename T>
arb::Buffer buffer(const std::vector<T>& values) {
    return {values.data(), static_cast<int64_t>(values.size())};
}

Weight random_weight(const Shape& shape, int64_t groups, int64_t salient_groups, int64_t order, bool mean, bool col,
                     std::mt19937& random) {
    const int64_t n = shape.rows, m = shape.cols, k = shape.block, blocks = (m + k - 1) / k;
    Weight w;
    const auto words = [&](int64_t count) {
        std::vector<uint32_t> v(static_cast<size_t>(count));
        for (uint32_t& word : v) word = random();
        return v;
    };
    const auto halves = [&](int64_t count) {  // 2^-4 .. 2^3, both signs, some subnormal
        std::vector<uint16_t> v(static_cast<size_t>(count));
        for (uint16_t& half : v) {
            const auto bits = static_cast<uint16_t>(random());
            half = static_cast<uint16_t>(random() % 16 == 0 ? bits & 0x83ff : (bits & 0x9fff) + 0x2c00);
        }
        return v;
    };
    int64_t salient = 0;
    for (int64_t b = 0; b < blocks; ++b) {
        const auto width = static_cast<int32_t>(std::min(k, m - b * k));
        std::vector<int32_t> columns(static_cast<size_t>(width));
        for (int32_t c = 0; c < width; ++c) columns[static_cast<size_t>(c)] = static_cast<int32_t>(b * k) + c;
        std::shuffle(columns.begin(), columns.end(), random);
        const auto count = static_cast<int32_t>(random() % static_cast<unsigned>(width + 1));
        std::sort(columns.begin(), columns.begin() + count);
        std::sort(columns.begin() + count, columns.end());
        w.order.insert(w.order.end(), columns.begin(), columns.end());
        w.counts.push_back(count);
        salient += count;
    }
    const int64_t group_bits = groups == 4 ? 2 : groups - 1;
    w.sign = words(n * arb::words_for(m));
    w.group = words(n * group_bits * arb::words_for(m));
    w.second = words(order == 2 ? arb::words_for(n * salient) : 0);
    w.row_scale = halves(n * blocks * (salient_groups * order + groups));
    w.mean = halves(mean ? n * blocks * (salient_groups + groups) : 0);
    w.col_scale = halves(col ? groups * m : 0);
    w.col_scale2 = halves(col && order == 2 ? salient_groups * salient : 0);
    w.view.rows = n;
    w.view.cols = m;
    w.view.block_size = k;
    w.view.groups = groups;
    w.view.salient_groups = salient_groups;
    w.view.salient_order = order;
    w.view.exponent = -3;
    return w;
}

void connect(Weight& w) {
    w.view.sign = buffer(w.sign);
    w.view.group = buffer(w.group);
    w.view.second = buffer(w.second);
    w.view.row_scale = buffer(w.row_scale);
    w.view.mean = buffer(w.mean);
    w.view.col_scale = buffer(w.col_scale);
    w.view.col_scale2 = buffer(w.col_scale2);
    w.view.order = buffer(w.order);
    w.view.counts = buffer(w.counts);
}

// Makes it a weight of format 2: 8-bit row scales, and column scales that groups and planes share.
void make_format_2(Weight& w, std::mt19937& random) {
    const unsigned most = random() % 2 == 0 ? 128 : 64;  // below 64, two add up to a level (levels_join in line.h)
    for (size_t i = 0; i < w.row_scale.size(); ++i) w.codes.push_back(static_cast<uint8_t>(random() % most));
    w.row_base.assign(static_cast<size_t>(w.view.rows), 0x3001);
    w.view.row_scale = buffer(w.codes);
    w.view.row_base = buffer(w.row_base);
    w.view.row_scale_type = arb::ScaleType::u8;
    w.col_scale.resize(static_cast<size_t>(w.view.cols));
    w.view.col_scale = buffer(w.col_scale);
    w.view.col_scale2 = {};
    w.view.shared_columns = 1;
}

bool fail(const char* what, const char* isa, const Weight& w) {
    const arb::PackedView& v = w.view;
    std::printf("FAILED %s on %s: n=%ld m=%ld k=%ld groups=%ld/%ld order=%ld mean=%d col=%d\n", what, isa,
                static_cast<long>(v.rows), static_cast<long>(v.cols), static_cast<long>(v.block_size),
                static_cast<long>(v.groups), static_cast<long>(v.salient_groups), static_cast<long>(v.salient_order),
                v.mean.data != nullptr, v.col_scale.data != nullptr);
    return false;
}

std::vector<float> dense(const Weight& w, arb::Columns columns, const char* isa, bool& good) {
    std::vector<float> out(static_cast<size_t>(w.view.rows * w.view.cols), std::nanf(""));
    const char* ran = nullptr;
    good =
        arb::set_isa(isa) == arb::Status::ok &&
        arb::dequantize(w.view, 0, w.view.rows, columns, arb::Element::fp32, out.data(), 2, &ran) == arb::Status::ok &&
        std::strcmp(ran, isa) == 0 && good;
    return out;
}

// The lower half of the rows as bfloat16 are the nearest to the floats, of two the even one.
bool check_dense_16(const Weight& w, const std::vector<float>& values, arb::Columns columns) {
    const int64_t first = w.view.rows / 2, skipped = first * w.view.cols;
    std::vector<uint16_t> out(values.size() - static_cast<size_t>(skipped));
    if (arb::dequantize(w.view, first, w.view.rows, columns, arb::Element::bf16, out.data(), 2) != arb::Status::ok)
        return false;
    for (size_t i = 0; i < out.size(); ++i) {
        uint32_t bits;
        std::memcpy(&bits, &values[static_cast<size_t>(skipped) + i], sizeof bits);
        if (out[i] != (bits + 0x7fff + (bits >> 16 & 1)) >> 16) return false;
    }
    return true;
}

std::vector<float> random_x(const Weight& w, int64_t batch, std::mt19937& random) {
    std::vector<float> x(static_cast<size_t>(batch * w.view.cols));
    for (float& value : x) value = static_cast<float>(random()) / 2147483648.0f - 1.0f;
    return x;
}

bool check_gemm(const Weight& w, const std::vector<float>& values, int64_t batch, const char* isa, bool repack,
                std::mt19937& random) {
    const int64_t n = w.view.rows, m = w.view.cols;
    const std::vector<float> x = random_x(w, batch, random);
    std::vector<float> y(static_cast<size_t>(batch * n), std::nanf(""));
    const char* ran = nullptr;
    arb::Weight weight(w.view, repack);
    if (weight.gemm(x.data(), arb::Element::fp32, batch, y.data(), 2, arb::Activations::exact, &ran) != arb::Status::ok)
        return fail("gemm", isa, w);
    if (std::strcmp(ran, isa) != 0) return fail("dispatch", isa, w);
    for (int64_t b = 0; b < batch; ++b) {
        for (int64_t i = 0; i < n; ++i) {
            double exact = 0, size = 0;
            for (int64_t j = 0; j < m; ++j) {
                const double term = static_cast<double>(x[static_cast<size_t>(b * m + j)]) *
                                    static_cast<double>(values[static_cast<size_t>(i * m + j)]);
                exact += term;
                size += std::fabs(term);
            }
            // Planes and means are summed one by one, so a term may be the small difference of parts up to 2^4 (2^8
            // with the row scales of format 2).
            const double parts = w.view.row_scale_type == arb::ScaleType::u8 ? 256.0 : 16.0;
            const double tolerance = static_cast<double>(m + 8) * 6e-8 * (size + parts);
            if (!(std::fabs(static_cast<double>(y[static_cast<size_t>(b * n + i)]) - exact) <= tolerance)) {
                return fail("gemm", isa, w);
            }
        }
    }
    return true;
}

// A row of y after the other, as bytes.
using Product = std::vector<unsigned char>;

Product product(const Weight& w, const std::vector<float>& x, arb::Element element, arb::Activations activations,
                bool repack) {
    const int64_t batch = static_cast<int64_t>(x.size()) / w.view.cols;
    std::vector<uint16_t> halves;  // the upper ones of floats: as bf16 or fp16 they are numbers of all sizes
    for (const float value : x) {
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        halves.push_back(static_cast<uint16_t>(bits >> 16));
    }
    const bool wide = element == arb::Element::fp32;
    Product y(static_cast<size_t>(batch * w.view.rows) * (wide ? 4 : 2));
    const void* const from = wide ? static_cast<const void*>(x.data()) : halves.data();
    const arb::Status status = arb::Weight(w.view, repack).gemm(from, element, batch, y.data(), 1, activations);
    return status == arb::Status::ok ? y : Product();
}

// In whole numbers every bit is the same.
bool check_bits(const Weight& w, const char* isa, bool repack, std::mt19937& random) {
    constexpr arb::Activations kInt8 = arb::Activations::int8, kExact = arb::Activations::exact;
    constexpr std::pair<arb::Element, arb::Activations> kWays[] = {{arb::Element::fp32, kInt8},
                                                                   {arb::Element::fp32, kExact},
                                                                   {arb::Element::bf16, kExact},
                                                                   {arb::Element::fp16, kExact},
                                                                   {arb::Element::fp16, kInt8}};
    for (const int64_t batch : {1, 5, 9}) {
        if (repack && batch != 5) continue;  // a copy has no code of its own for few rows
        const std::vector<float> x = random_x(w, batch, random);
        for (const auto& [element, activations] : kWays) {
            const Product y = product(w, x, element, activations, repack);
            const bool forced = arb::set_isa("scalar") == arb::Status::ok;
            if (!forced || y.empty() || y != product(w, x, element, activations, repack)) return fail("bits", isa, w);
            if (arb::set_isa(isa) != arb::Status::ok) return fail("set_isa", isa, w);
        }
    }
    return true;
}

// Many calls by several threads, for the sanitizers: the pool, and one plan used by two callers at once.
bool check_threads(bool by_line, std::mt19937& random) {
    Weight w = random_weight({2050, 1100, by_line ? 1100 : 128}, 2, 2, 2, false, true, random);
    connect(w);
    w.view.mean = {};
    if (by_line) make_format_2(w, random);
    if (arb::set_isa(nullptr) != arb::Status::ok) return fail("set_isa", "the best", w);
    const std::vector<float> x = random_x(w, 1, random);
    const Product expected = product(w, x, arb::Element::fp32, arb::Activations::int8, !by_line);
    arb::Weight kept(w.view, !by_line);
    bool good[2] = {true, true};
    const auto calls = [&](bool& same) {
        for (int i = 0; i < 20; ++i) {
            Product y(expected.size());
            const auto status = kept.gemm(x.data(), arb::Element::fp32, 1, y.data(), 3, arb::Activations::int8);
            same &= status == arb::Status::ok && y == expected;
        }
    };
    std::thread other(calls, std::ref(good[1]));
    calls(good[0]);
    other.join();
    return (good[0] && good[1]) || fail("threads", "best", w);
}

// `copies`: bits of repacked products too, which takes long.
bool check_weight(Weight& w, bool copies, std::mt19937& random) {
    bool good = true;
    const std::vector<float> expected = dense(w, arb::Columns::original, "scalar", good);
    const std::vector<float> stored = dense(w, arb::Columns::stored, "scalar", good);
    arb::IsaInfo isas[8];
    const int count = arb::list_isas(isas, 8);
    for (int i = 0; i < count; ++i) {
        const char* isa = isas[i].name;
        if (!isas[i].available) continue;
        const size_t bytes = expected.size() * sizeof(float);
        if (std::memcmp(dense(w, arb::Columns::original, isa, good).data(), expected.data(), bytes) != 0 || !good ||
            std::memcmp(dense(w, arb::Columns::stored, isa, good).data(), stored.data(), bytes) != 0 || !good) {
            return fail("dequantize", isa, w);
        }
        if (!check_dense_16(w, expected, arb::Columns::original) || !check_dense_16(w, stored, arb::Columns::stored))
            return fail("dequantize to bfloat16", isa, w);
        for (const int64_t batch : {1, 3, 5}) {
            if (!check_gemm(w, expected, batch, isa, false, random)) return false;
            if (batch == 3 && !check_gemm(w, expected, batch, isa, true, random)) return false;
        }
        const bool repack = arb::gains_by_copy(w.view);
        if ((copies || !repack) && !check_bits(w, isa, repack, random)) return false;
    }
    return true;
}

}  // namespace

int main() {
    std::mt19937 random(1);
    const Shape shapes[] = {{1, 1, 1},   {3, 200, 128},   {5, 100, 33},   {2, 64, 128},  {7, 300, 256},
                            {4, 130, 1}, {40, 1100, 520}, {2, 2700, 128}, {2, 2700, 512}};
    int weights = 0;
    for (const Shape& shape : shapes) {
        for (const int64_t groups : {1, 2, 4}) {
            for (int variant = 0; variant < 16; ++variant) {
                const bool one = (variant & 1) != 0, mean = (variant & 4) != 0, col = (variant & 8) != 0;
                Weight w =
                    random_weight(shape, groups, one ? 1 : groups, (variant & 2) != 0 ? 2 : 1, mean, col, random);
                connect(w);
                if (!mean) w.view.mean = {};
                if (!col) w.view.col_scale = w.view.col_scale2 = {};
                if (col && w.view.salient_order == 1) w.view.col_scale2 = {};
                if (!check_weight(w, weights % 5 == 0, random)) return 1;
                ++weights;
                if (mean || !col) continue;
                make_format_2(w, random);
                if (!check_weight(w, weights % 5 == 0, random)) return 1;
                ++weights;
            }
        }
    }
    if (!check_threads(true, random) || !check_threads(false, random)) return 1;
    arb::IsaInfo isas[8];
    const int count = arb::list_isas(isas, 8);
    for (int i = 0; i < count; ++i) {
        if (isas[i].available) std::printf("ran %s\n", isas[i].name);
    }
    std::printf("%d weights\n", weights);
    return 0;
}
