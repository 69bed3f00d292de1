// The obvious loops, for every CPU. Compilers vectorise most of them.
#include "kernels.h"

#include <algorithm>
#include <cstring>

#include "count_rows.h"

namespace {

// The number of ones, by adding up pairs, nibbles, bytes: not every CPU has an instruction for it.
inline uint8_t ones(uint8_t byte) {
    byte = byte - (byte >> 1 & 0x55);
    byte = (byte & 0x33) + (byte >> 2 & 0x33);
    return (byte + (byte >> 4)) & 0x0f;
}

void fill(const uint8_t *codes, int32_t code_size, int32_t size, int32_t num_lanes, uint8_t *planes) {
    for (int32_t first = 0; first < num_lanes; first += PORTABLE_GROUP)
        for (int32_t byte = 0; byte < code_size; byte++)
            for (int32_t lane = first; lane < first + PORTABLE_GROUP; lane++)
                *planes++ = codes[ptrdiff_t(std::min(lane, size - 1)) * code_size + byte];
}

void prepare(const uint8_t *query, int32_t code_size, uint8_t *prepared) {
    memcpy(prepared, query, code_size);
}

uint32_t count_wide(const Tile &tile, const uint8_t *query, uint16_t *distances) {
    std::fill_n(distances, tile.num_lanes, 0);
    const uint8_t *plane = tile.planes;
    for (int32_t first = 0; first < tile.num_lanes; first += PORTABLE_GROUP)
        for (int32_t byte = 0; byte < tile.code_size; byte++, plane += PORTABLE_GROUP)
            for (int32_t lane = 0; lane < PORTABLE_GROUP; lane++)
                distances[first + lane] += ones(plane[lane] ^ query[byte]);
    return *std::min_element(distances, distances + tile.num_lanes);
}

void count(const Tile &tile, const uint8_t *query, uint8_t *distances) {
    uint16_t wide[MAX_TILE];
    count_wide(tile, query, wide);
    for (int32_t lane = 0; lane < tile.num_lanes; lane++)
        distances[lane] = std::min<uint16_t>(wide[lane], 255);
}

HammingKernels::Nearest nearest(const Tile &tile, const uint8_t *query) {
    uint16_t distances[MAX_TILE];
    const uint32_t lowest = count_wide(tile, query, distances);
    const uint16_t *found = std::find(distances, distances + tile.num_lanes, lowest);
    return {std::min<uint32_t>(lowest, 255), uint32_t(found - distances)};
}

uint32_t lowest(const Tile &tile, const uint8_t *query) { return nearest(tile, query).distance; }

// Used where a CPU has no instruction that counts the ones of a word.
uint32_t count_rows(const uint8_t *codes, int32_t code_size, int32_t size, const uint8_t *query,
    uint16_t *distances) {
    return count_rows_by(codes, code_size, size, query, distances, [](uint64_t word) {
        word = word - (word >> 1 & 0x5555555555555555);
        word = (word & 0x3333333333333333) + (word >> 2 & 0x3333333333333333);
        return ((word + (word >> 4)) & 0x0f0f0f0f0f0f0f0f) * 0x0101010101010101 >> 56;
    });
}

int32_t near(const Tile &tile, const uint8_t *query, uint32_t limit, uint16_t *positions,
    uint8_t *distances) {
    uint16_t wide[MAX_TILE];
    if (count_wide(tile, query, wide) > limit) return 0;
    int32_t found = 0;
    for (int32_t lane = 0; lane < tile.num_lanes; lane++)
        if (wide[lane] <= limit) distances[found] = wide[lane], positions[found++] = lane;
    return found;
}

int32_t find_wide(const uint16_t *distances, int32_t n, uint32_t limit, uint16_t *positions) {
    int32_t found = 0;
    for (int32_t i = 0; i < n; i++)
        if (distances[i] <= limit) positions[found++] = i;
    return found;
}

void grow(int32_t *clear, int32_t *set, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const int32_t a = clear[i], b = set[i];
        clear[i] = std::min(a, b + TABLE_STEP);
        set[i] = std::min(b, a + TABLE_STEP);
    }
}

void grow_low(int32_t *entries, int64_t n) {
    for (int64_t half = 1; half < 8; half *= 2)
        for (int64_t first = 0; first < n; first += 2 * half)
            grow(entries + first, entries + first + half, half);
}

void look_up(const uint8_t *codes, int64_t n, int64_t code_size, int32_t num_bits, const int32_t *table,
    int64_t *classes) {
    for (int64_t row = 0; row < n; row++, codes += code_size) {
        const uint64_t word = uint32_t(codes[0]) << 24 | codes[1] << 16 | codes[2] << 8 | codes[3];
        classes[row] = table[word >> (32 - num_bits)];
    }
}

template <class Value>
void pack(const Value *values, int64_t n, int64_t num_bits, uint64_t limit, uint8_t *codes) {
    for (int64_t row = 0; row < n; row++) {
        for (int64_t first = 0; first < num_bits; first += 8) {
            uint8_t byte = 0;
            for (int64_t bit = first; bit < std::min(first + 8, num_bits); bit++)
                byte |= (0 < values[bit] && values[bit] <= limit) << (7 - bit % 8);
            *codes++ = byte;
        }
        values += num_bits;
    }
}

void pack_any(const void *values, const void *, int64_t n, int64_t num_bits, int32_t item_size,
    uint64_t limit, uint8_t *codes) {
    switch (item_size) {
        case 1: return pack(static_cast<const uint8_t *>(values), n, num_bits, limit, codes);
        case 2: return pack(static_cast<const uint16_t *>(values), n, num_bits, limit, codes);
        case 4: return pack(static_cast<const uint32_t *>(values), n, num_bits, limit, codes);
        default: return pack(static_cast<const uint64_t *>(values), n, num_bits, limit, codes);
    }
}

}  // namespace

const HammingKernels PORTABLE_HAMMING = {PORTABLE_GROUP, 1, fill, prepare, nearest, lowest, near, count,
    count_wide, count_rows, find_wide, grow, grow_low, look_up, pack_any};
