#include "pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace arb {
namespace {

constexpr int kMaxThreads = 256;

// A thread that waits looks again and again before it sleeps: waking one costs more than many a small layer, and the
// next layer of a model comes soon. After that time it leaves the processor to others.
constexpr std::chrono::microseconds kSpin{100};
constexpr int kLooks = 32;  // between two looks at the clock

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

template <typename Ready>
void spin_until(const Ready& ready) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < kLooks; ++i) {
            if (ready()) return;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
}

struct Work {
    Task task;
    void* context;
    int64_t count;
    int64_t piece;
    std::atomic<int64_t> next{0};
    std::atomic<Status> status{Status::ok};
};

void run_pieces(Work& work) {
    for (;;) {
        const int64_t begin = work.next.fetch_add(work.piece, std::memory_order_relaxed);
        if (begin >= work.count) return;
        const Status status = work.task(work.context, begin, std::min(begin + work.piece, work.count));
        if (status != Status::ok) work.status.store(status, std::memory_order_relaxed);
    }
}

// Workers that come too late to be of use never enter the work, so the caller waits for running pieces only.
class Pool {
  public:
    // Returns false without running anything if the pool is in use.
    bool run(Work& work, int64_t threads) {
        std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
        if (!owner.owns_lock()) return false;
        grow(threads - 1);
        bool asleep;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            work_ = &work;
            wanted_ = threads - 1;
            asleep = sleeping_ > 0;
        }
        if (asleep) wake_.notify_all();
        run_pieces(work);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            wanted_ = 0;  // from here on inside_ only falls
        }
        spin_until([this] { return inside_ == 0; });
        std::unique_lock<std::mutex> lock(mutex_);
        idle_.wait(lock, [this] { return inside_ == 0; });
        work_ = nullptr;
        return true;
    }

  private:
    // Where the system refuses another thread, the work is done by those there are.
    void grow(int64_t workers) {
        for (; workers_ < std::min<int64_t>(workers, kMaxThreads); ++workers_) {
            try {
                std::thread([this] { serve(); }).detach();
            } catch (const std::system_error&) {
                return;
            }
        }
    }

    [[noreturn]] void serve() {
        for (;;) {
            spin_until([this] { return wanted_ > 0; });
            std::unique_lock<std::mutex> lock(mutex_);
            ++sleeping_;
            wake_.wait(lock, [this] { return wanted_ > 0; });
            --sleeping_;
            --wanted_;
            ++inside_;
            Work& work = *work_;
            lock.unlock();
            run_pieces(work);
            lock.lock();
            if (--inside_ == 0) idle_.notify_one();
        }
    }

    std::mutex owner_;  // held by the caller of run
    int64_t workers_ = 0;
    std::mutex mutex_;  // guards what follows; the two atomics may be read without it
    std::condition_variable wake_, idle_;
    Work* work_ = nullptr;
    int64_t sleeping_ = 0;            // workers that must be woken
    std::atomic<int64_t> wanted_{0};  // workers that may still enter
    std::atomic<int64_t> inside_{0};
};

// The pool is never destroyed: its detached workers may outlive static destructors. A forked child has none of the
// workers and perhaps locked mutexes, so it leaves the old pool alone and makes its own.
std::atomic<Pool*> current_pool{nullptr};

Pool& pool() {
    static const int registered = pthread_atfork(nullptr, nullptr, [] { current_pool.store(nullptr); });
    static_cast<void>(registered);
    Pool* found = current_pool.load();
    if (found == nullptr) {
        auto* made = new Pool;
        if (current_pool.compare_exchange_strong(found, made)) return *made;
        delete made;
    }
    return *found;
}

}  // namespace

Status parallel_for(int64_t count, int64_t grain, int64_t threads, Task task, void* context) {
    const int64_t grains = (count + grain - 1) / grain;
    threads = std::min(threads, grains);
    if (threads <= 1) return count > 0 ? task(context, 0, count) : Status::ok;
    const int64_t pieces = threads * kPiecesPerThread;
    Work work{task, context, count, (grains + pieces - 1) / pieces * grain};
    if (!pool().run(work, threads)) return task(context, 0, count);
    return work.status.load();
}

}  // namespace arb
