#include "jpeg.h"

#include <algorithm>
#include <cstring>

#include <jerror.h>

namespace {

// libjpeg itself would print and exit. A warning means damaged data, so it ends the decoding as well.
[[noreturn]] void fail(j_common_ptr jpeg) { longjmp(*static_cast<jmp_buf *>(jpeg->client_data), 1); }

void message(j_common_ptr jpeg, int level) {
    const int code = jpeg->err->msg_code;
    // Warnings about markers do not concern the pixels.
    if (level < 0 && code != JWRN_JFIF_MAJOR && code != JWRN_ADOBE_XFORM) fail(jpeg);
}

// Smooth chroma upsampling reads one chroma sample, two pixels, on every side.
constexpr int32_t PAD = 2;

}  // namespace

JpegDecoder::JpegDecoder(const CodecKernels &kernels) : baseline(kernels) {
    jpeg.err = jpeg_std_error(&errors);
    errors.error_exit = fail;
    errors.emit_message = message;
    jpeg.client_data = &errors.jump;  // jpeg_create_decompress keeps it, and `err`
    jpeg.mem = nullptr;               // nothing to destroy yet
}

JpegDecoder::~JpegDecoder() { jpeg_destroy_decompress(&jpeg); }

Status JpegDecoder::open(const uint8_t *data, int64_t size) {
    if (setjmp(errors.jump)) return errors.msg_code == JERR_OUT_OF_MEMORY ? LLC_OUT_OF_MEMORY : LLC_CORRUPT;
    // A fresh object, because an old one would use the last image's tables for an image that lacks its own.
    jpeg_destroy_decompress(&jpeg);
    jpeg_create_decompress(&jpeg);
    jpeg_mem_src(&jpeg, data, size);
    jpeg_read_header(&jpeg, TRUE);
    if (jpeg.jpeg_color_space != JCS_GRAYSCALE && jpeg.jpeg_color_space != JCS_YCbCr &&
        jpeg.jpeg_color_space != JCS_RGB)
        return LLC_WRONG_COLOUR;
    return LLC_OK;
}

Status JpegDecoder::read(const Region &region, RowSink &sink) {
    if (baseline.accepts(jpeg)) {
        sink.begin();
        if (baseline.read(jpeg, region, sink) == LLC_OK) return LLC_OK;
    }
    return read_by_libjpeg(region, sink);  // libjpeg decides what is damaged, on every CPU
}

Status JpegDecoder::read_by_libjpeg(const Region &region, RowSink &sink) {
    if (setjmp(errors.jump)) return errors.msg_code == JERR_OUT_OF_MEMORY ? LLC_OUT_OF_MEMORY : LLC_CORRUPT;
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
    return LLC_OK;
}
