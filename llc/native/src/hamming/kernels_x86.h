// What the kernels for AVX2 and AVX-512 share. To be included after the pragma that names the instructions.
// Everything is in an anonymous namespace, so that each file has its own. For the same reason no function of
// the standard library is called here: of several compiled versions the linker keeps any one.
#pragma once
#include "count_rows.h"
#include "scan.h"

namespace {

LLC_INLINE uint16_t lowest_of_8(__m128i words) {
    return _mm_cvtsi128_si32(_mm_minpos_epu16(words));
}

LLC_INLINE uint8_t lowest_byte(__m256i bytes) {
    const __m128i of_two = _mm_min_epu8(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    const __m128i of_four = _mm_min_epu8(of_two, _mm_srli_epi16(of_two, 8));
    return lowest_of_8(_mm_and_si128(of_four, _mm_set1_epi16(255)));
}

// Codes of 8 bytes, 16 at a time. Of each, the counts of its bytes are added up by vpsadbw.
uint32_t count_words(const uint8_t *codes, int32_t size, const uint8_t *query, uint16_t *distances) {
    int64_t word;
    memcpy(&word, query, 8);
    const __m256i bits = _mm256_set1_epi64x(word), low = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
    const __m256i ones = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2,
        3, 1, 2, 2, 3, 2, 3, 3, 4);
    const auto four = [&](const uint8_t *from) __attribute__((always_inline)) {
        const __m256i differing =
            _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)), bits);
        return _mm256_sad_epu8(
            _mm256_add_epi8(_mm256_shuffle_epi8(ones, _mm256_and_si256(differing, low)),
                _mm256_shuffle_epi8(ones, _mm256_and_si256(_mm256_srli_epi16(differing, 4), low))),
            zero);
    };
    __m256i lowest = _mm256_set1_epi16(-1);
    int32_t row = 0;
    for (; row + 16 <= size; row += 16, codes += 128) {
        // codes 0 4 8 12 | 1 5 9 13 | ... as words
        const __m256i first = _mm256_or_si256(four(codes), _mm256_slli_epi64(four(codes + 32), 16));
        const __m256i second = _mm256_or_si256(four(codes + 64), _mm256_slli_epi64(four(codes + 96), 16));
        const __m256i mixed = _mm256_or_si256(first, _mm256_slli_epi64(second, 32));
        lowest = _mm256_min_epu16(lowest, mixed);
        // in order: transpose 4 x 4 words, within and then across the halves
        const __m256i pairs = _mm256_shuffle_epi8(mixed, _mm256_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12,
            13, 6, 7, 14, 15, 0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
        const __m256i in_order =
            _mm256_permutevar8x32_epi32(pairs, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(distances + row), in_order);
    }
    const uint16_t of_16 = lowest_of_8(
        _mm_min_epu16(_mm256_castsi256_si128(lowest), _mm256_extracti128_si256(lowest, 1)));
    const uint32_t of_rest = count_rows_by(codes, 8, size - row, query, distances + row,
        [](uint64_t differing) __attribute__((always_inline)) { return _mm_popcnt_u64(differing); });
    return of_16 < of_rest ? of_16 : of_rest;
}

uint32_t count_rows(const uint8_t *codes, int32_t code_size, int32_t size, const uint8_t *query,
    uint16_t *distances) {
    const auto ones = [](uint64_t word) __attribute__((always_inline)) { return _mm_popcnt_u64(word); };
    // usual sizes as constants, so that the inner loop is unrolled
    if (code_size == 8) return count_words(codes, size, query, distances);
    if (code_size == 16) return count_rows_by(codes, 16, size, query, distances, ones);
    if (code_size == 32) return count_rows_by(codes, 32, size, query, distances, ones);
    return count_rows_by(codes, code_size, size, query, distances, ones);
}

// ---- planes -----------------------------------------------------------------------------------------------

// Bytes -> planes of bytes: 8 bytes of 16 codes at a time. A transposition: three rounds of interleaving.
LLC_INLINE void transpose_words(const uint8_t *codes, ptrdiff_t code_size, __m128i (&planes)[8]) {
    __m128i pairs[8], fours[8];
    const auto load = [&](int row) __attribute__((always_inline)) {
        return _mm_loadl_epi64(reinterpret_cast<const __m128i *>(codes + row * code_size));
    };
    // rows 0 8, 1 9, ...: interleaving neighbours three times more puts them in order
    for (int i = 0; i < 8; i++) pairs[i] = _mm_unpacklo_epi8(load(i), load(i + 8));
    for (int i = 0; i < 4; i++) {
        fours[2 * i] = _mm_unpacklo_epi8(pairs[i], pairs[i + 4]);
        fours[2 * i + 1] = _mm_unpackhi_epi8(pairs[i], pairs[i + 4]);
    }
    for (int i = 0; i < 2; i++)
        for (int half = 0; half < 2; half++) {
            pairs[4 * i + 2 * half] = _mm_unpacklo_epi8(fours[2 * i + half], fours[2 * i + 4 + half]);
            pairs[4 * i + 2 * half + 1] = _mm_unpackhi_epi8(fours[2 * i + half], fours[2 * i + 4 + half]);
        }
    for (int i = 0; i < 4; i++) {
        planes[2 * i] = _mm_unpacklo_epi8(pairs[i], pairs[4 + i]);
        planes[2 * i + 1] = _mm_unpackhi_epi8(pairs[i], pairs[4 + i]);
    }
}

