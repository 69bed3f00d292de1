#include "kernels.h"

void blend_last_pixels(const int16_t *line, const int32_t *first, const int16_t *weights, int32_t num_pairs,
    int32_t n, int32_t x, uint8_t *out) {
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

namespace {

void blend_rows(const uint8_t *rows, ptrdiff_t stride, const int16_t *weights, int32_t num_taps, int32_t n,
    int16_t *line) {
    // few enough for the sums to stay in registers; compilers vectorise the inner loops
    constexpr int32_t STEP = 64;
    int32_t sums[STEP];
    for (int32_t x = 0; x < n; x += STEP) {
        const int32_t count = n - x < STEP ? n - x : STEP;
        for (int32_t i = 0; i < count; i++) sums[i] = 1 << 6;
        for (int32_t t = 0; t < num_taps; t++)
            for (int32_t i = 0; i < count; i++) sums[i] += weights[t] * rows[t * stride + x + i];
        for (int32_t i = 0; i < count; i++) line[x + i] = sums[i] >> 7;
    }
}

void blend_pixels(const int16_t *line, const int32_t *first, const int16_t *weights, int32_t num_pairs,
    int32_t n, uint8_t *out) {
    blend_last_pixels(line, first, weights, num_pairs, n, 0, out);
}

}  // namespace

const CodecKernels PORTABLE_CODEC = {blend_rows, blend_pixels, nullptr, nullptr, nullptr, nullptr, nullptr};
