#if defined(__x86_64__)
#include <cstdint>
#include <cstring>
#include <immintrin.h>

#include "kernels.h"

#pragma GCC target("avx2,popcnt,bmi,bmi2")
#include "nibbles.h"

namespace {

struct Lookup256 {
    using Bytes = __m256i;
    using Words = __m256i;
    static constexpr int32_t SIZE = 32, PLANES_PER_BYTE = 2;

    static LLC_INLINE Bytes all(int byte) { return _mm256_set1_epi8(char(byte)); }
    static LLC_INLINE Bytes load(const void *from) {
        return _mm256_loadu_si256(static_cast<const __m256i *>(from));
    }
    static LLC_INLINE void store(void *to, Bytes bytes) {
        _mm256_storeu_si256(static_cast<__m256i *>(to), bytes);
    }
    static LLC_INLINE Bytes prepare(uint8_t prepared) {
        return _mm256_broadcastsi128_si256(differing_of_nibble(prepared));
    }
    static LLC_INLINE Bytes differing(Bytes of_query, const uint8_t *plane) {
        return _mm256_shuffle_epi8(of_query, load(plane));
    }
    static LLC_INLINE Bytes add(Bytes a, Bytes b) { return _mm256_adds_epu8(a, b); }
    static LLC_INLINE Bytes lower(Bytes a, Bytes b) { return _mm256_min_epu8(a, b); }
    static LLC_INLINE Bytes where_lower(Bytes a, Bytes b, Bytes then, Bytes otherwise) {
        return _mm256_blendv_epi8(then, otherwise, _mm256_cmpeq_epi8(_mm256_max_epu8(a, b), a));
    }
    static LLC_INLINE Bytes where_equal(Bytes a, Bytes b, Bytes then, Bytes otherwise) {
        return _mm256_blendv_epi8(otherwise, then, _mm256_cmpeq_epi8(a, b));
    }
    static LLC_INLINE uint64_t equal(Bytes a, Bytes b) {
        return uint32_t(_mm256_movemask_epi8(_mm256_cmpeq_epi8(a, b)));
    }
    static LLC_INLINE uint8_t lowest(Bytes bytes) { return lowest_byte(bytes); }

    static LLC_INLINE Words all_words(int word) { return _mm256_set1_epi16(short(word)); }
    static LLC_INLINE void add_widened(Bytes bytes, Words &low, Words &high) {
        low = _mm256_add_epi16(low, _mm256_cvtepu8_epi16(_mm256_castsi256_si128(bytes)));
        high = _mm256_add_epi16(high, _mm256_cvtepu8_epi16(_mm256_extracti128_si256(bytes, 1)));
    }
    static LLC_INLINE void store_words(uint16_t *to, Words words) { store(to, words); }
    static LLC_INLINE Words lower_words(Words a, Words b) { return _mm256_min_epu16(a, b); }
    static LLC_INLINE uint16_t lowest_word(Words words) {
        return lowest_of_8(_mm_min_epu16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
    }

    // Bit i: whether lane i is at most the limit.
    static LLC_INLINE uint64_t up_to(Bytes bytes, Bytes limits) {
        return equal(_mm256_min_epu8(bytes, limits), bytes);
    }
    // The same for 64 words in memory.
    static LLC_INLINE uint64_t words_up_to(const uint16_t *distances, uint32_t limit) {
        const Words limits = all_words(limit);
        uint64_t mask = 0;
        for (int i = 0; i < 2; i++) {
            const Words a = load(distances + 32 * i), b = load(distances + 32 * i + 16);
            const Bytes found = _mm256_packs_epi16(_mm256_cmpeq_epi16(_mm256_min_epu16(a, limits), a),
                _mm256_cmpeq_epi16(_mm256_min_epu16(b, limits), b));
            const Bytes in_order = _mm256_permute4x64_epi64(found, 0xd8);
            mask |= uint64_t(uint32_t(_mm256_movemask_epi8(in_order))) << 32 * i;
        }
        return mask;
    }
};

}  // namespace

const HammingKernels AVX2_HAMMING = {Scan<Lookup256>::GROUP, Lookup256::PLANES_PER_BYTE,
    fill_nibbles<Scan<Lookup256>::GROUP>, prepare_nibbles, Scan<Lookup256>::nearest, Scan<Lookup256>::lowest,
    Scan<Lookup256>::near, Scan<Lookup256>::count, Scan<Lookup256>::count_wide, count_rows,
    Scan<Lookup256>::find_wide, grow, grow_low, look_up, pack_any};
#endif
