#include "kernels.h"

#if defined(__x86_64__)
#include <cstring>

// GCC 12's own AVX-512 headers, not what is here.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx2,avx512f,avx512bw,avx512vl")))

namespace {

int32_t pair_of(int16_t first, int16_t second) { return static_cast<int32_t>(uint16_t(first) | uint32_t(uint16_t(second)) << 16); }

// ---- rows: bytes of two rows side by side as 16-bit numbers, times their two weights, added up in 32 bits ---------------------------

struct RowSums256 {
    __m256i s0, s1, s2, s3;
};

AVX2 inline void add_rows(RowSums256 &sums, __m256i a, __m256i b, __m256i weights) {
    const __m256i zero = _mm256_setzero_si256();
    const __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b);
    sums.s0 = _mm256_add_epi32(sums.s0, _mm256_madd_epi16(_mm256_unpacklo_epi8(low, zero), weights));
    sums.s1 = _mm256_add_epi32(sums.s1, _mm256_madd_epi16(_mm256_unpackhi_epi8(low, zero), weights));
    sums.s2 = _mm256_add_epi32(sums.s2, _mm256_madd_epi16(_mm256_unpacklo_epi8(high, zero), weights));
    sums.s3 = _mm256_add_epi32(sums.s3, _mm256_madd_epi16(_mm256_unpackhi_epi8(high, zero), weights));
}

AVX2 void blend_rows_avx2(const uint8_t *rows, ptrdiff_t stride, const int16_t *weights, int32_t num_taps, int32_t n, int16_t *line) {
    constexpr int32_t STEP = 32;
    if (n < STEP) return PORTABLE_KERNELS.blend_rows(rows, stride, weights, num_taps, n, line);
    for (int32_t x = 0; x < n; x += STEP) {
        if (x > n - STEP) x = n - STEP;  // the last step does some values again rather than read or write beyond the row
        const __m256i half = _mm256_set1_epi32(1 << 6);
        RowSums256 sums = {half, half, half, half};
        const uint8_t *row = rows + x;
        int32_t t = 0;
        for (; t + 1 < num_taps; t += 2, row += 2 * stride)
            add_rows(sums, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(row)),
                     _mm256_loadu_si256(reinterpret_cast<const __m256i *>(row + stride)), _mm256_set1_epi32(pair_of(weights[t], weights[t + 1])));
        if (t < num_taps)
            add_rows(sums, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(row)), _mm256_setzero_si256(),
                     _mm256_set1_epi32(pair_of(weights[t], 0)));
        const __m256i low = _mm256_packs_epi32(_mm256_srai_epi32(sums.s0, 7), _mm256_srai_epi32(sums.s1, 7));
        const __m256i high = _mm256_packs_epi32(_mm256_srai_epi32(sums.s2, 7), _mm256_srai_epi32(sums.s3, 7));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(line + x), _mm256_permute2x128_si256(low, high, 0x20));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(line + x + 16), _mm256_permute2x128_si256(low, high, 0x31));
    }
}

struct RowSums512 {
    __m512i s0, s1, s2, s3;
};

AVX512 inline void add_rows(RowSums512 &sums, __m512i a, __m512i b, __m512i weights) {
    const __m512i zero = _mm512_setzero_si512();
    const __m512i low = _mm512_unpacklo_epi8(a, b), high = _mm512_unpackhi_epi8(a, b);
    sums.s0 = _mm512_add_epi32(sums.s0, _mm512_madd_epi16(_mm512_unpacklo_epi8(low, zero), weights));
    sums.s1 = _mm512_add_epi32(sums.s1, _mm512_madd_epi16(_mm512_unpackhi_epi8(low, zero), weights));
    sums.s2 = _mm512_add_epi32(sums.s2, _mm512_madd_epi16(_mm512_unpacklo_epi8(high, zero), weights));
    sums.s3 = _mm512_add_epi32(sums.s3, _mm512_madd_epi16(_mm512_unpackhi_epi8(high, zero), weights));
}

AVX512 void blend_rows_avx512(const uint8_t *rows, ptrdiff_t stride, const int16_t *weights, int32_t num_taps, int32_t n, int16_t *line) {
    constexpr int32_t STEP = 64;
    if (n < STEP) return blend_rows_avx2(rows, stride, weights, num_taps, n, line);
    const __m512i first_half = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), second_half = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    for (int32_t x = 0; x < n; x += STEP) {
        if (x > n - STEP) x = n - STEP;
        const __m512i half = _mm512_set1_epi32(1 << 6);
        RowSums512 sums = {half, half, half, half};
        const uint8_t *row = rows + x;
        int32_t t = 0;
        for (; t + 1 < num_taps; t += 2, row += 2 * stride)
            add_rows(sums, _mm512_loadu_si512(row), _mm512_loadu_si512(row + stride), _mm512_set1_epi32(pair_of(weights[t], weights[t + 1])));
        if (t < num_taps) add_rows(sums, _mm512_loadu_si512(row), _mm512_setzero_si512(), _mm512_set1_epi32(pair_of(weights[t], 0)));
        const __m512i low = _mm512_packs_epi32(_mm512_srai_epi32(sums.s0, 7), _mm512_srai_epi32(sums.s1, 7));
        const __m512i high = _mm512_packs_epi32(_mm512_srai_epi32(sums.s2, 7), _mm512_srai_epi32(sums.s3, 7));
        _mm512_storeu_si512(line + x, _mm512_permutex2var_epi64(low, first_half, high));
        _mm512_storeu_si512(line + x + 32, _mm512_permutex2var_epi64(low, second_half, high));
    }
}

