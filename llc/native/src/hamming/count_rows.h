// Distances from codes as they are, word by word.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

// ones(word): the number of ones in a uint64. A template, so that each kind of CPU compiles its own.
template <class Ones>
inline __attribute__((always_inline)) uint32_t count_rows_by(const uint8_t *codes, int32_t code_size,
    int32_t size, const uint8_t *query, uint16_t *distances, Ones ones) {
    const auto word_at = [](const uint8_t *from, int32_t bytes) __attribute__((always_inline)) {
        uint64_t word = 0;
        memcpy(&word, from, bytes);
        return word;
    };
    uint32_t lowest = 0xffff;
    for (int32_t row = 0; row < size; row++, codes += code_size) {
        uint32_t distance = 0;
        int32_t byte = 0;
        for (; byte + 8 <= code_size; byte += 8)
            distance += ones(word_at(codes + byte, 8) ^ word_at(query + byte, 8));
        for (; byte < code_size; byte++) distance += ones(codes[byte] ^ query[byte]);
        distances[row] = distance;
        if (distance < lowest) lowest = distance;
    }
    // nothing is found beyond the last code
    for (int32_t row = size; row < size + 63; row++) distances[row] = 0xffff;
    return lowest;
}
