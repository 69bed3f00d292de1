#include "jpeg.h"

#include <cstring>
#include <vector>

#include <jerror.h>

namespace {

// libjpeg would print and exit; a warning means damaged data here, so it ends the decoding as well.
[[noreturn]] void fail(j_common_ptr jpeg) { longjmp(*static_cast<jmp_buf *>(jpeg->client_data), 1); }

void message(j_common_ptr jpeg, int level) {
    const int code = jpeg->err->msg_code;
    // About what the markers say of the file, not about its pixels.
    if (level < 0 && code != JWRN_JFIF_MAJOR && code != JWRN_ADOBE_XFORM) fail(jpeg);
}

}  // namespace

JpegDecoder::JpegDecoder() {
    jpeg.err = jpeg_std_error(&errors);
    errors.error_exit = fail;
    errors.emit_message = message;
    jpeg_create_decompress(&jpeg);
    jpeg.client_data = &errors.jump;
}

JpegDecoder::~JpegDecoder() { jpeg_destroy_decompress(&jpeg); }

Status JpegDecoder::open(const uint8_t *data, int64_t size) {
    if (setjmp(errors.jump)) return errors.msg_code == JERR_OUT_OF_MEMORY ? LLC_OUT_OF_MEMORY : LLC_CORRUPT;
    jpeg_abort_decompress(&jpeg);
    jpeg_mem_src(&jpeg, data, size);
    jpeg_read_header(&jpeg, TRUE);
    if (jpeg.jpeg_color_space != JCS_GRAYSCALE && jpeg.jpeg_color_space != JCS_YCbCr && jpeg.jpeg_color_space != JCS_RGB)
        return LLC_WRONG_COLOUR;
    return LLC_OK;
}

Status JpegDecoder::read(const Region &region, uint8_t *rows, int64_t stride) {
    std::vector<uint8_t> row(static_cast<size_t>(jpeg.image_width) * 3);
    JSAMPROW pointer = row.data();
    if (setjmp(errors.jump)) return errors.msg_code == JERR_OUT_OF_MEMORY ? LLC_OUT_OF_MEMORY : LLC_CORRUPT;
    jpeg.out_color_space = JCS_RGB;
    jpeg.dct_method = JDCT_ISLOW;
    jpeg_start_decompress(&jpeg);
    for (int32_t y = 0; y < region.top + region.height; y++) {
        jpeg_read_scanlines(&jpeg, &pointer, 1);
        if (y >= region.top) memcpy(rows + (y - region.top) * stride, row.data() + 3 * region.left, 3 * region.width);
    }
    return LLC_OK;
}
