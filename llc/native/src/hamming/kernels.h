// The inner loops of Hamming distances, of which each kind of CPU has a version. All give the same results.
//
// The database is scanned in tiles, and a tile in groups of as many codes as four vectors have lanes. A
// group's codes are turned into planes: plane 0 holds byte 0 of all of them, plane 1 holds byte 1, and so on.
// So neighbouring lanes of a vector belong to neighbouring codes, and a distance is a sum over planes. Where
// bits are counted by looking up nibbles, each byte has two planes, of its low and of its high nibble.
#pragma once
#include <cstddef>
#include <cstdint>

constexpr int32_t MAX_TILE = 4096;  // the most codes of a tile

// An entry of a table that is being built is distance << TABLE_CLASS_BITS | class.
constexpr int32_t TABLE_CLASS_BITS = 25;
constexpr int32_t TABLE_STEP = 1 << TABLE_CLASS_BITS;

struct Tile {
    const uint8_t *planes;         // [num_lanes / group][planes of a code][group]
    int32_t code_size, num_lanes;  // num_lanes is a multiple of the kernels' `group`
};

struct HammingKernels {
    int32_t group, planes_per_byte;

    // Turns `size` codes into the planes of a tile of num_lanes lanes; the last code is repeated to its end.
    void (*fill)(const uint8_t *codes, int32_t code_size, int32_t size, int32_t num_lanes, uint8_t *planes);

    // Turns a query into one byte per plane, which the functions that take a tile want.
    void (*prepare)(const uint8_t *query, int32_t code_size, uint8_t *prepared);

    // The lowest distance of a tile's codes to a query, and the first lane that has it. A distance of 255
    // means 255 or more; the lane then means nothing.
    struct Nearest {
        uint32_t distance, lane;
    };
    Nearest (*nearest)(const Tile &tile, const uint8_t *query);
    uint32_t (*lowest)(const Tile &tile, const uint8_t *query);

    // Writes the positions, in ascending order, and the distances of the tile's codes up to `limit` <= 254
    // bits away, and returns their number.
    int32_t (*near)(const Tile &tile, const uint8_t *query, uint32_t limit, uint16_t *positions,
        uint8_t *distances);

    // Writes all distances of a tile. `count`: 255 means 255 or more. `count_wide` returns the lowest.
    void (*count)(const Tile &tile, const uint8_t *query, uint8_t *distances);
    uint32_t (*count_wide)(const Tile &tile, const uint8_t *query, uint16_t *distances);

    // The same from codes as they are, without planes, for `size` codes: faster for few queries. The 63
    // entries behind the last distance become 65535.
    uint32_t (*count_rows)(const uint8_t *codes, int32_t code_size, int32_t size, const uint8_t *query,
        uint16_t *distances);

    // Writes the positions, in ascending order, of the distances up to `limit`, and returns their number. n
    // is a multiple of 64.
    int32_t (*find_wide)(const uint16_t *distances, int32_t n, uint32_t limit, uint16_t *positions);

    // Steps of building a table (table.cpp). `grow`: for one bit; entries of n codes where it is 0, and of
    // the codes where it is 1 and all other bits are the same. `grow_low`: for the three lowest bits, of n
    // codes, a multiple of 8.
    void (*grow)(int32_t *clear, int32_t *set, int64_t n);
    void (*grow_low)(int32_t *entries, int64_t n);

    // The entries of n codes in a table of 2^num_bits. Reads 4 bytes at each code.
    void (*look_up)(const uint8_t *codes, int64_t n, int64_t code_size, int32_t num_bits,
        const int32_t *table, int64_t *classes);

    // Packs n rows of num_bits values, as llc_pack_bits does. Reads no further than `end`.
    void (*pack)(const void *values, const void *end, int64_t n, int64_t num_bits, int32_t item_size,
        uint64_t limit, uint8_t *codes);
};

constexpr int32_t PORTABLE_GROUP = 64;
extern const HammingKernels PORTABLE_HAMMING;
#if defined(__x86_64__)
extern const HammingKernels AVX2_HAMMING, AVX512_HAMMING, BITALG_HAMMING;
#elif defined(__aarch64__)
extern const HammingKernels NEON_HAMMING;
#endif
