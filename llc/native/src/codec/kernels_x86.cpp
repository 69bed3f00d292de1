#include "kernels.h"

#if defined(__x86_64__)
#include <cstring>

// These warnings come from GCC 12's own AVX-512 headers, not from this code.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx2,avx512f,avx512bw,avx512vl")))

namespace {

int32_t pair_of(int16_t first, int16_t second) {
    return static_cast<int32_t>(uint16_t(first) | uint32_t(uint16_t(second)) << 16);
}

// ---- rows: bytes of two rows, interleaved as 16-bit numbers, times their weights, added up in 32 bits ----

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

AVX2 void blend_rows_avx2(const uint8_t *rows, ptrdiff_t stride, const int16_t *weights, int32_t num_taps,
    int32_t n, int16_t *line) {
    constexpr int32_t STEP = 32;
    if (n < STEP) return PORTABLE_CODEC.blend_rows(rows, stride, weights, num_taps, n, line);
    for (int32_t x = 0; x < n; x += STEP) {
        // the last step repeats some values, so as not to read or write beyond the row
        if (x > n - STEP) x = n - STEP;
        const __m256i half = _mm256_set1_epi32(1 << 6);
        RowSums256 sums = {half, half, half, half};
        const uint8_t *row = rows + x;
        int32_t t = 0;
        for (; t + 1 < num_taps; t += 2, row += 2 * stride)
            add_rows(sums, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(row)),
                     _mm256_loadu_si256(reinterpret_cast<const __m256i *>(row + stride)),
                         _mm256_set1_epi32(pair_of(weights[t], weights[t + 1])));
        if (t < num_taps)
            add_rows(sums, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(row)), _mm256_setzero_si256(),
                     _mm256_set1_epi32(pair_of(weights[t], 0)));
        const __m256i low = _mm256_packs_epi32(_mm256_srai_epi32(sums.s0, 7), _mm256_srai_epi32(sums.s1, 7));
        const __m256i high = _mm256_packs_epi32(_mm256_srai_epi32(sums.s2, 7), _mm256_srai_epi32(sums.s3, 7));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(line + x),
            _mm256_permute2x128_si256(low, high, 0x20));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(line + x + 16),
            _mm256_permute2x128_si256(low, high, 0x31));
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

AVX512 void blend_rows_avx512(const uint8_t *rows, ptrdiff_t stride, const int16_t *weights, int32_t num_taps,
    int32_t n, int16_t *line) {
    constexpr int32_t STEP = 64;
    if (n < STEP) return blend_rows_avx2(rows, stride, weights, num_taps, n, line);
    const __m512i first_half = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), second_half =
        _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    for (int32_t x = 0; x < n; x += STEP) {
        if (x > n - STEP) x = n - STEP;
        const __m512i half = _mm512_set1_epi32(1 << 6);
        RowSums512 sums = {half, half, half, half};
        const uint8_t *row = rows + x;
        int32_t t = 0;
        for (; t + 1 < num_taps; t += 2, row += 2 * stride)
            add_rows(sums, _mm512_loadu_si512(row), _mm512_loadu_si512(row + stride),
                _mm512_set1_epi32(pair_of(weights[t], weights[t + 1])));
        if (t < num_taps)
            add_rows(sums, _mm512_loadu_si512(row), _mm512_setzero_si512(),
                _mm512_set1_epi32(pair_of(weights[t], 0)));
        const __m512i low = _mm512_packs_epi32(_mm512_srai_epi32(sums.s0, 7), _mm512_srai_epi32(sums.s1, 7));
        const __m512i high = _mm512_packs_epi32(_mm512_srai_epi32(sums.s2, 7), _mm512_srai_epi32(sums.s3, 7));
        _mm512_storeu_si512(line + x, _mm512_permutex2var_epi64(low, first_half, high));
        _mm512_storeu_si512(line + x + 32, _mm512_permutex2var_epi64(low, second_half, high));
    }
}

// ---- pixels: R0 G0 B0 R1 G1 B1 -> R0 R1 G0 G1 B0 B1, times two weights, added up; 128 bits per pixel ----

