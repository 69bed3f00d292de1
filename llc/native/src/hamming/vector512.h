// Vectors of 64 bytes. To be included after the pragma that names the instructions, as kernels_x86.h.
#pragma once
#include "kernels_x86.h"

namespace {

struct Vector512 {
    using Bytes = __m512i;
    using Words = __m512i;
    static constexpr int32_t SIZE = 64;

    static LLC_INLINE Bytes all(int byte) { return _mm512_set1_epi8(char(byte)); }
    static LLC_INLINE Bytes load(const void *from) { return _mm512_loadu_si512(from); }
    static LLC_INLINE void store(void *to, Bytes bytes) { _mm512_storeu_si512(to, bytes); }
    static LLC_INLINE Bytes add(Bytes a, Bytes b) { return _mm512_adds_epu8(a, b); }
    static LLC_INLINE Bytes lower(Bytes a, Bytes b) { return _mm512_min_epu8(a, b); }
    static LLC_INLINE Bytes where_lower(Bytes a, Bytes b, Bytes then, Bytes otherwise) {
        return _mm512_mask_mov_epi8(otherwise, _mm512_cmplt_epu8_mask(a, b), then);
    }
    static LLC_INLINE Bytes where_equal(Bytes a, Bytes b, Bytes then, Bytes otherwise) {
        return _mm512_mask_mov_epi8(otherwise, equal(a, b), then);
    }
    static LLC_INLINE uint64_t equal(Bytes a, Bytes b) { return _mm512_cmpeq_epi8_mask(a, b); }
    static LLC_INLINE uint8_t lowest(Bytes bytes) {
        return lowest_byte(
            _mm256_min_epu8(_mm512_castsi512_si256(bytes), _mm512_extracti64x4_epi64(bytes, 1)));
    }

    static LLC_INLINE Words all_words(int word) { return _mm512_set1_epi16(short(word)); }
    static LLC_INLINE void add_widened(Bytes bytes, Words &low, Words &high) {
        low = _mm512_add_epi16(low, _mm512_cvtepu8_epi16(_mm512_castsi512_si256(bytes)));
        high = _mm512_add_epi16(high, _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(bytes, 1)));
    }
    static LLC_INLINE void store_words(uint16_t *to, Words words) { store(to, words); }
    static LLC_INLINE Words lower_words(Words a, Words b) { return _mm512_min_epu16(a, b); }
    static LLC_INLINE uint16_t lowest_word(Words words) {
        const __m256i half =
            _mm256_min_epu16(_mm512_castsi512_si256(words), _mm512_extracti64x4_epi64(words, 1));
        return lowest_of_8(_mm_min_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
    }

    // Bit i: whether lane i is at most the limit.
    static LLC_INLINE uint64_t up_to(Bytes bytes, Bytes limits) {
        return _mm512_cmple_epu8_mask(bytes, limits);
    }
    // The same for 64 words in memory.
    static LLC_INLINE uint64_t words_up_to(const uint16_t *distances, uint32_t limit) {
        const Words limits = all_words(limit);
        return _mm512_cmple_epu16_mask(load(distances), limits) |
            uint64_t(_mm512_cmple_epu16_mask(load(distances + 32), limits)) << 32;
    }
};

}  // namespace
