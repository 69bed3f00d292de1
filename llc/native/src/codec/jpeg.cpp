#include "jpeg.h"

#include <algorithm>
#include <cstring>

namespace {

// Smooth chroma upsampling reads one chroma sample, two pixels, on every side.
constexpr int32_t PAD = 2;

}  // namespace

JpegDecoder::JpegDecoder(const CodecKernels &kernels) : baseline(kernels) {
    jpeg.err = &errors;  // jpeg_create_decompress keeps it
    jpeg.mem = nullptr;  // nothing to destroy yet
}

JpegDecoder::~JpegDecoder() { jpeg_destroy_decompress(&jpeg); }

Status JpegDecoder::open(const uint8_t *data, int64_t size) {
    this->data = data, this->size = size;
    is_baseline = markers.parse(data, size) && baseline.accepts(markers);
    return is_baseline ? LLC_OK : read_header();
}

Status JpegDecoder::read(const Region &region, RowSink &sink) {
    if (is_baseline) {
        sink.begin();
        if (baseline.read(markers, region, sink)) return LLC_OK;
        const Status status = read_header();  // libjpeg decides what is damaged, on every CPU
        if (status != LLC_OK) return status;
    }
    return read_by_libjpeg(region, sink);
}

Status JpegDecoder::failure() const {
    return errors.msg_code == JERR_OUT_OF_MEMORY ? LLC_OUT_OF_MEMORY : LLC_CORRUPT;
}

Status JpegDecoder::read_header() {
    const bool fine = errors.run([&] {
        // A fresh object, because an old one would use the last image's tables for an image that lacks its
        // own.
        jpeg_destroy_decompress(&jpeg);
        jpeg_create_decompress(&jpeg);
        jpeg_mem_src(&jpeg, data, size);
        jpeg_read_header(&jpeg, TRUE);
    });
    if (!fine) return failure();
    const J_COLOR_SPACE colours = jpeg.jpeg_color_space;
    return colours == JCS_GRAYSCALE || colours == JCS_YCbCr || colours == JCS_RGB ? LLC_OK : LLC_WRONG_COLOUR;
}

Status JpegDecoder::read_by_libjpeg(const Region &region, RowSink &sink) {
    const bool fine = errors.run([&] {
        sink.begin();
        jpeg.out_color_space = JCS_RGB;
        jpeg.dct_method = JDCT_ISLOW;
        jpeg_start_decompress(&jpeg);
        const JDIMENSION left = std::max(region.left - PAD, 0), top = std::max(region.top - PAD, 0);
        const JDIMENSION right = std::min<JDIMENSION>(region.left + region.width + PAD, jpeg.image_width);
        JDIMENSION first_column = left, width = right - left;
        jpeg_crop_scanline(&jpeg, &first_column, &width);
        line.resize(static_cast<size_t>(width) * 3);
        JSAMPROW pointer = line.data();
        if (top > 0) jpeg_skip_scanlines(&jpeg, top);
        const uint8_t *wanted = line.data() + 3 * (region.left - static_cast<int32_t>(first_column));
        for (int32_t y = top; y < region.top + region.height; y++) {
            jpeg_read_scanlines(&jpeg, &pointer, 1);
            if (y < region.top) continue;
            int64_t stride;
            memcpy(sink.reserve(1, stride), wanted, size_t(3) * region.width);
            sink.added(1);
        }
    });
    return fine ? LLC_OK : failure();
}
