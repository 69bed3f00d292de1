// Regions of JPEGs of every kind: by BaselineDecoder or by libjpeg-turbo.
#pragma once
#include <cstdint>
#include <vector>

#include "baseline.h"
#include "codec.h"
#include "libjpeg.h"
#include "markers.h"
#include "rows.h"

// Reused from image to image. Not for two threads at once.
class JpegDecoder {
public:
    explicit JpegDecoder(const CodecKernels &kernels);
    ~JpegDecoder();
    JpegDecoder(const JpegDecoder &) = delete;
    JpegDecoder &operator=(const JpegDecoder &) = delete;

    // Reads the header; the data must stay until the last call for this image.
    Status open(const uint8_t *data, int64_t size);
    int32_t width() const { return is_baseline ? markers.width : jpeg.image_width; }
    int32_t height() const { return is_baseline ? markers.height : jpeg.image_height; }

    // Writes the region's rows into `sink`: the same pixels as those of the whole decoded image.
    Status read(const Region &region, RowSink &sink);

private:
    Status read_header();
    Status failure() const;
    Status read_by_libjpeg(const Region &region, RowSink &sink);

    const uint8_t *data;
    int64_t size;
    JpegMarkers markers;
    bool is_baseline;
    BaselineDecoder baseline;
    LibjpegErrors errors;
    jpeg_decompress_struct jpeg;
    std::vector<uint8_t> line;
};
