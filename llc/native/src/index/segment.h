// One segment, and what its arrays say, checked.
#pragma once
#include <cstring>
#include <exception>

#include "index.h"

// Thrown where an array holds what it cannot hold.
struct Broken : std::exception {};

inline uint32_t bit_at(const uint8_t *code, int32_t bit) { return code[bit >> 3] >> (7 - (bit & 7)) & 1; }

// The number of a code's bucket in a table.
inline uint32_t bucket_of(const uint8_t *code, const IndexTable &table) {
    uint32_t bucket = 0;
    for (int64_t i = 0; i < table.num_bits; i++) bucket = bucket << 1 | bit_at(code, table.bits[i]);
    return bucket;
}

inline bool is_one(const uint8_t *bitmap, int64_t at) { return bitmap[at >> 3] >> (at & 7) & 1; }

// The number of ones of a word, where it matters little how fast.
inline int32_t num_ones(uint64_t word) {
    word = word - (word >> 1 & 0x5555555555555555);
    word = (word & 0x3333333333333333) + (word >> 2 & 0x3333333333333333);
    return ((word + (word >> 4)) & 0x0f0f0f0f0f0f0f0f) * 0x0101010101010101 >> 56;
}

// In how many bits the buckets of two codes in a table differ.
inline int32_t num_differing(const uint8_t *a, const uint8_t *b, int32_t code_size, const IndexTable &table) {
    int32_t sum = 0;
    for (int64_t i = 0; i < table.num_words; i++) {
        const IndexWord &word = table.words[i];
        uint64_t of_a = 0, of_b = 0;
        if (code_size >= 8) {
            memcpy(&of_a, a + word.byte, 8);
            memcpy(&of_b, b + word.byte, 8);
        } else {
            memcpy(&of_a, a, code_size);
            memcpy(&of_b, b, code_size);
        }
        sum += num_ones((of_a ^ of_b) & word.mask);
    }
    return sum;
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
