#include <atomic>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "jpeg.h"
#include "native.h"
#include "resize.h"

namespace {

constexpr uint8_t JPG = 0, RAW = 1;  // beton.py

struct Batch {
    int64_t n;
    const uint8_t *const *data;
    const int64_t *sizes;
    const uint8_t *modes;
    const int32_t *widths, *heights, *crops;
    const uint8_t *flips;
    uint8_t *out;
    int32_t out_height, out_width;
    int32_t *status;
    std::atomic<int64_t> next{0};
};

// What one thread needs, reused from sample to sample.
struct Scratch {
    JpegDecoder jpeg;
    Resizer resizer;
    std::vector<uint8_t> rows;
};

Status decode_sample(const Batch &batch, int64_t i, Scratch &scratch, uint8_t *out) {
    const int32_t width = batch.widths[i], height = batch.heights[i];
    const Region crop = {batch.crops[4 * i], batch.crops[4 * i + 1], batch.crops[4 * i + 2], batch.crops[4 * i + 3]};
    if (crop.top < 0 || crop.left < 0 || crop.height < 1 || crop.width < 1 || crop.top > height - crop.height ||
        crop.left > width - crop.width)
        return LLC_WRONG_CROP;
    const uint8_t *rows;
    int64_t stride;
    if (batch.modes[i] == RAW && batch.sizes[i] == int64_t(width) * height * 3) {
        stride = int64_t(width) * 3;
        rows = batch.data[i] + crop.top * stride + crop.left * 3;
    } else if (batch.modes[i] == JPG) {
        Status status = scratch.jpeg.open(batch.data[i], batch.sizes[i]);
        if (status != LLC_OK) return status;
        if (scratch.jpeg.width() != width || scratch.jpeg.height() != height) return LLC_WRONG_SIZE;
        stride = int64_t(crop.width) * 3;
        scratch.rows.resize(stride * crop.height);
        status = scratch.jpeg.read(crop, scratch.rows.data(), stride);
        if (status != LLC_OK) return status;
        rows = scratch.rows.data();
    } else {
        return LLC_WRONG_MODE;
    }
    scratch.resizer.resize(rows, stride, crop.height, crop.width, out, batch.out_height, batch.out_width, batch.flips[i]);
    return LLC_OK;
}

void work(Batch &batch) {
    Scratch scratch;
    const int64_t bytes = int64_t(batch.out_height) * batch.out_width * 3;
    for (int64_t i; (i = batch.next++) < batch.n;) {
        uint8_t *out = batch.out + i * bytes;
        try {
            batch.status[i] = decode_sample(batch, i, scratch, out);
        } catch (const std::bad_alloc &) {
            batch.status[i] = LLC_OUT_OF_MEMORY;
        }
        if (batch.status[i] != LLC_OK) memset(out, 0, bytes);
    }
}

}  // namespace

const char *llc_status_text(int32_t status) {
    static const char *const texts[LLC_NUM_STATUSES] = {
        "fine",
        "damaged JPEG data",
        "the JPEG's size is not the one the beton says",
        "neither a JPEG nor raw pixels of the size the beton says",
        "a JPEG of colours that are neither grey nor YCbCr nor RGB",
        "the crop has no pixels, or is not within the image",
        "out of memory",
    };
    return status >= 0 && status < LLC_NUM_STATUSES ? texts[status] : nullptr;
}

void llc_decode_batch(int64_t n, const uint8_t *const *data, const int64_t *sizes, const uint8_t *modes, const int32_t *widths,
                      const int32_t *heights, const int32_t *crops, const uint8_t *flips, uint8_t *out, int32_t out_height,
                      int32_t out_width, int32_t num_threads, int32_t, int32_t *status) {
    Batch batch{n, data, sizes, modes, widths, heights, crops, flips, out, out_height, out_width, status};
    std::vector<std::thread> threads;
    try {
        for (int64_t t = 1; t < num_threads && t < n; t++) threads.emplace_back([&batch] { work(batch); });
    } catch (const std::system_error &) {  // the threads there are, this one at least, do it all
    }
    work(batch);
    for (std::thread &thread : threads) thread.join();
}

int32_t llc_jpeg_size(const uint8_t *data, int64_t size, int32_t *width, int32_t *height) {
    JpegDecoder jpeg;
    const Status status = jpeg.open(data, size);
    if (status == LLC_OK) *width = jpeg.width(), *height = jpeg.height();
    return status;
}

int32_t llc_decode_jpeg(const uint8_t *data, int64_t size, int32_t width, int32_t height, uint8_t *out) try {
    JpegDecoder jpeg;
    const Status status = jpeg.open(data, size);
    if (status != LLC_OK) return status;
    if (jpeg.width() != width || jpeg.height() != height) return LLC_WRONG_SIZE;
    return jpeg.read({0, 0, height, width}, out, int64_t(width) * 3);
} catch (const std::bad_alloc &) {
    return LLC_OUT_OF_MEMORY;
}
