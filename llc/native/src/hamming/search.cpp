#include "hamming.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#include "scanner.h"

namespace {

constexpr int64_t BLOCK_QUERIES = 4096;        // queries that share the planes of a tile
constexpr int64_t BLOCK_CANDIDATES = 4 << 20;  // candidates kept for a block of queries: 32 MB
constexpr int64_t FIRST_TILE = 256;
constexpr int INDEX_BITS = 40;  // a candidate is distance << INDEX_BITS | index: one integer, in order

// The best codes of one query. There is room for about 2 k candidates. When it is full, a counting sort by
// distance keeps the best k, and from then on only a nearer code than the worst of them is a candidate. The
// sort is stable and candidates come in ascending order of their indices, so equal distances stay in that
// order. starts [8 * code_size + 2] and spare [k] are working memory, which queries share.
class Candidates {
public:
    Candidates(int64_t *room, int64_t capacity, int64_t k, int64_t num_bits)
        : limit(num_bits), room(room), capacity(capacity), k(k) {}

    int64_t limit;

    void add(int64_t index, int64_t distance, std::vector<int64_t> &starts, std::vector<int64_t> &spare) {
        if (distance > limit) return;  // the limit has fallen since the tile's codes were found
        room[count++] = distance << INDEX_BITS | index;
        if (count < capacity) return;
        keep_best(starts, spare);
        limit = (room[k - 1] >> INDEX_BITS) - 1;
    }

    // Moves the best k to the front, sorted. There are at least k.
    void keep_best(std::vector<int64_t> &starts, std::vector<int64_t> &spare) {
        std::fill(starts.begin(), starts.end(), 0);
        for (int64_t i = 0; i < count; i++) starts[(room[i] >> INDEX_BITS) + 1]++;
        std::partial_sum(starts.begin(), starts.end(), starts.begin());
        for (int64_t i = 0; i < count; i++) {
            const int64_t rank = starts[room[i] >> INDEX_BITS]++;
            if (rank < k) spare[rank] = room[i];
        }
        std::copy(spare.begin(), spare.end(), room);
        count = k;
    }

private:
    int64_t *room;
    int64_t capacity, k, count = 0;
};

// Room for candidates: with little beyond k the limit falls early; with much the list is rarely sorted.
int64_t capacity_of(int64_t k, int64_t m) { return std::min(k + std::max<int64_t>(k, 32), m); }

// Queries in a block: each thread gets several blocks, and all threads as many, but not very small ones.
int64_t block_of(int64_t n, int32_t num_threads) {
    const int64_t per_thread = std::max<int64_t>(3, (n / num_threads + BLOCK_QUERIES - 1) / BLOCK_QUERIES);
    const int64_t num_blocks = per_thread * num_threads;
    return std::clamp<int64_t>((n + num_blocks - 1) / num_blocks, 64, BLOCK_QUERIES);
}

void nearest_codes(Scanner &scanner, int64_t first_query, int64_t last_query, int64_t first, int64_t last,
    const uint8_t *stop, int32_t *distances, int64_t *indices) {
    std::fill(distances + first_query, distances + last_query, INT32_MAX);
    for_tiles(scanner, first_query, last_query, first, last, MAX_TILE, stop,
        [&](int64_t q) { scanner.improve(q, distances[q], indices[q]); });
}

void k_nearest_codes(Scanner &scanner, int64_t first_query, int64_t last_query, int64_t first, int64_t last,
    int64_t k, int64_t num_bits, const uint8_t *stop, int32_t *distances, int64_t *indices) {
    const int64_t capacity = capacity_of(k, last - first), n = last_query - first_query;
    const std::unique_ptr<int64_t[]> room(new int64_t[n * capacity]);
    std::vector<int64_t> starts(num_bits + 2), spare(k);
    std::vector<Candidates> candidates;
    candidates.reserve(n);
    for (int64_t i = 0; i < n; i++) candidates.emplace_back(&room[i * capacity], capacity, k, num_bits);
    // A tile's codes are compared with the limit before them, so the first tiles, of which most codes become
    // candidates, are small.
    for_tiles(scanner, first_query, last_query, first, last, FIRST_TILE, stop, [&](int64_t q) {
        Candidates &best = candidates[q - first_query];
        scanner.for_near(q, best.limit,
            [&](int64_t index, int64_t distance) { best.add(index, distance, starts, spare); });
    });
    if (is_set(stop)) return;
    for (int64_t i = 0; i < n; i++) {
        candidates[i].keep_best(starts, spare);
        for (int64_t rank = 0; rank < k; rank++) {
            const int64_t candidate = room[i * capacity + rank];
            distances[(first_query + i) * k + rank] = candidate >> INDEX_BITS;
            indices[(first_query + i) * k + rank] = candidate & ((int64_t(1) << INDEX_BITS) - 1);
        }
    }
}

// The results of one part of the database.
struct Part {
    int64_t first, last, k;
    std::vector<int32_t> distances;  // [n, k]
    std::vector<int64_t> indices;
};

// Merges the parts' results for one query. Parts are in ascending order of indices, so the first of equals is
// the one with the lowest index.
void merge(const std::vector<Part> &parts, int64_t q, int64_t k, int32_t *distances, int64_t *indices) {
    std::vector<int64_t> taken(parts.size());
    for (int64_t rank = 0; rank < k; rank++) {
        size_t best = parts.size();
        int32_t lowest = INT32_MAX;
        for (size_t p = 0; p < parts.size(); p++) {
            if (taken[p] == parts[p].k) continue;
            const int32_t distance = parts[p].distances[q * parts[p].k + taken[p]];
            if (distance < lowest) lowest = distance, best = p;
        }
        distances[q * k + rank] = lowest;
        indices[q * k + rank] = parts[best].indices[q * parts[best].k + taken[best]++];
    }
}

HammingStatus search(const Call &call, int64_t k, int32_t *distances, int64_t *indices) {
    const int64_t n = call.queries.n, m = call.database.n, num_bits = 8 * int64_t(call.queries.size);
    const int64_t block = std::min(block_of(n, call.num_threads),
        std::max<int64_t>(1, BLOCK_CANDIDATES / capacity_of(k, m)));
    const int64_t num_blocks = (n + block - 1) / block;
    // If there are fewer blocks of queries than threads, the database is divided too.
    const int64_t num_parts = n ? std::min(m, (call.num_threads + num_blocks - 1) / num_blocks) : 1;
    std::vector<Part> parts;
    if (num_parts > 1)
        for (int64_t p = 0; p < num_parts; p++) {
            const int64_t first = m * p / num_parts, last = m * (p + 1) / num_parts;
            const int64_t of_part = std::min(k, last - first);
            parts.push_back({first, last, of_part, std::vector<int32_t>(n * of_part),
                std::vector<int64_t>(n * of_part)});
        }
    const bool fine = in_threads(num_parts * num_blocks, call.num_threads, call.stop,
        call.scanner(), [&](Scanner &scanner, int64_t piece) {
            Part *part = parts.empty() ? nullptr : &parts[piece % num_parts];
            const int64_t first_query = piece / num_parts * block;
            const int64_t last_query = std::min(first_query + block, n);
            const int64_t first = part ? part->first : 0, last = part ? part->last : m;
            int32_t *to = part ? part->distances.data() : distances;
            int64_t *to_indices = part ? part->indices.data() : indices;
            if (k == 1)
                nearest_codes(scanner, first_query, last_query, first, last, call.stop, to, to_indices);
            else
                k_nearest_codes(scanner, first_query, last_query, first, last, part ? part->k : k, num_bits,
                    call.stop, to, to_indices);
        });
    const HammingStatus status = status_of(fine, call.stop);
    if (status != LLC_DONE || parts.empty()) return status;
    for (int64_t q = 0; q < n; q++) merge(parts, q, k, distances, indices);
    return LLC_DONE;
}

}  // namespace