AVX2 inline __m128i pair_order() {
    return _mm_setr_epi8(0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11, -1, -1, -1, -1);
}

AVX2 inline const __m128i *pixels_at(const int16_t *line, int32_t pixel) {
    return reinterpret_cast<const __m128i *>(line + 3 * ptrdiff_t(pixel));
}

// Four pixels as 16 32-bit numbers, every fourth of them 0, to 12 bytes.
AVX2 inline void store_pixels(__m256i first_two, __m256i last_two, uint8_t *out) {
    // 0 2 | 1 3
    const __m256i words = _mm256_packs_epi32(_mm256_srai_epi32(first_two, 21),
        _mm256_srai_epi32(last_two, 21));
    // 0 2 1 3
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    const __m128i rgb = _mm_shuffle_epi8(bytes,
        _mm_setr_epi8(0, 1, 2, 8, 9, 10, 4, 5, 6, 12, 13, 14, -1, -1, -1, -1));
    _mm_storel_epi64(reinterpret_cast<__m128i *>(out), rgb);
    const int32_t rest = _mm_extract_epi32(rgb, 2);
    memcpy(out + 8, &rest, 4);
}

AVX2 void blend_pixels_avx2(const int16_t *line, const int32_t *first, const int16_t *weights,
    int32_t num_pairs, int32_t n, uint8_t *out) {
    const __m256i order = _mm256_broadcastsi128_si256(pair_order());
    int32_t x = 0;
    for (; x + 4 <= n; x += 4) {
        __m256i sums[2] = {_mm256_set1_epi32(1 << 20), _mm256_set1_epi32(1 << 20)};
        for (int32_t p = 0; p < num_pairs; p++) {
            const __m256i *pairs = reinterpret_cast<const __m256i *>(weights + 8 * (ptrdiff_t(p) * n + x));
            for (int i = 0; i < 2; i++) {
                const __m128i a = _mm_loadu_si128(pixels_at(line, first[x + 2 * i] + 2 * p));
                const __m128i b = _mm_loadu_si128(pixels_at(line, first[x + 2 * i + 1] + 2 * p));
                const __m256i both =
                    _mm256_shuffle_epi8(_mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1), order);
                sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(both, _mm256_loadu_si256(pairs + i)));
            }
        }
        store_pixels(sums[0], sums[1], out + 3 * x);
    }
    blend_last_pixels(line, first, weights, num_pairs, n, x, out);
}

AVX512 void blend_pixels_avx512(const int16_t *line, const int32_t *first, const int16_t *weights,
    int32_t num_pairs, int32_t n, uint8_t *out) {
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

// ---- inverse DCT: jidctint.c's arithmetic (Loeffler, Ligtenberg, Moschytz 1989); 128 bits per block -------

constexpr int FIX_0_298631336 = 2446, FIX_0_390180644 = 3196, FIX_0_541196100 = 4433, FIX_0_765366865 = 6270,
    FIX_0_899976223 = 7373, FIX_1_175875602 = 9633, FIX_1_501321110 = 12299, FIX_1_847759065 = 15137,
    FIX_1_961570560 = 16069, FIX_2_053119869 = 16819, FIX_2_562915447 = 20995, FIX_3_072711026 =
    25172;  // x 2^13

AVX2 inline __m256i pair(int first, int second) { return _mm256_set1_epi32(pair_of(first, second)); }

// 32-bit sums of the low and the high half.
struct Wide {
    __m256i low, high;
};

AVX2 inline Wide operator+(Wide a, Wide b) {
    return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
AVX2 inline Wide operator-(Wide a, Wide b) {
    return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
}

// a * first + b * second
AVX2 inline Wide multiply(__m256i a, __m256i b, int first, int second) {
    return {_mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), pair(first, second)),
            _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), pair(first, second))};
}

// a * 2^13
AVX2 inline Wide widen(__m256i a) {
    const __m256i zero = _mm256_setzero_si256();
    return {_mm256_srai_epi32(_mm256_unpacklo_epi16(zero, a), 3),
        _mm256_srai_epi32(_mm256_unpackhi_epi16(zero, a), 3)};
}

