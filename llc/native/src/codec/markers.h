// What the markers of a JPEG say before its first scan.
#pragma once
#include <cstdint>

struct HuffmanCodes {
    bool defined = false;
    uint8_t counts[16];  // codes of 1, 2, ... 16 bits
    uint8_t values[256];
};

struct Component {
    uint8_t id, horizontal, vertical, quantisation, dc, ac;
};

struct JpegMarkers {
    bool sequential;  // one Huffman-coded scan of all components
    bool upright;     // no EXIF or XMP says otherwise; false if they cannot be parsed
    bool grey, ycc;   // both false: other colours
    int32_t width, height, num_components, restart_interval;  // the interval in MCUs, 0: none
    Component components[3];
    uint16_t quantisation[4][64];  // in zigzag order
    bool quantisation_defined[4];
    HuffmanCodes dc[4], ac[4];
    const uint8_t *scan, *end;  // behind the header of the first scan; behind the data

    // False if this is not a JPEG of 8 bits and 1 or 3 components, or its markers are damaged.
    bool parse(const uint8_t *data, int64_t size);

    // Whether the only scan's data is followed by the end of the image.
    bool image_ends() const;

private:
    bool read_quantisation(const uint8_t *data, int64_t size);
    bool read_huffman(const uint8_t *data, int64_t size);
    bool read_frame(const uint8_t *data, int64_t size);
    bool read_scan(const uint8_t *data, int64_t size);
};
