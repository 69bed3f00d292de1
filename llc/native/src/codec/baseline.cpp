#include "baseline.h"

#include <algorithm>
#include <cstring>

namespace {

constexpr int TABLE_BITS = 11;  // looked up at once; longer codes are rare
constexpr int64_t DATA_PAD = 4096;  // more than an MCU of damaged data can take

const uint8_t ZIGZAG[64 + 16] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,
    12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
    58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
    // beyond the end, for damaged data
    63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63};

int32_t divide_up(int32_t a, int32_t b) { return (a + b - 1) / b; }

}  // namespace

struct HuffmanTable {
    JHUFF_TBL source;
    bool is_dc = false, is_valid = false;

    // By the next TABLE_BITS bits: length of code and value bits (8), symbol (8), and for AC the value (16)
    // where it is not 0 and all its bits are within those looked up; 0 for longer codes.
    uint32_t entries[1 << TABLE_BITS];
    // AC, by the next TABLE_BITS bits: the one or two coefficients that these bits hold completely.
    struct Pair {
        int16_t first, second;  // values; 0 where there is none
        // Steps from the last coefficient to them; first_step is END if the bits hold neither a complete
        // coefficient nor the end of the block.
        uint8_t first_step, second_step;
        // from the last coefficient to the last of these; END more where the block ends with them
        uint8_t step;
        uint8_t length;  // their bits
    };
    static constexpr int END = 64;
    Pair pairs[1 << TABLE_BITS];
    // Codes of length l are those below end[l] (16 bits, left-aligned); value index = code + offset[l].
    uint32_t end[18];
    int32_t offset[17];

    bool make(const JHUFF_TBL &from, bool dc);
    static bool is_end(uint32_t entry) { return entry && !(entry >> 8); }
};

bool HuffmanTable::make(const JHUFF_TBL &from, bool dc) {
    source = from, is_dc = dc, is_valid = false;
    memset(entries, 0, sizeof entries);
    uint32_t code = 0;
    int32_t index = 0;
    for (int length = 1; length <= 16; length++) {
        offset[length] = index - static_cast<int32_t>(code);
        for (int i = 0; i < from.bits[length]; i++, code++, index++) {
            if (index >= 256 || code >= 1u << length) return false;
            const int symbol = from.huffval[index];
            if (dc && symbol > 15) return false;
            if (length > TABLE_BITS) continue;
            const int size = symbol & 15, room = TABLE_BITS - length;
            for (uint32_t rest = 0; rest < 1u << room; rest++) {
                uint32_t entry = (length + size) | symbol << 8;
                if (!dc && size && size <= room) {
                    int32_t value = rest >> (room - size);
                    if (value < 1 << (size - 1)) value -= (1 << size) - 1;
                    entry |= static_cast<uint32_t>(value) << 16;
                }
                entries[code << room | rest] = entry;
            }
        }
        end[length] = code << (16 - length);
        code <<= 1;
    }
    end[17] = ~0u;
    if (!dc) {
        for (uint32_t window = 0; window < 1 << TABLE_BITS; window++) {
            Pair &pair = pairs[window];
            uint32_t entry = entries[window];
            if (is_end(entry)) {
                pair = {0, 0, 1, 1, END, static_cast<uint8_t>(entry & 255)};
                continue;
            }
            if (!(entry >> 16)) {
                pair = {0, 0, END, END, 0, 0};
                continue;
            }
            pair.second = 0;
            pair.first = static_cast<int16_t>(entry >> 16);
            pair.first_step = pair.step = (entry >> 12 & 15) + 1;
            // a 0 there does no harm: it comes before what belongs there
            pair.second_step = pair.first_step + 1;
            pair.length = entry & 255;
            entry = entries[window << pair.length & ((1 << TABLE_BITS) - 1)];
            if (pair.length + (entry & 255) > TABLE_BITS) continue;
            if (is_end(entry)) {
                pair.step += END;
            } else if (entry >> 16) {
                pair.second = static_cast<int16_t>(entry >> 16);
                pair.second_step = pair.step = pair.first_step + (entry >> 12 & 15) + 1;
            } else {
                continue;
            }
            pair.length += entry & 255;
        }
    }
    return is_valid = true;
}

namespace {

// The bits of a segment; the next one is the highest.
struct BitReader {
    uint64_t buffer;
    uint64_t count;
    const uint8_t *next;

