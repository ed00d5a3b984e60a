#include "arb/gemm.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <new>

#include "aligned.h"
#include "pages.h"
#include "plan.h"
#include "pool.h"

namespace arb {

struct Plans {
    const Isa* isa;
    bool has_line;
    bool has_tiles;
    Plan exact;
    LinePlan line;
    TilesPlan tiles;
};

namespace {

// Waking another thread costs tens of microseconds: about the time one thread needs for this many weights.
constexpr int64_t kWeightsPerThread = 1 << 19;
constexpr int64_t kWholeWeightsPerThread = 1 << 20;  // in whole numbers, per digit

struct Tile {
    const Kernels* kernels;
    const Job* job;
    const float* prepared;  // [tile, lanes]
    int64_t tile;
    float* y[kMaxTile];  // one per prepared row
};

Status multiply_rows(void* context, int64_t begin, int64_t end) {
    const Tile& t = *static_cast<const Tile*>(context);
    const std::unique_ptr<float[]> scratch(new (std::nothrow) float[static_cast<size_t>(t.job->scratch)]);
    if (scratch == nullptr) return Status::out_of_memory;
    t.kernels->gemm(*t.job, t.prepared, t.tile, begin, end, scratch.get(), t.y);
    return Status::ok;
}

Status multiply(const Kernels& kernels, const Job& job, const float* x, int64_t batch, float* y, int64_t threads) {
    const PackedView& w = *job.weight;
    const int64_t most = batch > 1 ? kMaxTile : 1;
    const std::unique_ptr<float[]> prepared(new (std::nothrow) float[static_cast<size_t>(most * job.lanes)]);
    if (prepared == nullptr) return Status::out_of_memory;
    for (int64_t first = 0; first < batch; first += kMaxTile) {
        const int64_t filled = std::min(batch - first, kMaxTile);
        Tile t{&kernels, &job, prepared.get(), filled > 1 ? kMaxTile : 1, {}};
        for (int64_t i = 0; i < t.tile; ++i) {
            // A tile that is not full repeats its last row, which is then written to the same place again.
            const int64_t row = first + std::min(i, filled - 1);
            kernels.prepare(job, x + row * w.cols, prepared.get() + i * job.lanes);
            t.y[i] = y + row * w.rows;
        }
        const int64_t useful = std::max<int64_t>(1, w.rows * w.cols * t.tile / kWeightsPerThread);
        const Status status = parallel_for(w.rows, kRowTile, std::min(threads, useful), multiply_rows, &t);
        if (status != Status::ok) return status;
    }
    return Status::ok;
}

// ---- in whole numbers, by line and in tiles

constexpr int64_t kRowsAtOnce = 64;    // rows of x that are prepared before the weight is read, at most
constexpr int64_t kRowsPerPiece = 16;  // at least so many rows of the weight for a thread

// Of every way: rows of x as they are prepared, which lie behind one another, and how a piece of one is.
struct ByLine {
    using Row = LineRow;
    static constexpr int64_t kTile = kLineTile, kExactTile = kExactLineTile;
    static constexpr int64_t kRows = kRowsAtOnce;
    const LineKernels* kernels;
    const LineJob* job;
    Aligned<int8_t> digits;
    Aligned<int32_t> starts;
    Aligned<double> units;

    ByLine(const LineKernels& k, const LineJob& j, int64_t rows, int64_t number)
        : kernels(&k),
          job(&j),
          digits(aligned<int8_t>(rows * number * j.line)),
          starts(aligned<int32_t>(rows * number * j.blocks * 2 * k.lanes)),
          units(aligned<double>(rows * j.blocks)) {}

    int64_t pieces() const { return job->blocks; }
    bool begin(const float*, int64_t i, int64_t number, Row& row) const {
        row = {digits_of(i, number), starts_of(i, number), units.get() + i * job->blocks};
        return true;
    }

    // `finite` becomes false if x is not; what is prepared then are zeros.
    Status prepare(const float* x, int64_t i, int64_t piece, int64_t number, Row&, bool& finite) const {
        const std::unique_ptr<float[]> values(new (std::nothrow) float[static_cast<size_t>(job->widest)]);
        if (values == nullptr) return Status::out_of_memory;
        finite = kernels->prepare(*job, piece, x, number, values.get(), digits_of(i, number), starts_of(i, number),
                                  units.get() + i * job->blocks);
        return Status::ok;
    }

