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

// Where the relevant codes of each query are in its ranking of the database, without a list of it (rank.cpp).
// A code is relevant if its class is the query's. Classes are numbers below num_classes, or -1 for a query
// without relevant codes; members [m] are the indices of the database's codes, class after class and
// ascending within each, and those of class c end at ends[c]. m < 2^31. leave_one_out: query i is code i of
// the database, and is left out of its own ranking.
//
// total, relevant [n, 8 * code_size + 1]: the number of codes at each distance, and of relevant ones. voted
// [n]: the class with most votes of the nearest `neighbours` codes, at least 1 and at most as many as a
// ranking has; codes at the last of their distances share the votes that are left equally, and equal votes go
// to the lowest class.
//
// With `precisions` [n, 2] also, for the ranking in which equal distances stay in the database's order: the
// sums of the precisions at the relevant codes, among the first k and in the whole ranking; and hits [n], the
// number of relevant codes among the first k.
LLC_API int32_t llc_hamming_rank(const uint8_t *queries, int64_t n, const uint8_t *database, int64_t m,
    int32_t code_size, const int32_t *query_classes, const int32_t *classes, const int32_t *members,
    const int64_t *ends, int64_t num_classes, int64_t k, int64_t neighbours, int32_t leave_one_out,
    int32_t num_threads, int32_t instructions, const uint8_t *stop, int32_t *total, int32_t *relevant,
    int32_t *voted, double *precisions, int32_t *hits);

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

// Scores of classes from the codes that their images have (posterior.cpp). Those of class c are codes[p],
// numbers below 2^num_bits, in which the first bit is the highest, counts[p] times each, for p from ends[c -
// 1] (0 for the first class) to ends[c] - 1.
//
// The k classes of the highest scores of every code of num_bits bits, 3 to 24, ties to the lowest class:
// classes and scores [k, 2^num_bits]; and the sum over all classes: total [2^num_bits]. 1 <= k <= num_classes.
LLC_API int32_t llc_posterior_table(const uint32_t *codes, const float *counts, const int64_t *ends,
    int32_t num_classes, int32_t num_bits, float ratio, int64_t k, int32_t num_threads, const uint8_t *stop,
    int32_t *classes, float *scores, float *total);

// How many of each class's codes are 0, 1, ..., num_bits bits away from each of n codes of up to 32 bits:
// histograms [n, num_classes, num_bits + 1].
LLC_API int32_t llc_posterior_histograms(const uint32_t *queries, int64_t n, const uint32_t *codes,
    const int32_t *counts, const int64_t *ends, int32_t num_classes, int32_t num_bits, int32_t num_threads,
    const uint8_t *stop, int32_t *histograms);

// The k classes of the highest sums, ties to the lowest class, of n codes of any length: classes and scores
// [n, k]. A sum is offsets[c] + tables[byte][the byte's value][c] over a code's bytes; four bytes' entries add
// up to an int16, and those of the value 0 are 0. With `falloff` [4096] also totals [n]: the sum over the
// classes of the falloff at the difference to the highest sum, which is 0 for larger differences.
LLC_API int32_t llc_posterior_linear(const uint8_t *codes, int64_t n, int32_t code_size,
    const int16_t *tables, const int32_t *offsets, int32_t num_classes, int64_t k, const float *falloff,
    int32_t num_threads, const uint8_t *stop, int64_t *classes, int32_t *scores, float *totals);
