// What the markers of a JPEG say before its first scan, and the numbers of the format (ITU-T T.81).
#pragma once
#include <cstdint>

// The second bytes of markers; the first one is 0xff.
enum Marker {
    SOF0 = 0xc0, SOF1, SOF2,  // baseline, extended, progressive; all coded by Huffman
    DHT = 0xc4, RST0 = 0xd0, SOI = 0xd8, EOI, SOS, DQT, DRI = 0xdd, APP0 = 0xe0, COM = 0xfe
};

constexpr int32_t MAX_SIDE = 65500;  // libjpeg's limit

constexpr uint8_t ZIGZAG[64 + 16] = {  // position in zigzag order -> in rows
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,
    12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
    58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
    // beyond the end, for damaged data
    63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63};

constexpr int32_t divide_up(int32_t a, int32_t b) { return (a + b - 1) / b; }

struct HuffmanCodes {
    bool defined = false;
    uint8_t counts[16];  // codes of 1, 2, ... 16 bits
    uint8_t values[256];
};

struct Component {
    uint8_t id, across, down;  // sampling factors: how many blocks an MCU has
    uint8_t quantisation, dc, ac;  // its tables
};

struct JpegMarkers {
    bool sequential;  // one Huffman-coded scan of all components
    bool grey, ycc;   // both false: other colours
    int32_t width, height, num_components, restart_interval;  // the interval in MCUs, 0: none
    int32_t mcu_columns, mcu_rows;  // of a common image
    Component components[3];
    uint16_t quantisation[4][64];  // in zigzag order
    bool quantisation_defined[4];
    HuffmanCodes dc[4], ac[4];
    // the data; what follows the frame header's length, and the first scan header; behind the data
    const uint8_t *begin, *frame, *scan, *end;

    // False if this is not a JPEG of 8 bits and 1 or 3 components, or if libjpeg could have an error or a
    // warning about its markers.
    bool parse(const uint8_t *data, int64_t size);

    // Whether it is sequential, and grey, or ycc with 1 or 2 luma samples per chroma sample on each axis.
    bool is_common() const;

    // Whether no EXIF or XMP says that the picture is turned; false if they cannot be parsed.
    bool is_upright() const;

    // Whether the only scan's data is followed by the end of the image.
    bool image_ends() const;

private:
    bool read_quantisation(const uint8_t *data, int64_t size);
    bool read_huffman(const uint8_t *data, int64_t size);
    bool read_frame(const uint8_t *data, int64_t size);
    bool read_scan(const uint8_t *data, int64_t size);
};