    void multiply(const LineRow* x, int64_t tile, int64_t number, int64_t begin, int64_t end, unsigned char* scratch,
                  float* const* y) const {
        kernels->multiply(*job, x, tile, number, begin, end, scratch, y);
    }
    int64_t scratch() const { return job->scratch; }
    int64_t rows_per_piece(int64_t) const { return kRowsPerPiece; }

  private:
    int8_t* digits_of(int64_t i, int64_t number) const { return digits.get() + i * number * job->line; }
    int32_t* starts_of(int64_t i, int64_t number) const {
        return starts.get() + i * number * job->blocks * 2 * kernels->lanes;
    }
};

struct InTiles {
    using Row = TilesRow;
    static constexpr int64_t kTile = kTileBatch, kExactTile = kTileBatch;
    static constexpr int64_t kRows = kTileBatch;  // tables of more would fill the cache
    const TilesKernels* kernels;
    const TilesJob* job;
    Aligned<int8_t> tables;
    Aligned<float> units, values;
    Aligned<int32_t> totals;

    InTiles(const TilesKernels& k, const TilesJob& j, int64_t rows, int64_t number)
        : kernels(&k),
          job(&j),
          tables(aligned<int8_t>(rows * number * table_bytes())),
          units(aligned<float>(rows * j.parts * j.kinds)),
          values(aligned<float>(rows * value_count())),
          totals(aligned<int32_t>(rows * j.parts * j.kinds)) {}

    int64_t table_bytes() const { return job->tables * kernels->table_bytes; }
    int64_t value_count() const { return job->weight->cols + kTilePart; }
    int64_t pieces() const { return job->parts; }

    bool begin(const float* x, int64_t i, int64_t number, Row& row) const {
        const int64_t kinds = i * job->parts * job->kinds;
        row = {tables.get() + i * number * table_bytes(), units.get() + kinds, totals.get() + kinds, 0.0};
        row.unit = kernels->gather(*job->weight, job->order, x, values.get() + i * value_count());
        return row.unit != 0.0;
    }

    Status prepare(const float*, int64_t i, int64_t piece, int64_t number, Row& row, bool&) const {
        kernels->prepare(*job, piece, values.get() + i * value_count(), number, row);
        return Status::ok;
    }

    void multiply(const TilesRow* x, int64_t tile, int64_t number, int64_t begin, int64_t end, unsigned char*,
                  float* const* y) const {
        kernels->multiply(*job, x, tile, number, begin, end, y);
    }
    int64_t scratch() const { return 0; }

    // A panel, which lies in one place: with parts of two it takes 6 to 20 % longer. Where threads would get too
    // different numbers of panels, as much for each, in as many rounds as parallel_for keeps apart.
    int64_t rows_per_piece(int64_t threads) const {
        constexpr int64_t kManyPanels = 5;
        if (job->tiles >= kManyPanels * threads * kPanelTiles) return kPanelTiles * kTileRows;
        const int64_t rounds = (job->tiles + kPanelTiles * threads - 1) / (kPanelTiles * threads);
        const int64_t pieces = std::min(rounds, kPiecesPerThread) * threads;
        return (job->tiles + pieces - 1) / pieces * kTileRows;
    }
};

// Rows of x that several threads prepare: what concerns a row as a whole, then its pieces.
template <typename Way>
struct Preparation {
    const Way* way;
    const float* x;
    int64_t number;  // digits
    typename Way::Row rows[kRowsAtOnce];
    std::atomic<bool> finite[kRowsAtOnce];

    const float* row_of(int64_t i) const { return x + i * way->job->weight->cols; }

    static Status begin_rows(void* context, int64_t begin, int64_t end) {
        Preparation& p = *static_cast<Preparation*>(context);
        for (int64_t i = begin; i < end; ++i) p.finite[i] = p.way->begin(p.row_of(i), i, p.number, p.rows[i]);
        return Status::ok;
    }