int32_t llc_hamming_search(const uint8_t *queries, int64_t n, const uint8_t *database, int64_t m,
    int32_t code_size, int64_t k, int32_t num_threads, int32_t instructions, const uint8_t *stop,
    int32_t *distances, int64_t *indices) try {
    return search(Call(queries, n, database, m, code_size, num_threads, instructions, stop), k, distances,
        indices);
} catch (const std::exception &) {
    return LLC_NO_MEMORY;
}

int32_t llc_hamming_range_search(const uint8_t *queries, int64_t n, const uint8_t *database, int64_t m,
    int32_t code_size, int64_t radius, int32_t num_threads, int32_t instructions, const uint8_t *stop,
    int64_t *ends, int32_t *distances, int64_t *indices) {
    const Call call(queries, n, database, m, code_size, num_threads, instructions, stop);
    const int64_t limit = std::min<int64_t>(radius, 8 * code_size);
    return call.for_blocks(block_of(n, call.num_threads),
        [&](Scanner &scanner, int64_t first_query, int64_t last_query) {
            for_tiles(scanner, first_query, last_query, 0, m, MAX_TILE, stop, [&](int64_t q) {
                int64_t end = ends[q];
                scanner.for_near(q, limit, [&](int64_t index, int64_t distance) {
                    if (distances) distances[end] = distance, indices[end] = index;
                    end++;
                });
                ends[q] = end;
            });
        });
}

int32_t llc_hamming_pairwise(const uint8_t *queries, int64_t n, const uint8_t *database, int64_t m,
    int32_t code_size, int32_t num_threads, int32_t instructions, const uint8_t *stop, int32_t *distances) {
    const Call call(queries, n, database, m, code_size, num_threads, instructions, stop);
    return call.for_blocks(block_of(n, call.num_threads),
        [&](Scanner &scanner, int64_t first_query, int64_t last_query) {
            for_tiles(scanner, first_query, last_query, 0, m, MAX_TILE, stop,
                [&](int64_t q) {
                    scanner.for_all(q, [&](const auto *found, int64_t start, int64_t size) {
                        std::copy_n(found, size, distances + q * m + start);
                    });
                });
        });
}
