#include "encode.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include "libjpeg.h"
#include "markers.h"
#include "recode.h"

namespace {

// limit for pictures that are decoded whole; larger ones take a slower way
constexpr int64_t MAX_PIXELS = 1 << 26;
constexpr int32_t MAX_RESTART_INTERVAL = 65535;  // MCUs
constexpr int32_t MCU_BLOCKS = 6;                 // of what is written here, 4:2:0

// libjpeg's objects for one picture. Output that is longer than the buffer ends with `free_in_buffer` 0.
struct Libjpeg {
    LibjpegErrors errors;
    jpeg_destination_mgr destination = {};
    jpeg_compress_struct compress = {};
    jpeg_decompress_struct decompress = {};

    Libjpeg(uint8_t *buffer, int64_t capacity) {
        compress.err = decompress.err = &errors;
        destination.next_output_byte = buffer;
        destination.free_in_buffer = capacity;
        destination.init_destination = destination.term_destination = [](j_compress_ptr) {};
        destination.empty_output_buffer = [](j_compress_ptr jpeg) -> boolean {
            LibjpegErrors::fail(reinterpret_cast<j_common_ptr>(jpeg));
        };
    }
    Libjpeg(const Libjpeg &) = delete;
    ~Libjpeg() {
        jpeg_destroy_compress(&compress);
        jpeg_destroy_decompress(&decompress);
    }

    // Within `errors.run`.
    void create_compress() {
        jpeg_create_compress(&compress);
        compress.dest = &destination;
    }
    EncodeStatus failure() const {
        return compress.dest && destination.free_in_buffer == 0 ? LLC_TOO_LARGE : LLC_NOT_ORDINARY;
    }
};

bool is_ordinary(const JpegMarkers &markers) {
    return (markers.ycc || markers.grey) && int64_t(markers.width) * markers.height <= MAX_PIXELS &&
        markers.is_upright();
}

// In MCUs of `mcu_blocks` blocks.
int32_t restart_interval(int32_t restart_blocks, int32_t mcu_blocks) {
    return restart_blocks ? std::clamp(restart_blocks / mcu_blocks, 1, MAX_RESTART_INTERVAL) : 0;
}

// The size that a picture shrinks to: rounded down, as FFCV does, but no side becomes 0.
void shrunk_size(int32_t max_side, int32_t &height, int32_t &width) {
    const int64_t longer = std::max(height, width);
    if (max_side == 0 || longer <= max_side) return;
    height = std::max<int64_t>(int64_t(height) * max_side / longer, 1);
    width = std::max<int64_t>(int64_t(width) * max_side / longer, 1);
}

// Writes the picture, shrunk to height x width, to out [height, width, 3].
bool read_pixels(const JpegMarkers &markers, const uint8_t *data, int64_t size, int32_t height, int32_t width,
    uint8_t *out) {
    if (!markers.image_ends()) return false;
    // libjpeg could decode at 1/2, 1/4 or 1/8 of the size first. That saved 1 % of the time to write
    // ImageNet's files, and its pixels were as far as 31 dB from these (BENCHMARKS.md).
    const uint8_t mode = 0, flip = 0;
    const int32_t crop[4] = {0, 0, markers.height, markers.width};
    int32_t status;
    llc_decode_batch(1, &data, &size, &mode, &markers.width, &markers.height, crop, &flip, out, height, width,
        1, 0, &status);
    return status == LLC_OK;
}

}  // namespace

int32_t llc_encode_jpeg(const uint8_t *pixels, int32_t height, int32_t width, int32_t quality,
    int32_t restart_blocks, uint8_t *out, int64_t capacity, int64_t *length) {
    Libjpeg libjpeg(out, capacity);
    jpeg_compress_struct &jpeg = libjpeg.compress;
    const bool fine = libjpeg.errors.run([&] {
        libjpeg.create_compress();
        jpeg.image_height = height, jpeg.image_width = width;
        jpeg.in_color_space = JCS_RGB, jpeg.input_components = 3;
        jpeg_set_defaults(&jpeg);
        jpeg_set_quality(&jpeg, quality, TRUE);
        jpeg.restart_interval = restart_interval(restart_blocks, MCU_BLOCKS);
        jpeg_start_compress(&jpeg, TRUE);
        while (jpeg.next_scanline < jpeg.image_height) {
            JSAMPROW rows[16];
            for (int32_t i = 0; i < 16; i++)
                rows[i] = const_cast<uint8_t *>(pixels) +
                    int64_t(std::min<int32_t>(jpeg.next_scanline + i, height - 1)) * width * 3;
            jpeg_write_scanlines(&jpeg, rows, std::min<JDIMENSION>(16, height - jpeg.next_scanline));
        }
        jpeg_finish_compress(&jpeg);
    });
    if (!fine) return libjpeg.failure();
    *length = libjpeg.destination.next_output_byte - out;
    return LLC_ENCODED;
}

