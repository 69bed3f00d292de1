#include "resize.h"

#include <algorithm>

void Taps::prepare(int32_t in, int32_t out) {
    first.resize(out);
    const int64_t one = 1 << BITS;
    if (in <= out) {  // half-pixel centres, as cv2.INTER_LINEAR has them: pixel o lies at ((2 o + 1) in - out) / (2 out)
        num_taps = in == 1 ? 1 : 2;
        weights.assign(static_cast<size_t>(out) * num_taps, 0);
        for (int64_t o = 0; o < out; o++) {
            int64_t position = std::clamp<int64_t>((2 * o + 1) * in - out, 0, 2 * int64_t(out) * (in - 1));
            int64_t pixel = std::min<int64_t>(position / (2 * out), std::max(in - 2, 0));
            int64_t weight = ((position - pixel * 2 * out) * one + out) / (2 * out);
            first[o] = pixel;
            weights[o * num_taps] = one - weight;
            if (num_taps == 2) weights[o * 2 + 1] = weight;
        }
        return;
    }
    // In units of 1 / out of a pixel, output pixel o covers [o in, (o + 1) in) and input pixel i [i out, (i + 1) out).
    num_taps = (in + out - 1) / out + 1;
    weights.assign(static_cast<size_t>(out) * num_taps, 0);
    for (int64_t o = 0; o < out; o++) {
        const int64_t begin = o * in, end = begin + in;
        first[o] = std::min<int64_t>(begin / out, in - num_taps);
        int64_t before = 0;
        for (int t = 0; t < num_taps; t++) {
            // Rounding the sums, not the weights, keeps their total.
            const int64_t covered = std::clamp<int64_t>((first[o] + t + 1) * int64_t(out), begin, end) - begin;
            const int64_t sum = (covered * one * 2 + in) / (2 * in);
            weights[o * num_taps + t] = sum - before;
            before = sum;
        }
    }
}

void Resizer::resize(const uint8_t *rows, int64_t stride, int32_t height, int32_t width, uint8_t *out, int32_t out_height,
                     int32_t out_width, bool flip) {
    vertical.prepare(height, out_height);
    horizontal.prepare(width, out_width);
    line.resize(static_cast<size_t>(width) * 3);
    for (int32_t y = 0; y < out_height; y++) {
        const uint8_t *top = rows + vertical.first[y] * stride;
        for (int32_t x = 0; x < width * 3; x++) {
            int32_t sum = 1 << 6;
            for (int32_t t = 0; t < vertical.num_taps; t++) sum += vertical.weights[y * vertical.num_taps + t] * top[t * stride + x];
            line[x] = sum >> 7;
        }
        for (int32_t x = 0; x < out_width; x++) {
            uint8_t *pixel = out + (int64_t(y) * out_width + (flip ? out_width - 1 - x : x)) * 3;
            for (int c = 0; c < 3; c++) {
                int32_t sum = 1 << 20;
                for (int32_t t = 0; t < horizontal.num_taps; t++)
                    sum += horizontal.weights[x * horizontal.num_taps + t] * line[(horizontal.first[x] + t) * 3 + c];
                pixel[c] = sum >> 21;
            }
        }
    }
}
