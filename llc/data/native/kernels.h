// The inner loops that have a version for each kind of CPU, all of the same results; chosen once, when the library is loaded.
#pragma once
#include <cstddef>
#include <cstdint>

struct Kernels {
    const char *name;

    // line[x] = sum over t < num_taps of weights[t] * rows[t * stride + x], weights in units of 2^-14, line in units of 2^-7; n values.
    void (*blend_rows)(const uint8_t *rows, ptrdiff_t stride, const int16_t *weights, int32_t num_taps, int32_t n, int16_t *line);

    // n pixels: pixel x of out is the sum over p < num_pairs of the pixels first[x] + 2 p and first[x] + 2 p + 1 of `line`, with the
    // two weights at weights[8 (p n + x)], which stand there four times. Reads up to two values beyond the last pixel.
    void (*blend_pixels)(const int16_t *line, const int32_t *first, const int16_t *weights, int32_t num_pairs, int32_t n, uint8_t *out);
};

extern const Kernels PORTABLE_KERNELS;
#if defined(__x86_64__)
extern const Kernels AVX2_KERNELS, AVX512_KERNELS;
#endif

// The fastest ones that this CPU can run.
const Kernels &best_kernels();
