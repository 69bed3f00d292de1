// Regions of JPEGs by libjpeg-turbo.
#pragma once
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <vector>

#include <jpeglib.h>

#include "baseline.h"
#include "codec.h"
#include "rows.h"

#ifndef LIBJPEG_TURBO_VERSION
#error "llc needs libjpeg-turbo (its jpeg_crop_scanline); Debian and Ubuntu call it libjpeg-dev"
#endif

// Reused from image to image. Not for two threads at once.
class JpegDecoder {
public:
    explicit JpegDecoder(const CodecKernels &kernels);
    ~JpegDecoder();
    JpegDecoder(const JpegDecoder &) = delete;
    JpegDecoder &operator=(const JpegDecoder &) = delete;

    // Reads the header; the data must stay until the last call for this image.
    Status open(const uint8_t *data, int64_t size);
    int32_t width() const { return jpeg.image_width; }
    int32_t height() const { return jpeg.image_height; }

    // Writes the region's rows into `sink`: the same pixels as those of the whole decoded image.
    Status read(const Region &region, RowSink &sink);

    // The same, always by libjpeg.
    Status read_by_libjpeg(const Region &region, RowSink &sink);

private:
    struct Errors : jpeg_error_mgr {
        jmp_buf jump;
    } errors;
    jpeg_decompress_struct jpeg;
    std::vector<uint8_t> line;
    BaselineDecoder baseline;
};
