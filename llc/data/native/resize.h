// Resizing of uint8 RGB: area averaging where an axis shrinks, bilinear where it grows, in integers, so that every CPU makes the
// same bytes.
#pragma once
#include <cstdint>
#include <vector>

// How one axis of `in` pixels becomes one of `out`: pixel o is the sum of weights[o * num_taps + t] * in[first[o] + t], in units
// of 1 / 2^14. Weights sum to exactly 2^14; unused taps have weight 0.
struct Taps {
    static constexpr int BITS = 14;
    int32_t num_taps;
    std::vector<int32_t> first;
    std::vector<int16_t> weights;

    void prepare(int32_t in, int32_t out);
};

// Reused from image to image. Not for two threads at once.
class Resizer {
public:
    // `rows`: height rows of width pixels, `stride` bytes apart. Writes out [out_height, out_width, 3], mirrored where `flip`.
    void resize(const uint8_t *rows, int64_t stride, int32_t height, int32_t width, uint8_t *out, int32_t out_height,
                int32_t out_width, bool flip);

private:
    Taps vertical, horizontal;
    std::vector<int16_t> line;
};
