// Hamming distances of packed codes, uint8 [n, code_size], and what is made from them; and packing. Where
// memory must be contiguous, it is: rows follow each other without gaps. Results are exact, and the same for
// every CPU and any number of threads: sorted by distance, then by index.
//
// Functions that return a status work on up to `num_threads` threads, the calling one among them, which they
// start for this call alone; so several threads may call them at once, also after a fork. `stop` is one byte
// that holds 0. Once another thread sets it to 1, the function returns LLC_STOPPED within milliseconds, and
// its results are of no use. NULL: it is never stopped.
#pragma once
#include "native.h"
#include "threads.h"

enum HammingStatus : int32_t { LLC_DONE = 0, LLC_STOPPED, LLC_NO_MEMORY };

// `fine`: what in_threads has returned.
inline HammingStatus status_of(bool fine, const uint8_t *stop) {
    return !fine ? LLC_NO_MEMORY : is_set(stop) ? LLC_STOPPED : LLC_DONE;
}

// The k nearest of m database codes of each of n queries: distances, indices [n, k]; 1 <= k <= m < 2^40.
LLC_API int32_t llc_hamming_search(const uint8_t *queries, int64_t n, const uint8_t *database, int64_t m,
    int32_t code_size, int64_t k, int32_t num_threads, int32_t instructions, const uint8_t *stop,
    int32_t *distances, int64_t *indices);

// Codes within a radius. With `distances` NULL it adds the number of each query's codes to ends [n]. Else it
// writes them, in ascending order, from position ends[i] on, and moves ends[i] behind them.
LLC_API int32_t llc_hamming_range_search(const uint8_t *queries, int64_t n, const uint8_t *database,
    int64_t m, int32_t code_size, int64_t radius, int32_t num_threads, int32_t instructions,
    const uint8_t *stop, int64_t *ends, int32_t *distances, int64_t *indices);

// All distances [n, m].
LLC_API int32_t llc_hamming_pairwise(const uint8_t *queries, int64_t n, const uint8_t *database, int64_t m,
    int32_t code_size, int32_t num_threads, int32_t instructions, const uint8_t *stop, int32_t *distances);

// The nearest class of every code of num_bits <= 24 bits: table [2^num_bits]. Only the first num_bits bits of
// class_codes [num_classes, code_size] are in use; num_classes <= 2^25.
LLC_API int32_t llc_hamming_build_table(const uint8_t *class_codes, int64_t num_classes, int32_t code_size,
    int32_t num_bits, int32_t num_threads, int32_t instructions, const uint8_t *stop, int32_t *table);

// The entries of n codes in such a table: classes [n].
LLC_API int32_t llc_hamming_look_up(const uint8_t *codes, int64_t n, int32_t code_size, int32_t num_bits,
    const int32_t *table, int32_t num_threads, int32_t instructions, const uint8_t *stop, int64_t *classes);

// Sets classes [n] to -1 where the code of the class differs from the given code.
LLC_API int32_t llc_hamming_keep_exact(const uint8_t *codes, int64_t n, int32_t code_size,
    const uint8_t *class_codes, int32_t num_threads, const uint8_t *stop, int64_t *classes);

// Packs values [n, num_bits], unsigned integers of item_size 1, 2, 4 or 8 bytes, into codes [n, ceil(num_bits
// / 8)]: a bit is 1 where 0 < value <= limit, for a limit >= 1 that the values' type can hold. The first
// value becomes the highest bit of the first byte.
LLC_API int32_t llc_pack_bits(const void *values, int64_t n, int64_t num_bits, int32_t item_size,
    uint64_t limit, int32_t num_threads, int32_t instructions, const uint8_t *stop, uint8_t *codes);
