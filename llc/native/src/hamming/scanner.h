// Comparing queries with a database, tile after tile, on several threads: what the functions share that scan.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "cpu.h"
#include "hamming.h"
#include "kernels.h"

constexpr int64_t TILE_BYTES = 16 << 10;  // the size of a tile's planes, so that they stay in the L1 cache
// Up to this many queries are compared with codes as they are, if these are whole words, because making
// planes takes longer.
constexpr int64_t FEW_QUERIES = 2;
// Code size from which the nearest code is often more than 254 bits away, too many for a byte.
constexpr int32_t WIDE = 64;
constexpr int64_t THREAD_BYTES = 1 << 22;  // query bytes x database codes that are worth a thread

struct Free {
    void operator()(void *memory) const { free(memory); }
};

// Memory that begins at a cache line: vectors across two lines take twice as long to load.
template <class Element>
std::unique_ptr<Element[], Free> aligned(int64_t length) {
    void *memory = aligned_alloc(64, (length * sizeof(Element) + 63) & ~size_t(63));
    if (!memory) throw std::bad_alloc();
    return std::unique_ptr<Element[], Free>(static_cast<Element *>(memory));
}

struct Codes {
    const uint8_t *codes;
    int64_t n;
    int32_t size;  // bytes of a code

    const uint8_t *operator[](int64_t i) const { return codes + i * size; }
};

// What one thread needs to scan tiles, one after the other.
class Scanner {
public:
    Scanner(const HammingKernels &kernels, const Codes &queries, const Codes &database)
        : kernels(kernels), queries(queries), database(database), code_size(queries.size),
          num_planes(queries.size * kernels.planes_per_byte) {
        const int64_t fits = std::clamp<int64_t>(TILE_BYTES / num_planes, 1, MAX_TILE - kernels.group + 1);
        tile_size = std::min(whole_groups(fits), whole_groups(std::max<int64_t>(database.n, 1)));
        planes = aligned<uint8_t>(tile_size * num_planes);
        narrow = aligned<uint8_t>(tile_size);
        wide = aligned<uint16_t>(tile_size + 64);
        positions = aligned<uint16_t>(tile_size);
    }

    int64_t tile_size;

    // The functions below are about queries [first, last).
    void begin_block(int64_t first, int64_t last) {
        few = code_size % 8 == 0 && last - first <= FEW_QUERIES;
        first_query = first;
        if (few) return;
        prepared.resize((last - first) * num_planes);
        for (int64_t q = first; q < last; q++)
            kernels.prepare(queries[q], code_size, &prepared[(q - first) * num_planes]);
    }

    // Makes codes [start, start + size) of the database the tile.
    void begin_tile(int64_t start, int64_t size) {
        this->start = start, this->size = size;
        tile = {planes.get(), code_size, int32_t(whole_groups(size))};
        if (!few) kernels.fill(database[start], code_size, size, tile.num_lanes, planes.get());
    }

    // Replaces the nearest code of query q, if the tile has a nearer one.
    void improve(int64_t q, int32_t &distance, int64_t &index) {
        if (!few && (code_size < WIDE || distance < 255)) {
            // Nearer codes become rare, so after the first tile looking for their lanes would not pay.
            const uint8_t *query = prepared_query(q);
            uint32_t found = 255;
            if (distance < 255) found = kernels.lowest(tile, query);
            if (distance >= 255 || found < uint32_t(distance)) {
                const HammingKernels::Nearest nearest = kernels.nearest(tile, query);
                found = nearest.distance;
                if (found < 255 && found < uint32_t(distance))
                    distance = found, index = start + nearest.lane;
            }
            if (std::min<uint32_t>(found, distance) < 255) return;
        }
        const uint32_t lowest = count_wide(q);
        if (lowest >= uint32_t(distance)) return;
        find_wide(lowest);
        distance = lowest, index = start + positions[0];
    }

