#if defined(__aarch64__)
#include <arm_neon.h>

#include "kernels.h"
#include "scan.h"

namespace {

// Three instructions for a byte of 16 codes: eor, cnt, uqadd.
struct Counting128 {
    using Bytes = uint8x16_t;
    using Words = uint16x8_t;
    static constexpr int32_t SIZE = 16, PLANES_PER_BYTE = 1;

    static LLC_INLINE Bytes all(int byte) { return vdupq_n_u8(uint8_t(byte)); }
    static LLC_INLINE void store(uint8_t *to, Bytes bytes) { vst1q_u8(to, bytes); }
    static LLC_INLINE Bytes prepare(uint8_t prepared) { return all(prepared); }
    static LLC_INLINE Bytes differing(Bytes of_query, const uint8_t *plane) {
        return vcntq_u8(veorq_u8(vld1q_u8(plane), of_query));
    }
    static LLC_INLINE Bytes add(Bytes a, Bytes b) { return vqaddq_u8(a, b); }
    static LLC_INLINE Bytes lower(Bytes a, Bytes b) { return vminq_u8(a, b); }
    static LLC_INLINE Bytes where_lower(Bytes a, Bytes b, Bytes then, Bytes otherwise) {
        return vbslq_u8(vcltq_u8(a, b), then, otherwise);
    }
    static LLC_INLINE Bytes where_equal(Bytes a, Bytes b, Bytes then, Bytes otherwise) {
        return vbslq_u8(vceqq_u8(a, b), then, otherwise);
    }
    static LLC_INLINE uint64_t equal(Bytes a, Bytes b) { return mask(vceqq_u8(a, b)); }
    static LLC_INLINE uint64_t up_to(Bytes bytes, Bytes limits) { return mask(vcleq_u8(bytes, limits)); }
    static LLC_INLINE uint8_t lowest(Bytes bytes) { return vminvq_u8(bytes); }

    static LLC_INLINE Words all_words(int word) { return vdupq_n_u16(uint16_t(word)); }
    static LLC_INLINE void add_widened(Bytes bytes, Words &low, Words &high) {
        low = vaddw_u8(low, vget_low_u8(bytes));
        high = vaddw_u8(high, vget_high_u8(bytes));
    }
    static LLC_INLINE void store_words(uint16_t *to, Words words) { vst1q_u16(to, words); }
    static LLC_INLINE Words lower_words(Words a, Words b) { return vminq_u16(a, b); }
    static LLC_INLINE uint16_t lowest_word(Words words) { return vminvq_u16(words); }
    static LLC_INLINE uint64_t words_up_to(const uint16_t *distances, uint32_t limit) {
        const Words limits = all_words(limit);
        uint64_t found = 0;
        for (int i = 0; i < 64; i += 16) {
            const uint8x8_t low = vmovn_u16(vcleq_u16(vld1q_u16(distances + i), limits));
            const uint8x8_t high = vmovn_u16(vcleq_u16(vld1q_u16(distances + i + 8), limits));
            found |= mask(vcombine_u8(low, high)) << i;
        }
        return found;
    }

private:
    // Bit i: whether byte i is 255; the others are 0.
    static LLC_INLINE uint64_t mask(Bytes bytes) {
        const uint8_t bits[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
        const Bytes set = vandq_u8(bytes, vld1q_u8(bits));
        return vaddv_u8(vget_low_u8(set)) | uint64_t(vaddv_u8(vget_high_u8(set))) << 8;
    }
};

using Neon = Scan<Counting128>;
static_assert(Neon::GROUP == PORTABLE_GROUP);  // it shares `fill`

}  // namespace

// Compilers vectorise the other portable kernels.
const HammingKernels NEON_HAMMING = {Neon::GROUP, Counting128::PLANES_PER_BYTE, PORTABLE_HAMMING.fill,
    PORTABLE_HAMMING.prepare, Neon::nearest, Neon::lowest, Neon::near, Neon::count, Neon::count_wide,
    PORTABLE_HAMMING.count_rows, Neon::find_wide, PORTABLE_HAMMING.grow, PORTABLE_HAMMING.grow_low,
    PORTABLE_HAMMING.look_up, PORTABLE_HAMMING.pack};
#endif
