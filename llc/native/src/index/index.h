// Exact search in a database that consists of segments, with tables of multi-index hashing where these pay
// (Norouzi, Punjani and Fleet, CVPR 2012). Results are the same for every method, CPU, number of threads and
// division into segments: each query's are sorted by distance, then by id.
//
// Threads, `stop` and statuses are as in hamming.h. Offsets, positions and ranks may come from a file that is
// damaged, so they are checked before use; then the status is LLC_BROKEN.
#pragma once
#include "hamming/hamming.h"

enum IndexStatus : int32_t {
    LLC_BROKEN = 3,  // an offset, position or rank that no segment can have
    LLC_LONG = 4,    // the tables do not suffice, and the caller did not want a long scan
};

// The bits of a table that lie in the 8 bytes of a code from `byte` on, loaded as one word.
struct IndexWord {
    uint64_t mask;
    int64_t byte;  // at most code_size - 8; 0 in shorter codes
};

// A number for each code: some of its bits, the first of them the highest. The codes of a bucket have the
// same number: bucket b holds positions[offsets[b]] to positions[offsets[b + 1] - 1], in ascending order.
struct IndexTable {
    const int32_t *bits;  // [num_bits], at most 31; the tables of a segment have no bit in common
    int64_t num_bits;
    const IndexWord *words;  // [num_words], the same bits
    int64_t num_words;
    const uint32_t *offsets;    // [2^num_bits + 1]
    const uint32_t *positions;  // [n]; NULL in a segment's first table: position p is p
};

// Codes [n, code_size] in the order of their positions, n < 2^32: with tables sorted by the bucket of the
// first table, those of a bucket in the order of their ids; without tables in the order of their ids.
struct IndexSegment {
    const uint8_t *codes;
    int64_t n;
    const uint32_t *ranks;   // [n], place of each position in the order of ids; NULL: its position
    const int64_t *ids;      // [n], ascending; NULL: first_id + rank
    int64_t first_id;
    const uint8_t *allowed;  // one bit for each position, the lowest first: 1 may be found; NULL: all may
    int64_t num_allowed;
    const IndexTable *tables;
    int64_t num_tables;
};

// What is searched, and how.
struct IndexQuery {
    const IndexSegment *segments;
    int64_t num_segments;
    const uint8_t *queries;  // [n, code_size]
    int64_t n;
    int32_t code_size, num_bits;
    int32_t method;  // 0: the faster one; 1: tables, where a segment has them; 2: scan
    int32_t brief;   // 1: return LLC_LONG instead of beginning a scan
    int32_t num_threads, instructions;
    uint8_t *pending;  // [num_segments], in and out: 1: its tables were found not to suffice; or NULL
    const uint8_t *stop;
};

// The k nearest codes of each query: distances, ids [n, k]; k >= 1. If there are fewer, the rest is -1.
LLC_API int32_t llc_index_search(const IndexQuery *query, int64_t k, int32_t *distances, int64_t *ids);

// All codes within a radius of each query: lims [n + 1]; those of query i are found[lims[i]] to
// found[lims[i + 1] - 1]. llc_index_take copies them and frees `found`, or only frees it if `ids` is NULL.
// There is nothing to free unless the status is LLC_DONE.
LLC_API int32_t llc_index_range_search(const IndexQuery *query, int64_t radius, int64_t *lims, void **found);
LLC_API void llc_index_take(void *found, int32_t *distances, int64_t *ids);

// Groups of codes that chains connect whose steps are at most `radius` long; only those that may be found,
// at most 2^32 - 2, and only groups of two or more. `found` is for llc_index_take_groups: lims [num_groups +
// 1], ids [num_ids]; the groups are sorted by their lowest id, and ids ascend in each.
LLC_API int32_t llc_index_groups(const IndexSegment *segments, int64_t num_segments, int32_t code_size,
    int32_t num_bits, int32_t radius, const uint8_t *stop, int64_t *num_groups, int64_t *num_ids,
    void **found);
LLC_API void llc_index_take_groups(void *found, int64_t *lims, int64_t *ids);

// Builds a table of bits [num_bits]: offsets [2^num_bits + 1], positions [n]; n < 2^32.
LLC_API int32_t llc_index_build_table(const uint8_t *codes, int64_t n, int32_t code_size, const int32_t *bits,
    int32_t num_bits, int32_t num_threads, const uint8_t *stop, uint32_t *offsets, uint32_t *positions);

// sorted[i] = codes[positions[i]], all positions below n.
LLC_API int32_t llc_index_gather(const uint8_t *codes, int64_t n, int32_t code_size,
    const uint32_t *positions, int32_t num_threads, const uint8_t *stop, uint8_t *sorted);

// The number of ones among the first n bits of a bitmap.
LLC_API int64_t llc_index_count(const uint8_t *bitmap, int64_t n);
