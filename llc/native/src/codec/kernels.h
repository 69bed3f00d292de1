// The inner loops, of which each kind of CPU has a version. All versions give the same results.
#pragma once
#include <cstddef>
#include <cstdint>

struct CodecKernels {
    // line[x] = sum over t < num_taps of weights[t] * rows[t * stride + x], weights in units of 2^-14, line
    // in units of 2^-7; n values.
    void (*blend_rows)(const uint8_t *rows, ptrdiff_t stride, const int16_t *weights, int32_t num_taps,
        int32_t n, int16_t *line);

    // n pixels: pixel x of out is the sum over p < num_pairs of the pixels first[x] + 2 p and first[x] + 2 p
    // + 1 of `line`, with the two weights at weights[8 (p n + x)], which are repeated there four times. Reads
    // up to two values beyond the last pixel.
    void (*blend_pixels)(const int16_t *line, const int32_t *first, const int16_t *weights, int32_t num_pairs,
        int32_t n, uint8_t *out);

    // The functions below are for BaselineDecoder. They are null where libjpeg's own code is faster.

    // libjpeg's accurate inverse DCT of two blocks of 64 dequantised coefficients, to 8 rows of 16 samples.
    void (*transform_two)(const int16_t *blocks, uint8_t *out, ptrdiff_t stride);

    // libjpeg's smooth upsampling of n samples to 2 n, whose neighbours on both sides are at in[-1] and
    // in[n]; h2v2: in the row `near`, whose neighbour is the row `far`. Reads and writes up to 32 samples
    // beyond.
    void (*upsample_h2v1)(const uint8_t *in, int32_t n, uint8_t *out);
    void (*upsample_h2v2)(const uint8_t *near, const uint8_t *far, int32_t n, uint8_t *out);

    // libjpeg's colour conversion of n pixels. Reads up to 16 samples and writes up to 64 bytes beyond.
    void (*ycc_to_rgb)(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, int32_t n, uint8_t *out);
    void (*grey_to_rgb)(const uint8_t *y, int32_t n, uint8_t *out);
};

// PORTABLE_CODEC.blend_pixels from pixel x on.
void blend_last_pixels(const int16_t *line, const int32_t *first, const int16_t *weights, int32_t num_pairs,
    int32_t n, int32_t x, uint8_t *out);

extern const CodecKernels PORTABLE_CODEC;
#if defined(__x86_64__)
extern const CodecKernels AVX2_CODEC, AVX512_CODEC;
#endif
