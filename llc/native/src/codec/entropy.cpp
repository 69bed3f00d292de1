#include "entropy.h"

namespace {

constexpr int64_t PAD = 4096;  // more than an MCU of damaged data can take

bool is_end(uint32_t entry) { return entry && !(entry >> 8); }

}  // namespace

bool ScanData::collect(const JpegMarkers &markers, int64_t first, int64_t last) {
    const uint8_t *in = markers.scan, *const end = markers.end;
    data.resize(end - in + PAD);
    uint8_t *out = data.data();
    starts.assign(1, 0);
    this->first = first;
    has_fill = false, end_marker = 0;
    int64_t segment = 0;
    const uint64_t ones = 0x0101010101010101, highs = ones << 7;
    while (in < end && !end_marker) {
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
        if (marker == 0xff) {
            has_fill = true, in++;
        } else if (marker == 0) {
            *out++ = 0xff, in += 2;
        } else if (markers.restart_interval && marker >= RST0 && marker < RST0 + 8) {
            if (marker != RST0 + segment % 8) return false;
            in += 2;
            if (segment < first)
                out = data.data();
            else
                starts.push_back(out - data.data());
            if (++segment == last) end_marker = marker;
        } else {
            end_marker = marker;
        }
    }
    if (segment < first) return false;
    if (segment < last) starts.push_back(out - data.data());
    memset(out, 0, PAD);
    return true;
}

bool ScanData::begin_segment(int64_t segment, BitReader &reader) const {
    const int64_t i = segment - first;
    if (i + 1 >= static_cast<int64_t>(starts.size())) return false;
    reader = {0, 0, data.data() + starts[i], data.data() + starts[i + 1]};
    return true;
}

HuffmanTable::HuffmanTable(const HuffmanCodes &codes, bool is_dc) : source(codes) {
    memset(entries, 0, sizeof entries);
    uint32_t code = 0;
    int32_t index = 0;
    for (int length = 1; length <= 16; length++, code <<= 1) {
        offset[length] = index - static_cast<int32_t>(code);
        for (int i = 0; i < codes.counts[length - 1]; i++, code++, index++) {
            if (length > LOOKUP_BITS) continue;
            const int symbol = codes.values[index], size = symbol & 15, room = LOOKUP_BITS - length;
            for (uint32_t rest = 0; rest < 1u << room; rest++) {
                uint32_t entry = (length + size) | symbol << 8;
                if (!is_dc && size && size <= room) {
                    int32_t value = rest >> (room - size);
                    if (value < 1 << (size - 1)) value -= (1 << size) - 1;
                    entry |= static_cast<uint32_t>(value) << 16;
                }
                entries[code << room | rest] = entry;
            }
        }
        end[length] = code << (16 - length);
    }
    for (uint32_t window = 0; !is_dc && window < 1 << LOOKUP_BITS; window++) {
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
        entry = entries[window << pair.length & ((1 << LOOKUP_BITS) - 1)];
        if (pair.length + (entry & 255) > LOOKUP_BITS) continue;
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

uint32_t HuffmanTable::long_code(uint64_t bits) const {
    const uint32_t next = bits >> 48;
    for (int length = LOOKUP_BITS + 1; length <= 16; length++)
        if (next < end[length]) {
            const int symbol = source.values[(next >> (16 - length)) + offset[length]];
            return (length + (symbol & 15)) | symbol << 8;
        }
    return 0;
}

const HuffmanTable *HuffmanTables::table(const JpegMarkers &markers, bool is_dc, int number) {
    const HuffmanCodes &codes = (is_dc ? markers.dc : markers.ac)[number];
    std::unique_ptr<HuffmanTable> &table = kept[is_dc][number];
    if (!table || memcmp(&table->source, &codes, sizeof codes))
        table = std::make_unique<HuffmanTable>(codes, is_dc);
    return table.get();
}
