// Dividing the work of one call among threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

inline bool is_set(const uint8_t *stop) { return stop && __atomic_load_n(stop, __ATOMIC_RELAXED); }

// Calls work(scratch, piece) for every piece, on up to num_threads threads, the calling one among them, each
// of which makes its scratch by make_scratch(). They take the pieces in order, each when it is free. Once
// `stop` is set, no further piece is begun; work that lasts long looks at it itself. NULL: it is never set.
// False if a thread had no memory; then no further piece is begun either.
template <class MakeScratch, class Work>
bool in_threads(int64_t num_pieces, int32_t num_threads, const uint8_t *stop, MakeScratch make_scratch,
    Work work) {
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    const auto run = [&] {
        try {
            auto scratch = make_scratch();
            for (int64_t piece; !failed && !is_set(stop) && (piece = next++) < num_pieces;)
                work(scratch, piece);
        } catch (const std::exception &) {
            failed = true;
        }
    };
    std::vector<std::thread> threads;
    try {
        const int64_t more = std::max<int64_t>(std::min<int64_t>(num_threads, num_pieces) - 1, 0);
        threads.reserve(more);
        for (int64_t t = 0; t < more; t++) threads.emplace_back(run);
    } catch (const std::exception &) {  // the threads that exist, at least this one, do all the work
    }
    run();
    for (std::thread &thread : threads) thread.join();
    return !failed;
}

// The same for work(piece), which needs no scratch.
template <class Work>
bool in_threads(int64_t num_pieces, int32_t num_threads, const uint8_t *stop, Work work) {
    return in_threads(num_pieces, num_threads, stop, [] { return 0; },
        [&](int, int64_t piece) { work(piece); });
}

// The number of threads that are worth starting: starting one takes about as long as `worth` of the work.
inline int32_t threads_worth(int64_t work, int64_t worth, int32_t num_threads) {
    return std::max<int64_t>(1, std::min<int64_t>(num_threads, work / worth));
}
