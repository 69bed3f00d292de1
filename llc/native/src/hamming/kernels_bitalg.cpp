#if defined(__x86_64__)
#include <cstdint>
#include <cstring>

// These warnings come from GCC 12's own AVX-512 headers, not from this code.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "kernels.h"

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512bitalg,avx2,popcnt,bmi,bmi2")
#include "vector512.h"

namespace {

// Three instructions for a byte of 64 codes: vpxorq, vpopcntb, vpaddusb.
struct Counting512 : Vector512 {
    static constexpr int32_t PLANES_PER_BYTE = 1;

    static LLC_INLINE Bytes prepare(uint8_t prepared) { return all(prepared); }
    static LLC_INLINE Bytes differing(Bytes of_query, const uint8_t *plane) {
        return _mm512_popcnt_epi8(_mm512_xor_si512(load(plane), of_query));
    }
};

constexpr int32_t GROUP = Scan<Counting512>::GROUP;

void prepare(const uint8_t *query, int32_t code_size, uint8_t *prepared) {
    memcpy(prepared, query, code_size);
}

void fill(const uint8_t *codes, int32_t code_size, int32_t size, int32_t num_lanes, uint8_t *planes) {
    const auto at = [&](int32_t byte, int32_t lane) __attribute__((always_inline)) {
        return planes + (ptrdiff_t(lane / GROUP) * code_size + byte) * GROUP + lane % GROUP;
    };
    fill_planes(codes, code_size, size, num_lanes,
        [&](int32_t byte, int32_t lane, __m128i bytes) __attribute__((always_inline)) {
            _mm_storeu_si128(reinterpret_cast<__m128i *>(at(byte, lane)), bytes);
        },
        [&](int32_t byte, int32_t lane, uint8_t value)
            __attribute__((always_inline)) { *at(byte, lane) = value; });
}

}  // namespace

const HammingKernels BITALG_HAMMING = {GROUP, Counting512::PLANES_PER_BYTE, fill, prepare,
    Scan<Counting512>::nearest, Scan<Counting512>::lowest, Scan<Counting512>::near,
    Scan<Counting512>::count, Scan<Counting512>::count_wide, count_rows, Scan<Counting512>::find_wide, grow,
    grow_low, look_up, pack_any};
#endif
