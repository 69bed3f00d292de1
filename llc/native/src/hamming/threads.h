// Dividing the work of one call among threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

#include "hamming.h"

inline bool is_set(const uint8_t *stop) { return stop && __atomic_load_n(stop, __ATOMIC_RELAXED); }

// Calls work(scratch, piece) for every piece, on up to num_threads threads, each of which makes a Scratch by
// make_scratch(). They take the pieces in order, each when it is free. A work that lasts long looks at `stop`
// itself.
template <class MakeScratch, class Work>
HammingStatus in_threads(int64_t num_pieces, int32_t num_threads, const uint8_t *stop,
    MakeScratch make_scratch, Work work) {
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    const auto run = [&] {
        try {
            auto scratch = make_scratch();
            for (int64_t piece; !failed && !is_set(stop) && (piece = next++) < num_pieces;)
                work(scratch, piece);
        } catch (const std::exception &) {  // there is no memory
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
    return failed ? LLC_NO_MEMORY : is_set(stop) ? LLC_STOPPED : LLC_DONE;
}

// The number of threads that are worth starting: starting one takes about as long as `worth` of the work.
inline int32_t threads_worth(int64_t work, int64_t worth, int32_t num_threads) {
    return std::max<int64_t>(1, std::min<int64_t>(num_threads, work / worth));
}
