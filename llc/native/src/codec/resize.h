// Resizing of uint8 RGB: area averaging where an axis shrinks, bilinear where it grows, in integers, so that
// every CPU gives the same bytes. Rows come first: they are added up as bytes, 32 or 64 at a time, which
// leaves fewer pixels for the slower pass.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels.h"

// How an axis of `in` pixels becomes one of `out`: pixel o is the sum over t < num_taps of weights[o *
// num_taps + t] / 2^14 times pixel first[o] + t. A pixel's weights sum to exactly 2^14.
struct Taps {
    int32_t num_taps;
    std::vector<int32_t> first;
    std::vector<int16_t> weights;

    void prepare(int32_t in, int32_t out);
};

// Resizes one image at a time, row by row as its rows arrive. Reused from image to image; not for two threads
// at once.
class Resizer {
public:
    explicit Resizer(const CodecKernels &kernels) : kernels(kernels) {}

    // From height x width to out [out_height, out_width, 3], mirrored where `flip`.
    void begin(int32_t height, int32_t width, uint8_t *out, int32_t out_height, int32_t out_width, bool flip);

    // The same image again, from its first row.
    void restart() { done = 0; }

    int32_t in_width() const { return width; }

    // The first row that is still needed.
    int32_t next_row() const { return done < out_height ? vertical.first[done] : height; }

    // Takes rows [next_row(), end), `stride` bytes apart, the first of them at `rows`. Writes the output rows
    // that they complete.
    void advance(const uint8_t *rows, int64_t stride, int32_t end);

private:
    const CodecKernels &kernels;
    Taps vertical, horizontal;
    std::vector<int32_t> first;    // horizontal.first and weights, as Kernels::blend_pixels wants them
    std::vector<int16_t> weights;
    std::vector<int16_t> line;
    uint8_t *out;
    int32_t height, width, out_height, out_width, num_pairs, done;
};