    // Refills to at least 56 bits, without a branch: one on `count` would be mispredicted too often, and this
    // load does not depend on it.
    inline void fill() {
        uint64_t bytes;
        memcpy(&bytes, next, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        bytes = __builtin_bswap64(bytes);
#endif
        buffer |= bytes >> count;
        next += (63 - count) >> 3;
        count |= 56;
    }

    inline void drop(uint64_t bits) {
        buffer <<= bits;
        count -= bits;
    }

    // The value of `size` bits that stand `skipped` bits from here: negative ones begin with a 0 (ITU-T T.81,
    // F.2.2.1).
    inline int32_t value(uint64_t skipped, uint64_t size) const {
        const uint64_t bits = buffer << skipped;
        const int64_t magnitude = bits >> 1 >> (63 - size);
        // No branch, because the sign is as good as random.
        const int64_t is_negative = static_cast<int64_t>(~bits) >> 63;
        return static_cast<int32_t>(magnitude - (is_negative & ~(~uint64_t(0) << size)));
    }
};

// Length of code and value bits (8), symbol (8) of a code that is not in `entries`; 0 if there is no such
// code.
uint32_t long_code(const HuffmanTable &table, const BitReader &reader) {
    const uint32_t bits = reader.buffer >> 48;
    int length = TABLE_BITS + 1;
    while (length <= 16 && bits >= table.end[length]) length++;
    if (length > 16) return 0;
    const int symbol = table.source.huffval[((bits >> (16 - length)) + table.offset[length]) & 255];
    return (length + (symbol & 15)) | symbol << 8;
}

inline bool decode_dc(BitReader &reader, const HuffmanTable &table, int32_t &last) {
    reader.fill();
    uint32_t entry = table.entries[reader.buffer >> (64 - TABLE_BITS)];
    if (__builtin_expect(!entry, 0) && !(entry = long_code(table, reader))) return false;
    const int32_t length = entry & 255, size = entry >> 8 & 15;
    // wraps in damaged data
    last = static_cast<int32_t>(static_cast<uint32_t>(last) + reader.value(length - size, size));
    reader.drop(length);
    return true;
}

// The coefficients of a block after the first; without STORE they are only skipped.
template <bool STORE>
inline bool decode_ac(BitReader &reader, const HuffmanTable &table, const int16_t *quantisation,
    int16_t *block) {
    uint32_t k = 0;  // the last coefficient
    for (;;) {
        reader.fill();
        for (int i = 0; i < 4; i++) {  // 4 * TABLE_BITS bits at most
            const HuffmanTable::Pair pair = table.pairs[reader.buffer >> (64 - TABLE_BITS)];
            const uint32_t first = k + pair.first_step, second = k + pair.second_step;
            if (first >= 63) break;  // also where a second one would belong to the next block
            reader.drop(pair.length);
            if (STORE) {
                block[ZIGZAG[first]] = static_cast<int16_t>(pair.first * quantisation[first]);
                block[ZIGZAG[second]] = static_cast<int16_t>(pair.second * quantisation[second]);
            }
            k += pair.step;
            if (k >= 63) return true;
        }
        reader.fill();
        uint32_t entry = table.entries[reader.buffer >> (64 - TABLE_BITS)];
        if (!entry && !(entry = long_code(table, reader))) return false;
        const uint32_t length = entry & 255, symbol = entry >> 8 & 255, size = symbol & 15;
        if (!size && symbol != 0xf0) {
            reader.drop(length);
            return true;
        }
        k += (symbol >> 4) + 1;
        // 0 for 16 zeros
        if (STORE)
            block[ZIGZAG[k]] = static_cast<int16_t>(reader.value(length - size, size) * quantisation[k]);
        reader.drop(length);
        if (k >= 63) return true;
    }
}

}  // namespace

BaselineDecoder::BaselineDecoder(const CodecKernels &kernels) : kernels(kernels) {}
BaselineDecoder::~BaselineDecoder() = default;

bool BaselineDecoder::accepts(const jpeg_decompress_struct &jpeg) const {
    if (!kernels.transform_two || jpeg.progressive_mode || jpeg.arith_code || jpeg.data_precision != 8 ||
        jpeg.comps_in_scan != jpeg.num_components || jpeg.Ss != 0 || jpeg.Se != 63 || jpeg.Ah != 0 ||
            jpeg.Al != 0)
        return false;
    for (int c = 0; c < jpeg.num_components; c++) {
        const jpeg_component_info &component = jpeg.comp_info[c];
        // jpeg_read_header has not checked these numbers yet; libjpeg reports what is wrong with them
        if (component.quant_tbl_no < 0 || component.quant_tbl_no >= NUM_QUANT_TBLS ||
            component.dc_tbl_no < 0 || component.dc_tbl_no >= NUM_HUFF_TBLS || component.ac_tbl_no < 0 ||
            component.ac_tbl_no >= NUM_HUFF_TBLS)
            return false;
        if (jpeg.cur_comp_info[c] != &component || !jpeg.quant_tbl_ptrs[component.quant_tbl_no] ||
            !jpeg.dc_huff_tbl_ptrs[component.dc_tbl_no] || !jpeg.ac_huff_tbl_ptrs[component.ac_tbl_no])
            return false;
    }
    if (jpeg.num_components == 1) return jpeg.jpeg_color_space == JCS_GRAYSCALE;
    if (jpeg.num_components != 3 || jpeg.jpeg_color_space != JCS_YCbCr) return false;
    const jpeg_component_info *component = jpeg.comp_info;
    for (int c = 1; c < 3; c++)
        if (component[c].h_samp_factor != 1 || component[c].v_samp_factor != 1) return false;
    const int h = component[0].h_samp_factor, v = component[0].v_samp_factor;
    // libjpeg does not smooth chroma of one or two columns
    return (h == 1 && v == 1) || (h == 2 && (v == 1 || v == 2) && jpeg.image_width > 4);
}

const HuffmanTable *BaselineDecoder::table(const JHUFF_TBL &source, bool is_dc, int slot) {
    std::unique_ptr<HuffmanTable> &kept = tables[slot];
    if (!kept) kept = std::make_unique<HuffmanTable>();
    if (!kept->is_valid || kept->is_dc != is_dc || memcmp(kept->source.bits, source.bits,
        sizeof source.bits) || memcmp(kept->source.huffval, source.huffval, sizeof source.huffval))
        kept->make(source, is_dc);
    return kept->is_valid ? kept.get() : nullptr;
}

// Copies the segments [first, last) into `data`: everything between two restart markers, without stuffed
// zeros.
bool BaselineDecoder::collect_segments(const jpeg_decompress_struct &jpeg, int64_t first, int64_t last) {
    const uint8_t *in = jpeg.src->next_input_byte, *const end = in + jpeg.src->bytes_in_buffer;
    data.resize(end - in + DATA_PAD);
    uint8_t *out = data.data();
    starts.assign(1, 0);
    first_segment = first;
    int64_t segment = 0;
    const uint64_t ones = 0x0101010101010101, highs = ones << 7;
    while (in < end) {
        if (end - in >= 8) {
            uint64_t bytes;
            memcpy(&bytes, in, 8);
            if (!((~bytes - ones) & bytes & highs)) {  // no byte is 0xff
                memcpy(out, &bytes, 8);
                in += 8, out += 8;
                continue;
            }
        }
        if (*in != 0xff) {
            *out++ = *in++;
            continue;
        }
        if (end - in < 2) break;
        const int marker = in[1];
        if (marker == 0xff) {  // filling
            in++;
        } else if (marker == 0) {
            *out++ = 0xff, in += 2;
        } else if (restart_interval && marker >= JPEG_RST0 && marker < JPEG_RST0 + 8) {
            if (marker != JPEG_RST0 + segment % 8) return false;
            in += 2;
            if (segment < first)
                out = data.data();
            else
                starts.push_back(out - data.data());
            if (++segment == last) break;
        } else {
            break;
        }
    }
    if (segment < first) return false;
    if (segment < last) starts.push_back(out - data.data());
    memset(out, 0, DATA_PAD);
    return true;
}

Status BaselineDecoder::read(const jpeg_decompress_struct &jpeg, const Region &region, RowSink &sink) {
    width = jpeg.image_width, height = jpeg.image_height, num_components = jpeg.num_components;
    const bool grey = num_components == 1;
    const int32_t h = grey ? 1 : jpeg.comp_info[0].h_samp_factor, v = grey
        ? 1 : jpeg.comp_info[0].v_samp_factor;
    mcu_width = 8 * h, mcu_height = 8 * v;
    mcus_per_row = divide_up(width, mcu_width), mcu_rows = divide_up(height, mcu_height);
    restart_interval = jpeg.restart_interval;

    // The region, and one more chroma sample on every side where upsampling reads it.
    const int32_t side = h - 1, above = v - 1;
    first_column = std::max(region.left - side, 0) / mcu_width;
    last_column = divide_up(std::min(region.left + region.width + side, width), mcu_width);
    first_row = std::max(region.top - above, 0) / mcu_height;
    last_row = divide_up(std::min(region.top + region.height + above, height), mcu_height);

    for (int c = 0; c < num_components; c++) {
        const jpeg_component_info &info = jpeg.comp_info[c];
        Component &component = components[c];
        component.h = c ? 1 : h, component.v = c ? 1 : v;
        component.dc = table(*jpeg.dc_huff_tbl_ptrs[info.dc_tbl_no], true, info.dc_tbl_no);
        component.ac = table(*jpeg.ac_huff_tbl_ptrs[info.ac_tbl_no], false, NUM_HUFF_TBLS + info.ac_tbl_no);
        if (!component.dc || !component.ac) return LLC_CORRUPT;
        const JQUANT_TBL &quantisation = *jpeg.quant_tbl_ptrs[info.quant_tbl_no];
        for (int k = 0; k < 64 + 16; k++)
            component.quantisation[k] = static_cast<int16_t>(quantisation.quantval[ZIGZAG[k]]);
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
    if (!collect_segments(jpeg, first, last)) return LLC_CORRUPT;
    num_bits = 0;
    if (!restart_interval) {
        bit_buffer = 0, position = data.data(), segment_end = data.data() + starts[1];
        memset(last_dc, 0, sizeof last_dc);
    }

    for (int32_t row = restart_interval
        ? static_cast<int32_t>(next_mcu / mcus_per_row) : 0; row < first_row; row++) {
        const Status status = decode_mcu_row<false>(row);
        if (status != LLC_OK) return status;
    }
    int32_t done = region.top;
    for (int32_t row = first_row; row < last_row; row++) {
        const Status status = decode_mcu_row<true>(row);
        if (status != LLC_OK) return status;
        transform(row);
        // The last row of a row of MCUs waits for the chroma below it.
        const int32_t complete = row == mcu_rows - 1 ? height : (row + 1) * mcu_height - above;
        const int32_t end = std::min(complete, region.top + region.height);
        if (end > done) {
            emit(region, row, done, end, sink);
            done = end;
        }
    }
    return LLC_OK;
}

template <bool WANTED>
Status BaselineDecoder::decode_mcu_row(int32_t row) {
    const int64_t row_begin = int64_t(row) * mcus_per_row, row_end = row_begin + mcus_per_row;
    if (WANTED)
        for (int c = 0; c < num_components; c++)
            memset(components[c].coefficients.data(), 0, components[c].coefficients.size() * sizeof(int16_t));
    BitReader reader{bit_buffer, num_bits, position};
    while (next_mcu < row_end) {
        const int32_t column = static_cast<int32_t>(next_mcu - row_begin);
        const bool wanted = WANTED && column >= first_column && column < last_column;
        if (column >= last_column && row == last_row - 1) break;
        if (restart_interval) {
            if (next_mcu % restart_interval == 0) {
                const int64_t segment = next_mcu / restart_interval - first_segment;
                if (segment + 1 >= static_cast<int64_t>(starts.size())) return LLC_CORRUPT;
                reader = {0, 0, data.data() + starts[segment]};
                segment_end = data.data() + starts[segment + 1];
                memset(last_dc, 0, sizeof last_dc);
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
                    if (!decode_dc(reader, *component.dc, last_dc[c])) return LLC_CORRUPT;
                    if (wanted) {
                        int16_t *block = &component.coefficients[size_t(64) * (y * component.blocks_per_row +
                                (column - first_column) * component.h + x)];
                        block[0] = static_cast<int16_t>(static_cast<uint32_t>(last_dc[c]) *
                                                        component.quantisation[0]);
                        if (!decode_ac<true>(reader, *component.ac, component.quantisation, block))
                            return LLC_CORRUPT;
                    } else if (!decode_ac<false>(reader, *component.ac, nullptr, nullptr)) {
                        return LLC_CORRUPT;
                    }
                }
            }
        }
        next_mcu++;
        // No byte of a segment may be missing or left over.
        const uint8_t *const read_end = reader.next - reader.count / 8;
        if (read_end > segment_end) return LLC_CORRUPT;
        if (restart_interval && next_mcu % restart_interval == 0 && read_end < segment_end)
            return LLC_CORRUPT;
    }
    bit_buffer = reader.buffer, num_bits = reader.count, position = reader.next;
    return LLC_OK;
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
