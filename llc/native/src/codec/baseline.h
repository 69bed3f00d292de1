// Regions of the usual kind of JPEG (baseline Huffman in one scan; grey, 4:4:4, 4:2:2 or 4:2:0), decoded in
// two thirds of the time that libjpeg-turbo takes for them: short coefficients are looked up two at a time,
// what lies beside the crop is only skipped, and where there are restart markers it is not even read. The
// pixels are those of libjpeg-turbo, to the bit: its accurate inverse DCT, its smooth ("fancy") chroma
// upsampling, its colour conversion. libjpeg-turbo decodes everything else, and decides what is damaged.
#pragma once
#include <cstdint>
#include <vector>

#include "entropy.h"
#include "kernels.h"
#include "markers.h"
#include "rows.h"

// Reused from image to image; it keeps its tables as long as the images have the same ones. Not for two
// threads at once.
class BaselineDecoder {
public:
    explicit BaselineDecoder(const CodecKernels &kernels) : kernels(kernels) {}

    // Whether this class can decode such an image.
    bool accepts(const JpegMarkers &markers) const;

    // Writes the region's rows into `sink`. False if the data may be damaged.
    bool read(const JpegMarkers &markers, const Region &region, RowSink &sink);

private:
    struct Component {
        int32_t h, v;                 // sampling factors: blocks in an MCU
        const HuffmanTable *dc, *ac;
        int16_t quantisation[64 + 16];  // in zigzag order; beyond 63 for damaged data, as in libjpeg
        int32_t blocks_per_row;       // in `coefficients`: those of the region's MCUs, an even number
        std::vector<int16_t> coefficients;  // [v][blocks_per_row][64], one row of MCUs
        // the samples of a row of MCUs, and above them the last ones of the row before
        std::vector<uint8_t> plane;
        int32_t stride;
        uint8_t *samples;             // within `plane`: the first sample of the row of MCUs
    };

    template <bool WANTED>
    bool decode_mcu_row(int32_t row);
    void transform(int32_t row);
    void emit(const Region &region, int32_t row, int32_t begin, int32_t end, RowSink &sink);

    const CodecKernels &kernels;
    HuffmanTables tables;

    // The current image.
    int32_t width, height, num_components;
    int32_t mcu_width, mcu_height, mcus_per_row, mcu_rows;
    int32_t first_column, last_column, first_row, last_row;  // the region's MCUs: [first, last)
    int64_t restart_interval;           // in MCUs; 0: none
    Component components[3];

    ScanData scan;
    // The position of entropy decoding.
    int64_t next_mcu;
    BitReader reader;
    int32_t last_dc[3];

    std::vector<uint8_t> upsampled[2];
};
