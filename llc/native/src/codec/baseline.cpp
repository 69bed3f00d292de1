#include "baseline.h"

#include <algorithm>
#include <cstring>

bool BaselineDecoder::accepts(const JpegMarkers &markers) const {
    if (!kernels.transform_two || !markers.is_common()) return false;
    // libjpeg does not smooth rows alone, nor chroma of one or two columns
    return markers.components[0].across == 2 ? markers.width > 4 : markers.components[0].down == 1;
}

bool BaselineDecoder::read(const JpegMarkers &markers, const Region &region, RowSink &sink) {
    width = markers.width, height = markers.height, num_components = markers.num_components;
    mcus_per_row = markers.mcu_columns, mcu_rows = markers.mcu_rows;
    const int32_t h = markers.components[0].across, v = markers.components[0].down;
    mcu_width = 8 * h, mcu_height = 8 * v;
    restart_interval = markers.restart_interval;

    // The region, and one more chroma sample on every side where upsampling reads it.
    const int32_t side = h - 1, above = v - 1;
    first_column = std::max(region.left - side, 0) / mcu_width;
    last_column = divide_up(std::min(region.left + region.width + side, width), mcu_width);
    first_row = std::max(region.top - above, 0) / mcu_height;
    last_row = divide_up(std::min(region.top + region.height + above, height), mcu_height);

    for (int c = 0; c < num_components; c++) {
        const ::Component &source = markers.components[c];
        Component &component = components[c];
        component.h = source.across, component.v = source.down;
        component.dc = tables.table(markers, true, source.dc);
        component.ac = tables.table(markers, false, source.ac);
        for (int k = 0; k < 64 + 16; k++)
            component.quantisation[k] =
                static_cast<int16_t>(markers.quantisation[source.quantisation][std::min(k, 63)]);
        component.blocks_per_row = ((last_column - first_column) * component.h + 1) & ~1;
        component.coefficients.resize(size_t(64) * component.v * component.blocks_per_row);
        // a row above, one below and room on both sides, for the neighbours of edges and for reading beyond
        // them
        component.stride = 8 * component.blocks_per_row + 64;
        component.plane.resize(size_t(component.stride) * (8 * component.v + 2));
        component.samples = component.plane.data() + component.stride + 32;
    }
    for (std::vector<uint8_t> &line : upsampled)
        line.resize(size_t(mcu_width) * (last_column - first_column) + 64);

    next_mcu = 0;
    int64_t first = 0, last = 1;
    if (restart_interval) {
        first = (int64_t(first_row) * mcus_per_row + first_column) / restart_interval;
        last = (int64_t(last_row - 1) * mcus_per_row + last_column - 1) / restart_interval + 1;
        next_mcu = first * restart_interval;
    }
    if (!scan.collect(markers, first, last)) return false;
    if (!restart_interval) {
        scan.begin_segment(0, reader);
        std::fill_n(last_dc, 3, 0);
    }

    for (int32_t row = static_cast<int32_t>(next_mcu / mcus_per_row); row < first_row; row++)
        if (!decode_mcu_row<false>(row)) return false;
    int32_t done = region.top;
    for (int32_t row = first_row; row < last_row; row++) {
        if (!decode_mcu_row<true>(row)) return false;
        transform(row);
        // The last row of a row of MCUs waits for the chroma below it.
        const int32_t complete = row == mcu_rows - 1 ? height : (row + 1) * mcu_height - above;
        const int32_t end = std::min(complete, region.top + region.height);
        if (end > done) {
            emit(region, row, done, end, sink);
            done = end;
        }
    }
    // libjpeg reads ahead, and warns if the data ends without a marker.
    return scan.is_complete() || reader.end - reader.next > 8;
}