    // Calls use(index, distance) for every code within `limit` of query q, in ascending order.
    template <class Use>
    void for_near(int64_t q, int64_t limit, Use use) {
        if (limit < 0) return;
        // behind `size` are repeated codes
        if (!few && limit < 255) {
            const int32_t found = kernels.near(tile, prepared_query(q), limit, positions.get(), narrow.get());
            for (int32_t i = 0; i < found && positions[i] < size; i++) use(start + positions[i], narrow[i]);
        } else if (count_wide(q) <= limit) {
            const int32_t found = find_wide(limit);
            for (int32_t i = 0; i < found && positions[i] < size; i++)
                use(start + positions[i], wide[positions[i]]);
        }
    }

    // Calls use(distances, start, size) with all distances of query q to the tile's codes, which are those
    // from `start` on; the distances are uint8 or uint16.
    template <class Use>
    void for_all(int64_t q, Use use) {
        if (!few && code_size < 32) {
            kernels.count(tile, prepared_query(q), narrow.get());
            use(static_cast<const uint8_t *>(narrow.get()), start, size);
        } else {
            count_wide(q);
            use(static_cast<const uint16_t *>(wide.get()), start, size);
        }
    }

private:
    int64_t whole_groups(int64_t n) const { return (n + kernels.group - 1) / kernels.group * kernels.group; }

    const uint8_t *prepared_query(int64_t q) const { return &prepared[(q - first_query) * num_planes]; }

    uint32_t count_wide(int64_t q) {
        return few ? kernels.count_rows(database[start], code_size, size, queries[q], wide.get())
                   : kernels.count_wide(tile, prepared_query(q), wide.get());
    }

    int32_t find_wide(int64_t limit) {
        return kernels.find_wide(wide.get(), (size + 63) / 64 * 64, limit, positions.get());
    }

    const HammingKernels &kernels;
    const Codes queries, database;
    const int32_t code_size, num_planes;
    std::vector<uint8_t> prepared;  // queries of a block
    int64_t first_query;
    std::unique_ptr<uint8_t[], Free> planes, narrow;
    std::unique_ptr<uint16_t[], Free> wide, positions;
    Tile tile;
    int64_t start, size;
    bool few;
};

// Calls use(q) for queries [first_query, last_query) with each tile of database codes [first, last). The
// first tile has tile_size codes, and each has twice as many as the one before, as far as there is room.
template <class Use>
void for_tiles(Scanner &scanner, int64_t first_query, int64_t last_query, int64_t first, int64_t last,
    int64_t tile_size, const uint8_t *stop, Use use) {
    scanner.begin_block(first_query, last_query);
    for (int64_t start = first; start < last && !is_set(stop); start += tile_size, tile_size *= 2) {
        tile_size = std::min(tile_size, scanner.tile_size);
        scanner.begin_tile(start, std::min(tile_size, last - start));
        for (int64_t q = first_query; q < last_query; q++) use(q);
    }
}

// The arguments that all functions have which scan, and their division among threads.
struct Call {
    const HammingKernels &kernels;
    Codes queries, database;
    int32_t num_threads;
    const uint8_t *stop;

    Call(const uint8_t *queries, int64_t n, const uint8_t *database, int64_t m, int32_t code_size,
        int32_t num_threads, int32_t instructions, const uint8_t *stop)
        : kernels(*instruction_set(instructions)->hamming), queries{queries, n, code_size},
          database{database, m, code_size},
          num_threads(threads_worth(n * code_size * m, THREAD_BYTES, num_threads)), stop(stop) {}

    // Calls work(scanner, first query, last query) for every block of queries.
    template <class Work>
    HammingStatus for_blocks(int64_t block, Work work) const {
        return status_of(in_threads((queries.n + block - 1) / block, num_threads, stop, scanner(),
            [&](Scanner &scanner, int64_t piece) {
                work(scanner, piece * block, std::min((piece + 1) * block, queries.n));
            }), stop);
    }

    auto scanner() const {
        return [this] { return Scanner(kernels, queries, database); };
    }
};
