// Regions of JPEGs by libjpeg-turbo.
#pragma once
#include <csetjmp>
#include <cstdint>
#include <cstdio>

#include <jpeglib.h>

#include "native.h"

#ifndef LIBJPEG_TURBO_VERSION
#error "llc needs libjpeg-turbo (its jpeg_crop_scanline); Debian and Ubuntu call it libjpeg-dev"
#endif

struct Region {
    int32_t top, left, height, width;
};

// One decompress object, reused from image to image. Not for two threads at once.
class JpegDecoder {
public:
    JpegDecoder();
    ~JpegDecoder();
    JpegDecoder(const JpegDecoder &) = delete;
    JpegDecoder &operator=(const JpegDecoder &) = delete;

    // Reads the header; the data must stay until the last call for this image.
    Status open(const uint8_t *data, int64_t size);
    int32_t width() const { return jpeg.image_width; }
    int32_t height() const { return jpeg.image_height; }

    // The region's pixels into rows of `stride` bytes: the same ones as in a decoded whole.
    Status read(const Region &region, uint8_t *rows, int64_t stride);

private:
    struct Errors : jpeg_error_mgr {
        jmp_buf jump;
    } errors;
    jpeg_decompress_struct jpeg;
};