template <int SHIFT>
AVX2 inline __m256i descale(Wide a) {
    const __m256i half = _mm256_set1_epi32(1 << (SHIFT - 1));
    return _mm256_packs_epi32(_mm256_srai_epi32(_mm256_add_epi32(a.low, half), SHIFT),
                              _mm256_srai_epi32(_mm256_add_epi32(a.high, half), SHIFT));
}

// One-dimensional, over the eight vectors.
template <int SHIFT>
AVX2 inline void transform_vectors(__m256i *x) {
    const Wide even2 = multiply(x[2], x[6], FIX_0_541196100, FIX_0_541196100 - FIX_1_847759065);
    const Wide even3 = multiply(x[2], x[6], FIX_0_541196100 + FIX_0_765366865, FIX_0_541196100);
    const Wide even0 = widen(_mm256_add_epi16(x[0], x[4])), even1 = widen(_mm256_sub_epi16(x[0], x[4]));
    const Wide sum0 = even0 + even3, sum3 = even0 - even3, sum1 = even1 + even2, sum2 = even1 - even2;

    const __m256i z3 = _mm256_add_epi16(x[7], x[3]), z4 = _mm256_add_epi16(x[5], x[1]);
    const Wide wide3 = multiply(z3, z4, FIX_1_175875602 - FIX_1_961570560, FIX_1_175875602);
    const Wide wide4 = multiply(z3, z4, FIX_1_175875602, FIX_1_175875602 - FIX_0_390180644);
    const Wide odd0 = multiply(x[7], x[1], FIX_0_298631336 - FIX_0_899976223, -FIX_0_899976223) + wide3;
    const Wide odd1 = multiply(x[5], x[3], FIX_2_053119869 - FIX_2_562915447, -FIX_2_562915447) + wide4;
    const Wide odd2 = multiply(x[5], x[3], -FIX_2_562915447, FIX_3_072711026 - FIX_2_562915447) + wide3;
    const Wide odd3 = multiply(x[7], x[1], -FIX_0_899976223, FIX_1_501321110 - FIX_0_899976223) + wide4;

    x[0] = descale<SHIFT>(sum0 + odd3), x[7] = descale<SHIFT>(sum0 - odd3);
    x[1] = descale<SHIFT>(sum1 + odd2), x[6] = descale<SHIFT>(sum1 - odd2);
    x[2] = descale<SHIFT>(sum2 + odd1), x[5] = descale<SHIFT>(sum2 - odd1);
    x[3] = descale<SHIFT>(sum3 + odd0), x[4] = descale<SHIFT>(sum3 - odd0);
}

AVX2 inline void transpose(__m256i *x) {
    __m256i a[8], b[8];
    for (int i = 0; i < 4; i++)
        a[2 * i] = _mm256_unpacklo_epi16(x[2 * i], x[2 * i + 1]), a[2 * i + 1] =
            _mm256_unpackhi_epi16(x[2 * i], x[2 * i + 1]);
    for (int i = 0; i < 2; i++) {  // rows 4 i to 4 i + 3, two columns each
        b[4 * i] = _mm256_unpacklo_epi32(a[4 * i], a[4 * i + 2]), b[4 * i + 1] =
            _mm256_unpackhi_epi32(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm256_unpacklo_epi32(a[4 * i + 1], a[4 * i + 3]), b[4 * i + 3] =
            _mm256_unpackhi_epi32(a[4 * i + 1], a[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++)
        x[2 * i] = _mm256_unpacklo_epi64(b[i], b[4 + i]), x[2 * i + 1] =
            _mm256_unpackhi_epi64(b[i], b[4 + i]);
}

AVX2 void transform_two(const int16_t *blocks, uint8_t *out, ptrdiff_t stride) {
    __m256i x[8];
    for (int i = 0; i < 8; i++) {
        const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i *>(blocks + 8 * i));
        const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i *>(blocks + 64 + 8 * i));
        x[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1);
    }
    transform_vectors<11>(x);  // leaves 2 bits for the second pass
    transpose(x);
    transform_vectors<18>(x);
    transpose(x);
    const __m256i centre = _mm256_set1_epi8(-128);
    for (int i = 0; i < 8; i += 2) {
        // a: rows i, i + 1 | b: the same rows
        const __m256i two = _mm256_xor_si256(_mm256_packs_epi16(x[i], x[i + 1]), centre);
        const __m256i rows = _mm256_permute4x64_epi64(two, 0xd8);
        _mm_storeu_si128(reinterpret_cast<__m128i *>(out + i * stride), _mm256_castsi256_si128(rows));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(out + (i + 1) * stride),
            _mm256_extracti128_si256(rows, 1));
    }
}

