// The loops of kernels.h, from a function that counts the ones of a word. Each kind of CPU compiles its own:
// everything is in an anonymous namespace, and no function of the standard library is called, because of
// several compiled versions the linker keeps any one.
#pragma once
#include <cstring>

#include "kernels.h"

namespace {

// How many codes ahead their memory is asked for. It takes about as long to come as 16 codes to be compared.
constexpr int32_t AHEAD = 16;

template <class Ones>
struct Near {
    // CODE_SIZE: as a constant for the usual sizes, else 0.
    template <int CODE_SIZE>
    static inline __attribute__((always_inline)) uint32_t distance(const uint8_t *code, const uint8_t *query,
        int32_t code_size) {
        const int32_t size = CODE_SIZE ? CODE_SIZE : code_size;
        uint32_t sum = 0;
        int32_t byte = 0;
        for (; byte + 8 <= size; byte += 8) {
            uint64_t a, b;
            memcpy(&a, code + byte, 8);
            memcpy(&b, query + byte, 8);
            sum += Ones::of(a ^ b);
        }
        uint64_t rest = 0;
        for (int32_t shift = 0; byte < size; byte++, shift += 8)
            rest |= uint64_t(code[byte] ^ query[byte]) << shift;
        return sum + (size % 8 ? Ones::of(rest) : 0);
    }

    template <int CODE_SIZE>
    static inline int32_t rows(const uint8_t *codes, int32_t code_size, int32_t size, const uint8_t *query,
        uint32_t limit, uint16_t *places, uint16_t *distances) {
        int32_t found = 0;
        for (int32_t i = 0; i < size; i++, codes += code_size) {
            const uint32_t d = distance<CODE_SIZE>(codes, query, code_size);
            places[found] = i, distances[found] = d;
            found += d <= limit;
        }
        return found;
    }

    template <int CODE_SIZE>
    static inline int32_t at(const uint8_t *codes, int32_t code_size, const uint32_t *positions, int32_t size,
        const uint8_t *query, uint32_t limit, uint16_t *places, uint16_t *distances) {
        int32_t found = 0;
        for (int32_t i = 0; i < size; i++) {
            const int32_t next = i + AHEAD < size ? i + AHEAD : size - 1;
            __builtin_prefetch(codes + size_t(positions[next]) * code_size);
            const uint32_t d =
                distance<CODE_SIZE>(codes + size_t(positions[i]) * code_size, query, code_size);
            places[found] = i, distances[found] = d;
            found += d <= limit;
        }
        return found;
    }

    static uint32_t lowest(const uint32_t *numbers, int32_t size) {
        uint32_t found = numbers[0];
        for (int32_t i = 1; i < size; i++) found = numbers[i] < found ? numbers[i] : found;
        return found;
    }

    static int32_t near_rows(const uint8_t *codes, int32_t code_size, int32_t size, const uint8_t *query,
        uint32_t limit, uint16_t *places, uint16_t *distances) {
        switch (code_size) {
            case 8: return rows<8>(codes, 8, size, query, limit, places, distances);
            case 16: return rows<16>(codes, 16, size, query, limit, places, distances);
            case 32: return rows<32>(codes, 32, size, query, limit, places, distances);
            default: return rows<0>(codes, code_size, size, query, limit, places, distances);
        }
    }

    static int32_t near_at(const uint8_t *codes, int32_t code_size, const uint32_t *positions, int32_t size,
        const uint8_t *query, uint32_t limit, uint16_t *places, uint16_t *distances) {
        switch (code_size) {
            case 8: return at<8>(codes, 8, positions, size, query, limit, places, distances);
            case 16: return at<16>(codes, 16, positions, size, query, limit, places, distances);
            case 32: return at<32>(codes, 32, positions, size, query, limit, places, distances);
            default: return at<0>(codes, code_size, positions, size, query, limit, places, distances);
        }
    }
};

}  // namespace