// ---- pixels: R0 G0 B0 R1 G1 B1 -> R0 R1 G0 G1 B0 B1, times the two weights, added up; a pixel takes 128 bits ------------------------

AVX2 inline __m128i pair_order() { return _mm_setr_epi8(0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11, -1, -1, -1, -1); }

AVX2 inline const __m128i *pixels_at(const int16_t *line, int32_t pixel) {
    return reinterpret_cast<const __m128i *>(line + 3 * ptrdiff_t(pixel));
}

// The last n % 4 pixels; the weights of pair p of pixel x stay at 8 (p n + x).
void blend_last_pixels(const int16_t *line, const int32_t *first, const int16_t *weights, int32_t num_pairs, int32_t n, int32_t x,
                       uint8_t *out) {
    for (; x < n; x++) {
        for (int c = 0; c < 3; c++) {
            const int16_t *value = line + 3 * first[x] + c;
            int32_t sum = 1 << 20;
            for (int32_t p = 0; p < num_pairs; p++) {
                const int16_t *pair = weights + 8 * (ptrdiff_t(p) * n + x);
                sum += pair[0] * value[6 * p] + pair[1] * value[6 * p + 3];
            }
            out[3 * x + c] = sum >> 21;
        }
    }
}

// Four pixels as 16 32-bit numbers, every fourth of them 0, to 12 bytes.
AVX2 inline void store_pixels(__m256i first_two, __m256i last_two, uint8_t *out) {
    const __m256i words = _mm256_packs_epi32(_mm256_srai_epi32(first_two, 21), _mm256_srai_epi32(last_two, 21));  // 0 2 | 1 3
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));      // 0 2 1 3
    const __m128i rgb = _mm_shuffle_epi8(bytes, _mm_setr_epi8(0, 1, 2, 8, 9, 10, 4, 5, 6, 12, 13, 14, -1, -1, -1, -1));
    _mm_storel_epi64(reinterpret_cast<__m128i *>(out), rgb);
    const int32_t rest = _mm_extract_epi32(rgb, 2);
    memcpy(out + 8, &rest, 4);
}

AVX2 void blend_pixels_avx2(const int16_t *line, const int32_t *first, const int16_t *weights, int32_t num_pairs, int32_t n,
                            uint8_t *out) {
    const __m256i order = _mm256_broadcastsi128_si256(pair_order());
    int32_t x = 0;
    for (; x + 4 <= n; x += 4) {
        __m256i sums[2] = {_mm256_set1_epi32(1 << 20), _mm256_set1_epi32(1 << 20)};
        for (int32_t p = 0; p < num_pairs; p++) {
            const __m256i *pairs = reinterpret_cast<const __m256i *>(weights + 8 * (ptrdiff_t(p) * n + x));
            for (int i = 0; i < 2; i++) {
                const __m128i a = _mm_loadu_si128(pixels_at(line, first[x + 2 * i] + 2 * p));
                const __m128i b = _mm_loadu_si128(pixels_at(line, first[x + 2 * i + 1] + 2 * p));
                const __m256i both = _mm256_shuffle_epi8(_mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1), order);
                sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(both, _mm256_loadu_si256(pairs + i)));
            }
        }
        store_pixels(sums[0], sums[1], out + 3 * x);
    }
    blend_last_pixels(line, first, weights, num_pairs, n, x, out);
}

AVX512 void blend_pixels_avx512(const int16_t *line, const int32_t *first, const int16_t *weights, int32_t num_pairs, int32_t n,
                                uint8_t *out) {
    const __m512i order = _mm512_broadcast_i32x4(pair_order());
    int32_t x = 0;
    for (; x + 4 <= n; x += 4) {
        __m512i sums = _mm512_set1_epi32(1 << 20);
        for (int32_t p = 0; p < num_pairs; p++) {
            __m512i four = _mm512_castsi128_si512(_mm_loadu_si128(pixels_at(line, first[x] + 2 * p)));
            four = _mm512_inserti32x4(four, _mm_loadu_si128(pixels_at(line, first[x + 1] + 2 * p)), 1);
            four = _mm512_inserti32x4(four, _mm_loadu_si128(pixels_at(line, first[x + 2] + 2 * p)), 2);
            four = _mm512_inserti32x4(four, _mm_loadu_si128(pixels_at(line, first[x + 3] + 2 * p)), 3);
            const __m512i pairs = _mm512_loadu_si512(weights + 8 * (ptrdiff_t(p) * n + x));
            sums = _mm512_add_epi32(sums, _mm512_madd_epi16(_mm512_shuffle_epi8(four, order), pairs));
        }
        store_pixels(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64(sums, 1), out + 3 * x);
    }
    blend_last_pixels(line, first, weights, num_pairs, n, x, out);
}

}  // namespace

const Kernels AVX2_KERNELS = {"AVX2", blend_rows_avx2, blend_pixels_avx2};
const Kernels AVX512_KERNELS = {"AVX-512", blend_rows_avx512, blend_pixels_avx512};
#endif