// ---- upsampling and colours -------------------------------------------------------------------------------

AVX2 inline __m256i load_words(const uint8_t *bytes) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(bytes)));
}

AVX2 inline __m256i times_3(__m256i a) { return _mm256_add_epi16(a, _mm256_add_epi16(a, a)); }

AVX2 void upsample_h2v1(const uint8_t *in, int32_t n, uint8_t *out) {
    for (int32_t i = 0; i < n; i += 16) {
        const __m256i here = times_3(load_words(in + i));
        const __m256i even =
            _mm256_srli_epi16(_mm256_add_epi16(_mm256_add_epi16(here, load_words(in + i - 1)),
            _mm256_set1_epi16(1)), 2);
        const __m256i odd =
            _mm256_srli_epi16(_mm256_add_epi16(_mm256_add_epi16(here, load_words(in + i + 1)),
            _mm256_set1_epi16(2)), 2);
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(out + 2 * i),
            _mm256_or_si256(even, _mm256_slli_epi16(odd, 8)));
    }
}

AVX2 void upsample_h2v2(const uint8_t *near, const uint8_t *far, int32_t n, uint8_t *out) {
    for (int32_t i = 0; i < n; i += 16) {
        const __m256i left = _mm256_add_epi16(times_3(load_words(near + i - 1)), load_words(far + i - 1));
        const __m256i here = times_3(_mm256_add_epi16(times_3(load_words(near + i)), load_words(far + i)));
        const __m256i right = _mm256_add_epi16(times_3(load_words(near + i + 1)), load_words(far + i + 1));
        const __m256i even =
            _mm256_srli_epi16(_mm256_add_epi16(_mm256_add_epi16(here, left), _mm256_set1_epi16(8)), 4);
        const __m256i odd =
            _mm256_srli_epi16(_mm256_add_epi16(_mm256_add_epi16(here, right), _mm256_set1_epi16(7)), 4);
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(out + 2 * i),
            _mm256_or_si256(even, _mm256_slli_epi16(odd, 8)));
    }
}

// floor(a / 2 + 1 / 2)
AVX2 inline __m256i halve(__m256i a) {
    return _mm256_srai_epi16(_mm256_add_epi16(a, _mm256_set1_epi16(1)), 1);
}

