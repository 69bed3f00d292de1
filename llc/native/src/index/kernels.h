// The inner loops of a search in tables, of which each kind of CPU has a version: they compare codes with one
// query. All give the same results.
#pragma once
#include <cstddef>
#include <cstdint>

struct IndexKernels {
    // Codes at most `limit` bits away, of `size` codes that follow each other, and of those at the positions.
    // They write their places in the list and their distances, in ascending order of the places, and return
    // their number.
    int32_t (*near_rows)(const uint8_t *codes, int32_t code_size, int32_t size, const uint8_t *query,
        uint32_t limit, uint16_t *places, uint16_t *distances);
    int32_t (*near_at)(const uint8_t *codes, int32_t code_size, const uint32_t *positions, int32_t size,
        const uint8_t *query, uint32_t limit, uint16_t *places, uint16_t *distances);

    // The lowest of `size` >= 1 numbers.
    uint32_t (*lowest)(const uint32_t *numbers, int32_t size);
};

extern const IndexKernels PORTABLE_INDEX;
#if defined(__x86_64__)
extern const IndexKernels AVX2_INDEX;
#endif
