// One segment, and what its arrays say, checked.
#pragma once
#include <cstring>
#include <exception>

#include "index.h"

// Thrown where an array holds what it cannot hold.
struct Broken : std::exception {};

// Bits [first_bit, first_bit + num_bits) of a code as a number, the first of them the highest; num_bits < 32.
inline uint32_t bits_at(const uint8_t *code, int32_t code_size, int32_t first_bit, int32_t num_bits) {
    int32_t byte = first_bit / 8;
    uint64_t word;
    if (code_size >= 8) {
        byte = byte < code_size - 8 ? byte : code_size - 8;
        memcpy(&word, code + byte, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        word = __builtin_bswap64(word);
#endif
    } else {
        word = 0;
        for (int32_t i = 0; i < 5; i++)
            word |= byte + i < code_size ? uint64_t(code[byte + i]) << (56 - 8 * i) : 0;
    }
    return word >> (64 - (first_bit - 8 * byte) - num_bits) & ((uint64_t(1) << num_bits) - 1);
}

inline bool is_one(const uint8_t *bitmap, int64_t at) { return bitmap[at >> 3] >> (at & 7) & 1; }

// The number of ones of a word, where it matters little how fast.
inline uint32_t num_ones(uint32_t word) {
    word = word - (word >> 1 & 0x55555555);
    word = (word & 0x33333333) + (word >> 2 & 0x33333333);
    return ((word + (word >> 4)) & 0x0f0f0f0f) * 0x01010101 >> 24;
}

inline bool may_find(const IndexSegment &segment, int64_t position) {
    return !segment.allowed || is_one(segment.allowed, position);
}

inline int64_t id_of_rank(const IndexSegment &segment, int64_t rank) {
    if (rank >= segment.n) throw Broken();
    return segment.ids ? segment.ids[rank] : int64_t(uint64_t(segment.first_id) + uint64_t(rank));
}

inline int64_t id_of(const IndexSegment &segment, int64_t position) {
    return id_of_rank(segment, segment.ranks ? segment.ranks[position] : position);
}
