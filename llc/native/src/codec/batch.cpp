#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <vector>

#include "cpu.h"
#include "guard.h"
#include "jpeg.h"
#include "codec.h"
#include "resize.h"
#include "threads.h"

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
    const CodecKernels &kernels;

    int64_t bytes_each() const { return int64_t(out_height) * out_width * 3; }
};

// Rows between decoder and resizer: only those that the resizer still needs, so that they stay in the cache.
class RowWindow : public RowSink {
public:
    explicit RowWindow(Resizer &resizer) : resizer(resizer) {}

    void begin() override {
        resizer.restart();
        stride = int64_t(3) * resizer.in_width();
        first = end = 0;
    }

    uint8_t *reserve(int32_t count, int64_t &stride) override {
        const int32_t needed = std::min(resizer.next_row(), end);
        if (needed > first) {
            memmove(rows.data(), rows.data() + (needed - first) * this->stride,
                (end - needed) * this->stride);
            first = needed;
        }
        const size_t size = (end - first + count) * this->stride + ROOM;
        if (rows.size() < size) rows.resize(size);
        stride = this->stride;
        return rows.data() + (end - first) * stride;
    }

    void added(int32_t count) override {
        end += count;
        resizer.advance(rows.data() + (resizer.next_row() - first) * stride, stride, end);
    }

private:
    Resizer &resizer;
    std::vector<uint8_t> rows;  // [first, end) of the region
    int64_t stride;
    int32_t first, end;
};

// Writes the rows of a whole image to where they belong.
class Whole : public RowSink {
public:
    Whole(uint8_t *pixels, int64_t stride) : pixels(pixels), stride(stride) {}

    void begin() override { next = pixels; }

    uint8_t *reserve(int32_t, int64_t &stride) override {
        stride = this->stride;
        return next;
    }

    void added(int32_t count) override { next += count * stride; }

private:
    uint8_t *pixels, *next;
    int64_t stride;
};

// What one thread needs, reused from sample to sample.
struct Scratch {
    explicit Scratch(const CodecKernels &kernels) : jpeg(kernels), resizer(kernels), window(resizer) {}

    JpegDecoder jpeg;
    Resizer resizer;
    RowWindow window;
};

Status decode_sample(const Batch &batch, int64_t i, Scratch &scratch, uint8_t *out) {
    const int32_t width = batch.widths[i], height = batch.heights[i];
    const Region crop = {batch.crops[4 * i], batch.crops[4 * i + 1], batch.crops[4 * i + 2],
        batch.crops[4 * i + 3]};
    if (crop.top < 0 || crop.left < 0 || crop.height < 1 || crop.width < 1 ||
        crop.top > height - crop.height || crop.left > width - crop.width)
        return LLC_WRONG_CROP;
    if (batch.modes[i] != JPG && (batch.modes[i] != RAW || batch.sizes[i] != int64_t(3) * width * height))
        return LLC_WRONG_MODE;
    scratch.resizer.begin(crop.height, crop.width, out, batch.out_height, batch.out_width, batch.flips[i]);
    if (batch.modes[i] == RAW) {
        scratch.resizer.advance(batch.data[i] + (int64_t(crop.top) * width + crop.left) * 3,
            int64_t(3) * width, crop.height);
        return LLC_OK;
    }
    const Status status = scratch.jpeg.open(batch.data[i], batch.sizes[i]);
    if (status != LLC_OK) return status;
    if (scratch.jpeg.width() != width || scratch.jpeg.height() != height) return LLC_WRONG_SIZE;
    return scratch.jpeg.read(crop, scratch.window);
}

// A function of its own, because its variables must not change after sigsetjmp. The jump of a failed read
// skips destructors. So no function on the way to a read of the sample's bytes has a variable with one: all
// such objects are in `scratch`.
Status decode_readable(const Batch &batch, int64_t i, Scratch &scratch, uint8_t *out) {
    sigjmp_buf failed;
    if (sigsetjmp(failed, 0)) return LLC_UNREADABLE;
    on_failed_read = &failed;
    return decode_sample(batch, i, scratch, out);
}

void work(const Batch &batch, int64_t i, Scratch &scratch) {
    uint8_t *out = batch.out + i * batch.bytes_each();
    try {
        batch.status[i] = decode_readable(batch, i, scratch, out);
    } catch (const std::exception &) {
        batch.status[i] = LLC_OUT_OF_MEMORY;
    }
    on_failed_read = nullptr;
    if (batch.status[i] != LLC_OK) memset(out, 0, batch.bytes_each());
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
        "it became shorter, or its disk fails",
    };
    return status >= 0 && status < LLC_NUM_STATUSES ? texts[status] : nullptr;
}

void llc_decode_batch(int64_t n, const uint8_t *const *data, const int64_t *sizes, const uint8_t *modes,
    const int32_t *widths, const int32_t *heights, const int32_t *crops, const uint8_t *flips, uint8_t *out,
    int32_t out_height, int32_t out_width, int32_t num_threads, int32_t instructions, int32_t *status) {
    const Batch batch{n, data, sizes, modes, widths, heights, crops, flips, out, out_height, out_width,
        status, *instruction_set(instructions)->codec};
    guard_reads();
    std::fill_n(status, n, LLC_OUT_OF_MEMORY);
    const bool fine = in_threads(n, num_threads, nullptr,
        [&] { return std::make_unique<Scratch>(batch.kernels); },
        [&](std::unique_ptr<Scratch> &scratch, int64_t i) { work(batch, i, *scratch); });
    for (int64_t i = 0; !fine && i < n; i++)  // some samples may not have been reached
        if (status[i] != LLC_OK) memset(out + i * batch.bytes_each(), 0, batch.bytes_each());
}

int32_t llc_jpeg_size(const uint8_t *data, int64_t size, int32_t *width, int32_t *height) {
    JpegDecoder jpeg(PORTABLE_CODEC);
    const Status status = jpeg.open(data, size);
    if (status == LLC_OK) *width = jpeg.width(), *height = jpeg.height();
    return status;
}

int32_t llc_decode_jpeg(const uint8_t *data, int64_t size, int32_t width, int32_t height, uint8_t *out) try {
    JpegDecoder jpeg(PORTABLE_CODEC);
    const Status status = jpeg.open(data, size);
    if (status != LLC_OK) return status;
    if (jpeg.width() != width || jpeg.height() != height) return LLC_WRONG_SIZE;
    Whole sink(out, int64_t(3) * width);
    return jpeg.read({0, 0, height, width}, sink);
} catch (const std::exception &) {
    return LLC_OUT_OF_MEMORY;
}