// write(byte of the code, lane, 16 bytes of its plane); for single bytes, write_one(byte, lane, value).
template <class Write, class WriteOne>
LLC_INLINE void fill_planes(const uint8_t *codes, int32_t code_size, int32_t size, int32_t num_lanes,
    Write write, WriteOne write_one) {
    const ptrdiff_t end = ptrdiff_t(size) * code_size;
    int32_t first_rest = 0;  // from this lane on, codes are copied byte by byte
    for (; first_rest + 16 <= size; first_rest += 16) {
        const ptrdiff_t start = ptrdiff_t(first_rest) * code_size;
        // The last word of a code may reach into the next codes, but not beyond the tile.
        if (start + 15 * ptrdiff_t(code_size) + (code_size + 7) / 8 * 8 > end) break;
        for (int32_t byte = 0; byte < code_size; byte += 8) {
            __m128i planes[8];
            transpose_words(codes + start + byte, code_size, planes);
            for (int i = 0; i < 8; i++)
                if (byte + i < code_size) write(byte + i, first_rest, planes[i]);
        }
    }
    for (int32_t lane = first_rest; lane < num_lanes; lane++) {
        const uint8_t *code = codes + ptrdiff_t(lane < size ? lane : size - 1) * code_size;
        for (int32_t byte = 0; byte < code_size; byte++) write_one(byte, lane, code[byte]);
    }
}

// ---- the table --------------------------------------------------------------------------------------------

void grow(int32_t *clear, int32_t *set, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const int32_t a = clear[i], b = set[i];
        clear[i] = a < b + TABLE_STEP ? a : b + TABLE_STEP;
        set[i] = b < a + TABLE_STEP ? b : a + TABLE_STEP;
    }
}

void grow_low(int32_t *entries, int64_t n) {
    const __m256i step = _mm256_set1_epi32(TABLE_STEP);
    for (int64_t i = 0; i < n; i += 8) {
        __m256i *at = reinterpret_cast<__m256i *>(entries + i);
        __m256i found = _mm256_loadu_si256(at);
        // the neighbour in bit 0, 1, 2
        found = _mm256_min_epi32(found, _mm256_add_epi32(_mm256_shuffle_epi32(found, 0xb1), step));
        found = _mm256_min_epi32(found, _mm256_add_epi32(_mm256_shuffle_epi32(found, 0x4e), step));
        found = _mm256_min_epi32(found, _mm256_add_epi32(_mm256_permute2x128_si256(found, found, 1), step));
        _mm256_storeu_si256(at, found);
    }
}

void look_up(const uint8_t *codes, int64_t n, int64_t code_size, int32_t num_bits, const int32_t *table,
    int64_t *classes) {
    const int shift = 32 - num_bits;
#pragma GCC unroll 4
    for (int64_t row = 0; row < n; row++, codes += code_size) {
        uint32_t word;
        memcpy(&word, codes, 4);
        classes[row] = table[uint64_t(__builtin_bswap32(word)) >> shift];
    }
}

// ---- packing ----------------------------------------------------------------------------------------------

