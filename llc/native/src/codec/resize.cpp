#include "resize.h"

#include <algorithm>

void Taps::prepare(int32_t in, int32_t out) {
    first.resize(out);
    const int64_t one = 1 << 14;
    // half-pixel centres, as cv2.INTER_LINEAR has them: pixel o lies at ((2 o + 1) in - out) / (2 out)
    if (in <= out) {
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
    // In units of 1 / out of a pixel, output pixel o covers [o in, (o + 1) in) and input pixel i [i out, (i +
    // 1) out).
    num_taps = in % out ? std::min(in, in / out + 2) : in / out;
    weights.assign(static_cast<size_t>(out) * num_taps, 0);
    for (int64_t o = 0; o < out; o++) {
        const int64_t begin = o * in, end = begin + in;
        first[o] = std::min<int64_t>(begin / out, in - num_taps);
        int64_t before = 0;
        for (int t = 0; t < num_taps; t++) {
            // Rounding the sums, not the weights, keeps their total.
            const int64_t covered = std::clamp<int64_t>((first[o] + t + 1) * int64_t(out), begin,
                end) - begin;
            const int64_t sum = (covered * one * 2 + in) / (2 * in);
            weights[o * num_taps + t] = sum - before;
            before = sum;
        }
    }
}

void Resizer::begin(int32_t height, int32_t width, uint8_t *out, int32_t out_height, int32_t out_width,
    bool flip) {
    this->out = out, this->height = height, this->width = width, this->out_height = out_height,
        this->out_width = out_width;
    done = 0;
    vertical.prepare(height, out_height);
    horizontal.prepare(width, out_width);
    const int32_t num_taps = horizontal.num_taps;
    num_pairs = (num_taps + 1) / 2;
    first.resize(out_width);
    weights.resize(size_t(8) * num_pairs * out_width);
    for (int32_t x = 0; x < out_width; x++) {
        const int32_t from = flip ? out_width - 1 - x : x;
        first[x] = horizontal.first[from];
        for (int32_t p = 0; p < num_pairs; p++) {
            int16_t *pair = &weights[8 * (size_t(p) * out_width + x)];
            const int16_t *taps = &horizontal.weights[size_t(from) * num_taps + 2 * p];
            for (int copy = 0; copy < 4; copy++)
                pair[2 * copy] = taps[0], pair[2 * copy + 1] = 2 * p + 1 < num_taps ? taps[1] : 0;
        }
    }
    // An odd number of taps is read as pairs too, and the kernels read two values further.
    line.resize(size_t(3) * (width + 2));
}

void Resizer::advance(const uint8_t *rows, int64_t stride, int32_t end) {
    const int32_t begin = next_row();
    for (; done < out_height && vertical.first[done] + vertical.num_taps <= end; done++) {
        kernels.blend_rows(rows + (vertical.first[done] - begin) * stride, stride,
            &vertical.weights[size_t(done) * vertical.num_taps], vertical.num_taps, 3 * width, line.data());
        kernels.blend_pixels(line.data(), first.data(), weights.data(), num_pairs, out_width, out +
            size_t(3) * done * out_width);
    }
}