template <bool WANTED>
bool BaselineDecoder::decode_mcu_row(int32_t row) {
    const int64_t row_begin = int64_t(row) * mcus_per_row, row_end = row_begin + mcus_per_row;
    if (WANTED)
        for (int c = 0; c < num_components; c++)
            memset(components[c].coefficients.data(), 0, components[c].coefficients.size() * sizeof(int16_t));
    BitReader reader = this->reader;
    while (next_mcu < row_end) {
        const int32_t column = static_cast<int32_t>(next_mcu - row_begin);
        const bool wanted = WANTED && column >= first_column && column < last_column;
        if (column >= last_column && row == last_row - 1) break;
        if (restart_interval) {
            if (next_mcu % restart_interval == 0) {
                if (!scan.begin_segment(next_mcu / restart_interval, reader)) return false;
                std::fill_n(last_dc, 3, 0);
            }
            if (!wanted) {
                const int64_t next_wanted = (column < first_column && WANTED ? row_begin : row_end) +
                    first_column;
                const int64_t next_segment = (next_mcu / restart_interval + 1) * restart_interval;
                if (next_wanted >= next_segment) {
                    next_mcu = next_segment;
                    continue;
                }
            }
        }
        for (int c = 0; c < num_components; c++) {
            Component &component = components[c];
            for (int y = 0; y < component.v; y++) {
                for (int x = 0; x < component.h; x++) {
                    if (!read_dc(reader, *component.dc, last_dc[c])) return false;
                    if (!wanted) {
                        if (!read_ac(reader, *component.ac, [](uint32_t, int32_t) {})) return false;
                        continue;
                    }
                    int16_t *block = &component.coefficients[size_t(64) * (y * component.blocks_per_row +
                        (column - first_column) * component.h + x)];
                    const int16_t *quantisation = component.quantisation;
                    block[0] = static_cast<int16_t>(static_cast<uint32_t>(last_dc[c]) * quantisation[0]);
                    if (!read_ac(reader, *component.ac, [=](uint32_t k, int32_t value) {
                            block[ZIGZAG[k]] = static_cast<int16_t>(value * quantisation[k]);
                        }))
                        return false;
                }
            }
        }
        next_mcu++;
        // No byte of a segment may be missing or left over.
        if (!reader.is_within()) return false;
        if (restart_interval && next_mcu % restart_interval == 0 && !reader.is_at_end()) return false;
    }
    this->reader = reader;
    return true;
}

// The row's coefficients -> samples; at the image's edges one more sample is repeated.
void BaselineDecoder::transform(int32_t row) {
    for (int c = 0; c < num_components; c++) {
        Component &component = components[c];
        const int32_t rows = 8 * component.v, stride = component.stride;
        uint8_t *samples = component.samples;
        memcpy(samples - stride - 32, samples + (rows - 1) * stride - 32, stride);
        for (int32_t y = 0; y < component.v; y++)
            for (int32_t x = 0; x < component.blocks_per_row; x += 2)
                kernels.transform_two(&component.coefficients[size_t(64) * (y * component.blocks_per_row +
                    x)], samples + 8 * (y * stride + x), stride);
        if (c == 0) continue;
        // from the region's first MCU to the image's edge
        const int32_t columns = divide_up(width, components[0].h) - 8 * first_column;
        const int32_t lines = divide_up(height, components[0].v) - 8 * row;
        for (int32_t y = 0; y < 8; y++) {
            uint8_t *line = samples + y * stride;
            if (first_column == 0) line[-1] = line[0];
            if (columns <= 8 * (last_column - first_column)) line[columns] = line[columns - 1];
        }
        if (row == 0) memcpy(samples - stride - 32, samples - 32, stride);
        if (lines <= 8) memcpy(samples + lines * stride - 32, samples + (lines - 1) * stride - 32, stride);
    }
}

// Rows [begin, end) of the image, of the region's columns; they are within the row of MCUs `row`, or the last
// one above it.
void BaselineDecoder::emit(const Region &region, int32_t row, int32_t begin, int32_t end, RowSink &sink) {
    int64_t stride;
    uint8_t *out = sink.reserve(end - begin, stride);
    const int32_t left = region.left - first_column * mcu_width;
    const Component &luma = components[0];
    for (int32_t y = begin; y < end; y++, out += stride) {
        const int32_t line = y - row * mcu_height;
        const uint8_t *samples = luma.samples + line * luma.stride + left;
        if (num_components == 1) {
            kernels.grey_to_rgb(samples, region.width, out);
            continue;
        }
        const uint8_t *chroma[2];
        for (int c = 1; c < 3; c++) {
            const Component &component = components[c];
            const int32_t stride = component.stride;
            if (luma.h == 1) {
                chroma[c - 1] = component.samples + line * stride + left;
                continue;
            }
            const int32_t first = left / 2, count = (left + region.width + 1) / 2 - first;
            uint8_t *upsampled_line = upsampled[c - 1].data();
            if (luma.v == 1) {
                kernels.upsample_h2v1(component.samples + line * stride + first, count, upsampled_line);
            } else {
                const int32_t near = line >> 1, far = line & 1 ? near + 1 : near - 1;
                kernels.upsample_h2v2(component.samples + near * stride + first, component.samples +
                    far * stride + first, count, upsampled_line);
            }
            chroma[c - 1] = upsampled_line + left % 2;
        }
        kernels.ycc_to_rgb(samples, chroma[0], chroma[1], region.width, out);
    }
    sink.added(end - begin);
}