// bits_of: 8 values -> a byte, the first value highest, or 16 values -> two bytes; behind COUNT = 8 values
// nothing is read. 0 < value <= limit is one comparison, value - 1 <= limit - 1: 0 - 1 is the largest number.
template <int COUNT>
LLC_INLINE __m128i load_bytes(const uint8_t *values) {
    return COUNT == 16 ? _mm_loadu_si128(reinterpret_cast<const __m128i *>(values))
                       : _mm_loadl_epi64(reinterpret_cast<const __m128i *>(values));
}
LLC_INLINE int bits_of(__m128i inside) {
    return _mm_movemask_epi8(
        _mm_shuffle_epi8(inside, _mm_setr_epi8(7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8)));
}
template <int COUNT>
LLC_INLINE int bits_of(const uint8_t *values, uint64_t limit) {
    const __m128i below = _mm_sub_epi8(load_bytes<COUNT>(values), _mm_set1_epi8(1));
    return bits_of(_mm_cmpeq_epi8(_mm_min_epu8(below, _mm_set1_epi8(char(limit - 1))), below));
}
template <int COUNT>
LLC_INLINE int bits_of(const uint16_t *values, uint64_t limit) {
    const __m128i limits = _mm_set1_epi16(short(limit - 1)), one = _mm_set1_epi16(1);
    __m128i inside[2];
    for (int half = 0; half < COUNT / 8; half++) {
        const __m128i below =
            _mm_sub_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(values + 8 * half)), one);
        inside[half] = _mm_cmpeq_epi16(_mm_min_epu16(below, limits), below);
    }
    return bits_of(_mm_packs_epi16(inside[0], inside[COUNT / 8 - 1]));
}
template <int COUNT>
LLC_INLINE int bits_of(const uint32_t *values, uint64_t limit) {
    const __m256i limits = _mm256_set1_epi32(int32_t(limit - 1)), one = _mm256_set1_epi32(1);
    __m256i inside[2];
    for (int half = 0; half < COUNT / 8; half++) {
        const __m256i below =
            _mm256_sub_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(values + 8 * half)), one);
        inside[half] = _mm256_cmpeq_epi32(_mm256_min_epu32(below, limits), below);
    }
    const __m256i words = _mm256_packs_epi32(inside[0], inside[COUNT / 8 - 1]);
    // each half of `words` has half of either eight
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    return _mm_movemask_epi8(
        _mm_shuffle_epi8(bytes, _mm_setr_epi8(11, 10, 9, 8, 3, 2, 1, 0, 15, 14, 13, 12, 7, 6, 5, 4)));
}
template <int COUNT>
LLC_INLINE int bits_of(const uint64_t *values, uint64_t limit) {
    // there is no unsigned comparison of 64 bits; turning the highest bit over makes one of the signed one
    const __m256i sign = _mm256_set1_epi64x(INT64_MIN), one = _mm256_set1_epi64x(1);
    const __m256i limits = _mm256_xor_si256(_mm256_set1_epi64x(int64_t(limit - 1)), sign);
    int bits = 0;
    for (int byte = 0; byte < COUNT / 8; byte++) {
        __m256i beyond[2];
        for (int half = 0; half < 2; half++) {
            const __m256i loaded =
                _mm256_loadu_si256(reinterpret_cast<const __m256i *>(values + 8 * byte + 4 * half));
            beyond[half] = _mm256_cmpgt_epi64(_mm256_xor_si256(_mm256_sub_epi64(loaded, one), sign), limits);
        }
        // values 0 1 4 5 | 2 3 6 7 -> 7 6 5 4 3 2 1 0
        const __m256i in_order = _mm256_permutevar8x32_epi32(_mm256_packs_epi32(beyond[0], beyond[1]),
            _mm256_setr_epi32(7, 6, 3, 2, 5, 4, 1, 0));
        bits |= (~_mm256_movemask_ps(_mm256_castsi256_ps(in_order)) & 255) << 8 * byte;
    }
    return bits;
}

template <class Value>
void pack(const Value *values, const void *end, int64_t n, int64_t num_bits, uint64_t limit,
    uint8_t *codes) {
    const int64_t code_size = (num_bits + 7) / 8;
    const uint8_t used = 255 << (8 * code_size - num_bits);  // of the last byte
    for (int64_t row = 0; row < n; row++, values += num_bits, codes += code_size) {
        // a row's last byte may read values of the next rows, but none beyond the array
        if (static_cast<const Value *>(end) - values < 8 * code_size)
            return PORTABLE_HAMMING.pack(values, end, n - row, num_bits, sizeof(Value), limit, codes);
        int64_t byte = 0;
        for (; byte + 2 <= code_size; byte += 2) {
            const int bits = bits_of<16>(values + 8 * byte, limit);
            codes[byte] = bits, codes[byte + 1] = bits >> 8;
        }
        if (byte < code_size) codes[byte] = bits_of<8>(values + 8 * byte, limit);
        codes[code_size - 1] &= used;
    }
}

void pack_any(const void *values, const void *end, int64_t n, int64_t num_bits, int32_t item_size,
    uint64_t limit, uint8_t *codes) {
    switch (item_size) {
        case 1: return pack(static_cast<const uint8_t *>(values), end, n, num_bits, limit, codes);
        case 2: return pack(static_cast<const uint16_t *>(values), end, n, num_bits, limit, codes);
        case 4: return pack(static_cast<const uint32_t *>(values), end, n, num_bits, limit, codes);
        default: return pack(static_cast<const uint64_t *>(values), end, n, num_bits, limit, codes);
    }
}

}  // namespace