int32_t llc_read_jpeg(const uint8_t *data, int64_t size, int32_t max_side, uint8_t *out, int64_t capacity,
    int64_t *length, int32_t *width, int32_t *height) try {
    JpegMarkers markers;
    if (!markers.parse(data, size) || !markers.sequential || !is_ordinary(markers)) return LLC_NOT_ORDINARY;
    *height = markers.height, *width = markers.width;
    shrunk_size(max_side, *height, *width);
    *length = int64_t(*height) * *width * 3;
    if (*length > capacity) return LLC_TOO_LARGE;
    return read_pixels(markers, data, size, *height, *width, out) ? LLC_ENCODED : LLC_NOT_ORDINARY;
} catch (const std::bad_alloc &) {
    return LLC_NOT_ORDINARY;
}

int32_t llc_recode_jpeg(const uint8_t *data, int64_t size, int32_t max_side, int32_t quality,
    int32_t restart_blocks, uint8_t *out, int64_t capacity, int64_t *length, int32_t *width,
    int32_t *height) try {
    JpegMarkers markers;
    if (!markers.parse(data, size) || !is_ordinary(markers)) return LLC_NOT_ORDINARY;
    *height = markers.height, *width = markers.width;
    shrunk_size(max_side, *height, *width);
    if (*height == markers.height && *width == markers.width && markers.is_common()) {
        // What libjpeg writes for one pixel has the same header.
        uint8_t encoded[1024];
        const uint8_t pixel[3] = {};
        int64_t encoded_size;
        JpegMarkers model;
        if (llc_encode_jpeg(pixel, 1, 1, quality, restart_blocks, encoded, sizeof encoded, &encoded_size) ||
            !model.parse(encoded, encoded_size))
            return LLC_NOT_ORDINARY;
        return recode(markers, model, out, capacity, *length);
    }
    if (!markers.sequential) return LLC_NOT_ORDINARY;
    std::vector<uint8_t> pixels(int64_t(*height) * *width * 3);
    if (!read_pixels(markers, data, size, *height, *width, pixels.data())) return LLC_NOT_ORDINARY;
    return llc_encode_jpeg(pixels.data(), *height, *width, quality, restart_blocks, out, capacity, length);
} catch (const std::bad_alloc &) {
    return LLC_NOT_ORDINARY;
}

int32_t llc_keep_jpeg(const uint8_t *data, int64_t size, int32_t max_side, int32_t restart_blocks,
    uint8_t *out, int64_t capacity, int64_t *length, int32_t *width, int32_t *height) {
    JpegMarkers markers;
    if (!markers.parse(data, size) || !is_ordinary(markers)) return LLC_NOT_ORDINARY;
    *height = markers.height, *width = markers.width;
    if (max_side && std::max(*height, *width) > max_side) return LLC_NOT_ORDINARY;
    Libjpeg libjpeg(out, capacity);
    jpeg_compress_struct &to = libjpeg.compress;
    jpeg_decompress_struct &from = libjpeg.decompress;
    const bool fine = libjpeg.errors.run([&] {
        jpeg_create_decompress(&from);
        libjpeg.create_compress();
        jpeg_mem_src(&from, data, size);
        jpeg_read_header(&from, TRUE);
        jvirt_barray_ptr *coefficients = jpeg_read_coefficients(&from);
        jpeg_copy_critical_parameters(&from, &to);
        to.optimize_coding = TRUE;  // the standard codes would make most files longer
        int32_t mcu_blocks = 0;
        for (int c = 0; c < from.num_components; c++)
            mcu_blocks += from.comp_info[c].h_samp_factor * from.comp_info[c].v_samp_factor;
        to.restart_interval = restart_interval(restart_blocks, markers.grey ? 1 : mcu_blocks);
        jpeg_write_coefficients(&to, coefficients);
        jpeg_finish_compress(&to);
        jpeg_finish_decompress(&from);
    });
    if (!fine) return libjpeg.failure();
    *length = libjpeg.destination.next_output_byte - out;
    return LLC_ENCODED;
}