    static Status prepare_pieces(void* context, int64_t begin, int64_t end) {
        Preparation& p = *static_cast<Preparation*>(context);
        const int64_t pieces = p.way->pieces();
        for (int64_t at = begin; at < end; ++at) {
            const int64_t i = at / pieces;
            bool finite = true;
            const Status status = p.way->prepare(p.row_of(i), i, at % pieces, p.number, p.rows[i], finite);
            if (status != Status::ok) return status;
            if (!finite) p.finite[i] = false;
        }
        return Status::ok;
    }
};

template <typename Way>
struct WholeTile {
    const Way* way;
    const typename Way::Row* x;
    int64_t count;   // rows of x
    int64_t number;  // digits
    float* y;
};

template <typename Way>
Status multiply_whole_rows(void* context, int64_t begin, int64_t end) {
    const WholeTile<Way>& t = *static_cast<const WholeTile<Way>*>(context);
    const Aligned<unsigned char> scratch(
        new (std::align_val_t(64), std::nothrow) unsigned char[static_cast<size_t>(t.way->scratch())]);
    if (scratch == nullptr) return Status::out_of_memory;
    for (int64_t i = 0, tile = t.number == 1 ? Way::kTile : Way::kExactTile; i < t.count; i += tile) {
        while (tile > t.count - i) tile /= 2;
        float* y[Way::kTile];
        for (int64_t row = 0; row < tile; ++row) y[row] = t.y + (i + row) * t.way->job->weight->rows;
        t.way->multiply(t.x + i, tile, t.number, begin, end, scratch.get(), y);
    }
    return Status::ok;
}

// A row of x that is not finite is multiplied once more, by blending: whole numbers hold neither Inf nor NaN.
template <typename Way>
Status multiply_whole(const Way& way, const Plans& plans, int64_t number, const float* x, int64_t batch, float* y,
                      int64_t threads) {
    const PackedView& w = *way.job->weight;
    for (int64_t first = 0; first < batch; first += Way::kRows) {
        const int64_t rows = std::min(batch - first, Way::kRows);
        const int64_t useful = std::max<int64_t>(1, w.rows * w.cols * rows * number / kWholeWeightsPerThread);
        const int64_t workers = std::min(threads, useful);
        Preparation<Way> prepared{&way, x + first * w.cols, number, {}, {}};
        WholeTile<Way> tile{&way, prepared.rows, rows, number, y + first * w.rows};
        Status status = parallel_for(rows, 1, workers, Preparation<Way>::begin_rows, &prepared);
        if (status != Status::ok) return status;
        status = parallel_for(rows * way.pieces(), 1, workers, Preparation<Way>::prepare_pieces, &prepared);
        if (status != Status::ok) return status;
        status = parallel_for(w.rows, way.rows_per_piece(workers), workers, multiply_whole_rows<Way>, &tile);
        for (int64_t i = 0; i < rows && status == Status::ok; ++i) {
            if (prepared.finite[i]) continue;
            status = multiply(*plans.isa->exact, plans.exact.job, prepared.row_of(i), 1, tile.y + i * w.rows, threads);
        }
        if (status != Status::ok) return status;
    }
    return Status::ok;
}

Status make_plans(const PackedView& view, bool repack, int64_t threads, const Isa& isa,
                  std::shared_ptr<const Plans>& made) {
    const auto plans = std::make_shared<Plans>();
    plans->isa = &isa;
    if (const Status status = make_plan(view, *isa.exact, plans->exact); status != Status::ok) return status;
    plans->has_line = covers_line(view);
    plans->has_tiles = repack && gains_by_copy(view);
    if (plans->has_tiles) {
        if (const Status status = make_tiles_plan(plans->exact, threads, plans->tiles); status != Status::ok)
            return status;
    }
    if (plans->has_line) make_line_plan(plans->exact, *isa.line, plans->line);
    made = plans;
    return Status::ok;
}

Status multiply_floats(const Plans& plans, int64_t number, const float* x, int64_t batch, float* y, int64_t threads) {
    const int64_t rows = std::min(batch, plans.has_tiles ? InTiles::kRows : kRowsAtOnce);
    if (plans.has_tiles) {
        const InTiles way(*plans.isa->tiles, plans.tiles.job, rows, number);
        return multiply_whole(way, plans, number, x, batch, y, threads);
    }
    if (plans.has_line) {
        const ByLine way(*plans.isa->line, plans.line.job, rows, number);
        return multiply_whole(way, plans, number, x, batch, y, threads);
    }
    return multiply(*plans.isa->exact, plans.exact.job, x, batch, y, threads);
}

// x and y of 16 bits are floats on the way, some rows at a time.
Status multiply_halves(const Plans& plans, int64_t number, const uint16_t* x, Element element, int64_t batch,
                       uint16_t* y, int64_t threads) {
    const PackedView& w = *plans.exact.job.weight;
    const Kernels& kernels = *plans.isa->exact;
    const int64_t most = std::min(batch, kRowsAtOnce);
    const Aligned<float> wide_x = aligned<float>(most * w.cols), wide_y = aligned<float>(most * w.rows);
    for (int64_t i = 0; i < batch; i += kRowsAtOnce) {
        const int64_t rows = std::min(batch - i, kRowsAtOnce);
        kernels.widen(x + i * w.cols, element, rows * w.cols, wide_x.get());
        const Status status = multiply_floats(plans, number, wide_x.get(), rows, wide_y.get(), threads);
        if (status != Status::ok) return status;
        kernels.narrow(wide_y.get(), rows * w.rows, element, y + i * w.rows);
    }
    return Status::ok;
}

// Guards the plans of all weights. Held through a fork: while another thread made a copy, the child would never get it.
std::mutex& making() {
    static std::mutex mutex;
    static const int registered =
        pthread_atfork([] { making().lock(); }, [] { making().unlock(); }, [] { making().unlock(); });
    static_cast<void>(registered);
    return mutex;
}

// Of what tiles hold too.
void release_copied(const PackedView& w) {
    const int64_t scale = w.scale_type == ScaleType::fp16 ? 2 : 4;
    const int64_t row_scale = w.row_scale_type == ScaleType::u8 ? 1 : scale;
    for (const Buffer& words : {w.sign, w.group, w.second}) {
        release_file_pages(words.data, words.length * static_cast<int64_t>(sizeof(int32_t)));
    }
    release_file_pages(w.row_scale.data, w.row_scale.length * row_scale);
    release_file_pages(w.mean.data, w.mean.length * scale);
}

}  // namespace

int64_t digits_of(const PackedView& w, Element element, Activations activations) {
    if (activations == Activations::int8) return 1;
    return element == Element::bf16 || (element == Element::fp16 && !covers_line(w)) ? 2 : kMaxDigits;
}

bool gains_by_copy(const PackedView& w) { return !covers_line(w); }

Weight::Weight(const PackedView& view, bool repack) : view_(view), repack_(repack) {}
Weight::~Weight() = default;

Status Weight::gemm(const void* x, Element element, int64_t batch, void* y, int64_t threads, Activations activations,
                    const char** ran) {
    if (batch < 0 || threads < 1) return Status::bad_range;
    const Isa* isa = nullptr;
    if (const Status status = active_kernels(&isa); status != Status::ok) return status;
    if (ran != nullptr) *ran = isa->name;
    try {
        std::shared_ptr<const Plans> plans;
        {
            const std::lock_guard<std::mutex> lock(making());
            if (plans_ == nullptr || plans_->isa != isa) {
                plans_.reset();  // a copy of the weight, before the next is made
                if (const Status status = make_plans(view_, repack_, threads, *isa, plans_); status != Status::ok)
                    return status;
                if (plans_->has_tiles) release_copied(view_);
            }
            plans = plans_;
        }
        const int64_t number = digits_of(view_, element, activations);
        if (element == Element::fp32) {
            return multiply_floats(*plans, number, static_cast<const float*>(x), batch, static_cast<float*>(y),
                                   threads);
        }
        return multiply_halves(*plans, number, static_cast<const uint16_t*>(x), element, batch,
                               static_cast<uint16_t*>(y), threads);
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
}

Status gemm(const PackedView& weight, const void* x, Element element, int64_t batch, void* y, int64_t threads,
            Activations activations, const char** ran) {
    return Weight(weight).gemm(x, element, batch, y, threads, activations, ran);
}

}  // namespace arb
