// Counting bits by looking up nibbles: two lookups for a byte of each code, by instructions of the vpshufb
// kind. To be included after the pragma that names the instructions, as kernels_x86.h.
#pragma once
#include "kernels_x86.h"

namespace {

// The number of ones in query ^ code, for two nibbles.
struct NibbleTables {
    alignas(16) uint8_t ones[16][16];
    constexpr NibbleTables() : ones() {
        for (int query = 0; query < 16; query++)
            for (int code = 0; code < 16; code++)
                for (int bit = 0; bit < 4; bit++) ones[query][code] += (query ^ code) >> bit & 1;
    }
};
constexpr NibbleTables NIBBLES;

// A prepared query holds, for each nibble, the position of its row in this table.
void prepare_nibbles(const uint8_t *query, int32_t code_size, uint8_t *prepared) {
    for (int32_t byte = 0; byte < code_size; byte++) {
        prepared[2 * byte] = query[byte] << 4;
        prepared[2 * byte + 1] = query[byte] & 0xf0;
    }
}

LLC_INLINE __m128i differing_of_nibble(uint8_t prepared) {
    return _mm_load_si128(reinterpret_cast<const __m128i *>(NIBBLES.ones[0] + prepared));
}

template <int32_t GROUP>
void fill_nibbles(const uint8_t *codes, int32_t code_size, int32_t size, int32_t num_lanes,
    uint8_t *planes) {
    const __m128i low = _mm_set1_epi8(15);
    const auto at = [&](int32_t byte, int32_t lane) __attribute__((always_inline)) {
        return planes + (ptrdiff_t(lane / GROUP) * code_size + byte) * 2 * GROUP + lane % GROUP;
    };
    fill_planes(codes, code_size, size, num_lanes,
        [&](int32_t byte, int32_t lane, __m128i bytes) __attribute__((always_inline)) {
            uint8_t *to = at(byte, lane);
            _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm_and_si128(bytes, low));
            _mm_storeu_si128(reinterpret_cast<__m128i *>(to + GROUP),
                _mm_and_si128(_mm_srli_epi16(bytes, 4), low));
        },
        [&](int32_t byte, int32_t lane, uint8_t value) __attribute__((always_inline)) {
            uint8_t *to = at(byte, lane);
            to[0] = value & 15, to[GROUP] = value >> 4;
        });
}

}  // namespace