// Sixteen pixels to 48 bytes.
AVX2 inline void store_rgb(__m128i r, __m128i g, __m128i b, uint8_t *out) {
    const __m128i r0 = _mm_setr_epi8(0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1, -1, 4, -1, -1, 5);
    const __m128i g0 = _mm_setr_epi8(-1, 0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1, -1, 4, -1, -1);
    const __m128i b0 = _mm_setr_epi8(-1, -1, 0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1, -1, 4, -1);
    const __m128i r1 = _mm_setr_epi8(-1, -1, 6, -1, -1, 7, -1, -1, 8, -1, -1, 9, -1, -1, 10, -1);
    const __m128i g1 = _mm_setr_epi8(5, -1, -1, 6, -1, -1, 7, -1, -1, 8, -1, -1, 9, -1, -1, 10);
    const __m128i b1 = _mm_setr_epi8(-1, 5, -1, -1, 6, -1, -1, 7, -1, -1, 8, -1, -1, 9, -1, -1);
    const __m128i r2 = _mm_setr_epi8(-1, 11, -1, -1, 12, -1, -1, 13, -1, -1, 14, -1, -1, 15, -1, -1);
    const __m128i g2 = _mm_setr_epi8(-1, -1, 11, -1, -1, 12, -1, -1, 13, -1, -1, 14, -1, -1, 15, -1);
    const __m128i b2 = _mm_setr_epi8(10, -1, -1, 11, -1, -1, 12, -1, -1, 13, -1, -1, 14, -1, -1, 15);
    __m128i *to = reinterpret_cast<__m128i *>(out);
    _mm_storeu_si128(to, _mm_or_si128(_mm_or_si128(_mm_shuffle_epi8(r, r0), _mm_shuffle_epi8(g, g0)),
        _mm_shuffle_epi8(b, b0)));
    _mm_storeu_si128(to + 1, _mm_or_si128(_mm_or_si128(_mm_shuffle_epi8(r, r1), _mm_shuffle_epi8(g, g1)),
        _mm_shuffle_epi8(b, b1)));
    _mm_storeu_si128(to + 2, _mm_or_si128(_mm_or_si128(_mm_shuffle_epi8(r, r2), _mm_shuffle_epi8(g, g2)),
        _mm_shuffle_epi8(b, b2)));
}

AVX2 inline __m128i to_bytes(__m256i words) {
    return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

// In units of 2^-16, as jdcolor.c: R = Y + 91881 Cr, B = Y + 116130 Cb, G = Y - 22554 Cb - 46802 Cr, each
// product sum rounded; the whole multiples of 2^16 are taken out so that the rest fits 16 bits.
AVX2 void ycc_to_rgb(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, int32_t n, uint8_t *out) {
    const __m256i centre = _mm256_set1_epi16(128), half = _mm256_set1_epi32(1 << 15), green =
        pair(-22554, 65536 - 46802);
    for (int32_t i = 0; i < n; i += 16) {
        const __m256i luma = load_words(y + i);
        const __m256i blue = _mm256_sub_epi16(load_words(cb + i), centre), red =
            _mm256_sub_epi16(load_words(cr + i), centre);
        const __m256i red2 = _mm256_add_epi16(red, red), blue2 = _mm256_add_epi16(blue, blue);
        const __m256i r = _mm256_add_epi16(_mm256_add_epi16(luma, red),
            halve(_mm256_mulhi_epi16(red2, _mm256_set1_epi16(91881 - 65536))));
        const __m256i b = _mm256_add_epi16(_mm256_add_epi16(luma, blue2),
            halve(_mm256_mulhi_epi16(blue2, _mm256_set1_epi16(116130 - 131072))));
        const __m256i low = _mm256_madd_epi16(_mm256_unpacklo_epi16(blue, red), green);
        const __m256i high = _mm256_madd_epi16(_mm256_unpackhi_epi16(blue, red), green);
        const __m256i change = _mm256_packs_epi32(_mm256_srai_epi32(_mm256_add_epi32(low, half), 16),
                                                  _mm256_srai_epi32(_mm256_add_epi32(high, half), 16));
        const __m256i g = _mm256_add_epi16(_mm256_sub_epi16(luma, red), change);
        store_rgb(to_bytes(r), to_bytes(g), to_bytes(b), out + 3 * i);
    }
}

AVX2 void grey_to_rgb(const uint8_t *y, int32_t n, uint8_t *out) {
    for (int32_t i = 0; i < n; i += 16) {
        const __m128i grey = _mm_loadu_si128(reinterpret_cast<const __m128i *>(y + i));
        store_rgb(grey, grey, grey, out + 3 * i);
    }
}

}  // namespace

const CodecKernels AVX2_CODEC = {blend_rows_avx2, blend_pixels_avx2, transform_two, upsample_h2v1,
    upsample_h2v2, ycc_to_rgb, grey_to_rgb};
const CodecKernels AVX512_CODEC = {blend_rows_avx512, blend_pixels_avx512, transform_two,
    upsample_h2v1, upsample_h2v2, ycc_to_rgb, grey_to_rgb};
#endif
