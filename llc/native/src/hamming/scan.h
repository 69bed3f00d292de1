// The kernels that scan tiles, from the few operations on vectors in which kinds of CPU differ. kernels_*.cpp
// define those as a struct V, and compile this template for their instructions. `prepare` makes a vector of
// one byte of a prepared query; `differing` counts, in each lane, the bits in which a plane of codes differs
// from it. `add` saturates at 255. The other operations say by their names what they do.
#pragma once
#include "kernels.h"

#define LLC_INLINE inline __attribute__((always_inline))

template <class V>
struct Scan {
    using Bytes = typename V::Bytes;
    static constexpr int32_t SIZE = V::SIZE, GROUP = 4 * SIZE;
    // Bytes of codes whose counts, at most 248, fit in a byte.
    static constexpr int32_t CHUNK = 31;

    // Calls use(lane, counts) for each group of codes, with the counts of its four vectors: their sums do not
    // depend on each other, so the CPU can overlap them. CODE_SIZE: the number of bytes, as a constant for
    // the usual sizes, which saves a third of the instructions; else 0.
    template <int CODE_SIZE, class Use>
    static LLC_INLINE void for_groups(const Tile &tile, const uint8_t *query, Use use) {
        const uint8_t *plane = tile.planes;
        if constexpr (CODE_SIZE > 0) {
            constexpr int32_t NUM_PLANES = CODE_SIZE * V::PLANES_PER_BYTE;
            Bytes planes_of_query[NUM_PLANES];
            for (int32_t p = 0; p < NUM_PLANES; p++) planes_of_query[p] = V::prepare(query[p]);
            for (int32_t lane = 0; lane < tile.num_lanes; lane += GROUP, plane += NUM_PLANES * GROUP) {
                Bytes counts[4];
                for (int v = 0; v < 4; v++) counts[v] = V::differing(planes_of_query[0], plane + v * SIZE);
#pragma GCC unroll 16
                for (int32_t p = 1; p < NUM_PLANES; p++)
                    add_plane(planes_of_query[p], plane + p * GROUP, counts);
                use(lane, counts);
            }
        } else {
            const int32_t num_planes = tile.code_size * V::PLANES_PER_BYTE;
            for (int32_t lane = 0; lane < tile.num_lanes; lane += GROUP) {
                Bytes counts[4];
                for (Bytes &count : counts) count = V::all(0);
                for (int32_t p = 0; p < num_planes; p++, plane += GROUP)
                    add_plane(V::prepare(query[p]), plane, counts);
                use(lane, counts);
            }
        }
    }

    static LLC_INLINE void add_plane(Bytes of_query, const uint8_t *plane, Bytes (&counts)[4]) {
        for (int v = 0; v < 4; v++)
            counts[v] = V::add(counts[v], V::differing(of_query, plane + v * SIZE));
    }

    template <class Use>
    static LLC_INLINE void for_all(const Tile &tile, const uint8_t *query, Use use) {
        switch (tile.code_size) {
            case 1: return for_groups<1>(tile, query, use);
            case 2: return for_groups<2>(tile, query, use);
            case 3: return for_groups<3>(tile, query, use);
            case 4: return for_groups<4>(tile, query, use);
            case 8: return for_groups<8>(tile, query, use);
            default: return for_groups<0>(tile, query, use);
        }
    }

    // Each lane keeps its lowest count so far, and the number of the vector that it came from.
    static HammingKernels::Nearest nearest(const Tile &tile, const uint8_t *query) {
        Bytes lowest = V::all(255), numbers = V::all(0), number = V::all(0);
        const Bytes one = V::all(1);
        for_all(tile, query, [&](int32_t, const Bytes (&counts)[4]) __attribute__((always_inline)) {
            for (int v = 0; v < 4; v++) {
                numbers = V::where_lower(counts[v], lowest, number, numbers);
                lowest = V::lower(counts[v], lowest);
                number = V::add(number, one);
            }
        });
        const uint8_t distance = V::lowest(lowest);
        const uint8_t first = V::lowest(V::where_equal(lowest, V::all(distance), numbers, V::all(255)));
        const uint64_t lanes = V::equal(lowest, V::all(distance)) & V::equal(numbers, V::all(first));
        return {distance, uint32_t(first * SIZE + (lanes ? __builtin_ctzll(lanes) : 0))};
    }

    static LLC_INLINE Bytes lowest_of(const Bytes (&counts)[4]) {
        return V::lower(V::lower(counts[0], counts[1]), V::lower(counts[2], counts[3]));
    }

    static uint32_t lowest(const Tile &tile, const uint8_t *query) {
        Bytes lowest = V::all(255);
        for_all(tile, query, [&](int32_t, const Bytes (&counts)[4])
            __attribute__((always_inline)) { lowest = V::lower(lowest_of(counts), lowest); });
        return V::lowest(lowest);
    }

    static int32_t near(const Tile &tile, const uint8_t *query, uint32_t limit, uint16_t *positions,
        uint8_t *distances) {
        int32_t found = 0;
        const Bytes limits = V::all(limit);
        for_all(tile, query, [&](int32_t lane, const Bytes (&counts)[4]) __attribute__((always_inline)) {
            if (__builtin_expect(!V::up_to(lowest_of(counts), limits), 1)) return;
            uint8_t of_group[GROUP];
            for (int v = 0; v < 4; v++) V::store(of_group + v * SIZE, counts[v]);
            for (int v = 0; v < 4; v++)
                for (uint64_t within = V::up_to(counts[v], limits); within; within &= within - 1) {
                    const int32_t at = v * SIZE + __builtin_ctzll(within);
                    positions[found] = lane + at, distances[found++] = of_group[at];
                }
        });
        return found;
    }

    static void count(const Tile &tile, const uint8_t *query, uint8_t *distances) {
        for_all(tile, query, [&](int32_t lane, const Bytes (&counts)[4]) __attribute__((always_inline)) {
            for (int v = 0; v < 4; v++) V::store(distances + lane + v * SIZE, counts[v]);
        });
    }

    static uint32_t count_wide(const Tile &tile, const uint8_t *query, uint16_t *distances) {
        const int32_t num_planes = tile.code_size * V::PLANES_PER_BYTE;
        const uint8_t *plane = tile.planes;
        auto lowest = V::all_words(0xffff);
        for (int32_t lane = 0; lane < tile.num_lanes; lane += GROUP) {
            typename V::Words words[8];
            for (auto &word : words) word = V::all_words(0);
            for (int32_t p = 0; p < num_planes;) {
                const int32_t chunk_end = p + CHUNK * V::PLANES_PER_BYTE;
                const int32_t last = chunk_end < num_planes ? chunk_end : num_planes;
                Bytes counts[4];
                for (Bytes &count : counts) count = V::all(0);
                for (; p < last; p++, plane += GROUP) add_plane(V::prepare(query[p]), plane, counts);
                for (int v = 0; v < 4; v++) V::add_widened(counts[v], words[2 * v], words[2 * v + 1]);
            }
            for (int i = 0; i < 8; i++) {
                V::store_words(distances + lane + i * SIZE / 2, words[i]);
                lowest = V::lower_words(words[i], lowest);
            }
        }
        return V::lowest_word(lowest);
    }

    static int32_t find_wide(const uint16_t *distances, int32_t n, uint32_t limit, uint16_t *positions) {
        int32_t found = 0;
        for (int32_t first = 0; first < n; first += 64)
            for (uint64_t within = V::words_up_to(distances + first, limit); within; within &= within - 1)
                positions[found++] = first + __builtin_ctzll(within);
        return found;
    }
};
