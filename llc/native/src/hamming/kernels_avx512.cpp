#if defined(__x86_64__)
#include <cstdint>
#include <cstring>

// These warnings come from GCC 12's own AVX-512 headers, not from this code.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "kernels.h"

#pragma GCC target("avx512f,avx512bw,avx512vl,avx2,popcnt,bmi,bmi2")
#include "nibbles.h"
#include "vector512.h"

namespace {

// For CPUs without AVX-512 BITALG.
struct Lookup512 : Vector512 {
    static constexpr int32_t PLANES_PER_BYTE = 2;

    static LLC_INLINE Bytes prepare(uint8_t prepared) {
        return _mm512_broadcast_i32x4(differing_of_nibble(prepared));
    }
    static LLC_INLINE Bytes differing(Bytes of_query, const uint8_t *plane) {
        return _mm512_shuffle_epi8(of_query, load(plane));
    }
};

}  // namespace

const HammingKernels AVX512_HAMMING = {Scan<Lookup512>::GROUP, Lookup512::PLANES_PER_BYTE,
    fill_nibbles<Scan<Lookup512>::GROUP>, prepare_nibbles, Scan<Lookup512>::nearest, Scan<Lookup512>::lowest,
    Scan<Lookup512>::near, Scan<Lookup512>::count, Scan<Lookup512>::count_wide, count_rows,
    Scan<Lookup512>::find_wide, grow, grow_low, look_up, pack_any};
#endif
