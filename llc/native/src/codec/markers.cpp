#include "markers.h"

#include <algorithm>
#include <cstring>

// Marker codes and layouts: ITU-T T.81, annex B.

namespace {

int32_t big16(const uint8_t *p) { return p[0] << 8 | p[1]; }

// Whether at least min_size bytes of data begin with a text.
bool starts_with(const uint8_t *data, int64_t size, const char *text, int64_t length, int64_t min_size) {
    return size >= min_size && memcmp(data, text, length) == 0;
}

enum Orientation { UPRIGHT, TURNED, UNSAID, UNCLEAR };

// The orientation in EXIF data: a TIFF header and its first directory.
Orientation exif_orientation(const uint8_t *tiff, int64_t size) {
    if (size < 8) return UNCLEAR;
    const bool little = tiff[0] == 'I';
    if (memcmp(tiff, little ? "II" : "MM", 2) != 0) return UNCLEAR;
    const auto get16 = [&](int64_t at) { return little ? tiff[at] | tiff[at + 1] << 8 : big16(tiff + at); };
    const auto get32 = [&](int64_t at) {
        return little ? get16(at) | int64_t(get16(at + 2)) << 16 : int64_t(get16(at)) << 16 | get16(at + 2);
    };
    const int64_t directory = get32(4);
    if (directory > size - 2) return UNCLEAR;
    const int64_t behind = directory + 2 + 12 * get16(directory);
    if (behind > size) return UNCLEAR;
    for (int64_t entry = directory + 2; entry < behind; entry += 12) {
        if (get16(entry) != 0x0112) continue;
        if (get16(entry + 2) != 3 || get32(entry + 4) != 1) return UNCLEAR;
        return get16(entry + 8) <= 1 ? UPRIGHT : TURNED;
    }
    return UNSAID;
}

}  // namespace

bool JpegMarkers::read_quantisation(const uint8_t *data, int64_t size) {
    while (size > 0) {
        const int wide = data[0] >> 4, number = data[0] & 15;
        if (wide > 1 || number > 3 || size < 1 + 64 * (wide + 1)) return false;
        for (int k = 0; k < 64; k++) {
            quantisation[number][k] = wide ? big16(data + 1 + 2 * k) : data[1 + k];
            if (quantisation[number][k] == 0) return false;
        }
        quantisation_defined[number] = true;
        data += 1 + 64 * (wide + 1), size -= 1 + 64 * (wide + 1);
    }
    return size == 0;
}

bool JpegMarkers::read_huffman(const uint8_t *data, int64_t size) {
    while (size > 0) {
        if (size < 17 || (data[0] >> 4) > 1 || (data[0] & 15) > 3) return false;
        const bool is_dc = data[0] >> 4 == 0;
        HuffmanCodes &table = (is_dc ? dc : ac)[data[0] & 15];
        memcpy(table.counts, data + 1, 16);
        int32_t total = 0;
        for (int bits = 0, code = 0; bits < 16; bits++, code <<= 1) {
            total += table.counts[bits], code += table.counts[bits];
            // more codes than there are; libjpeg refuses the code of ones only, as T.81 does
            if (code >= 2 << bits) return false;
        }
        if (total > 256 || size < 17 + total) return false;
        memcpy(table.values, data + 17, total);
        for (int i = 0; i < total; i++)
            // not of 8-bit samples
            if (is_dc ? table.values[i] > 11 : (table.values[i] & 15) > 10) return false;
        table.defined = true;
        data += 17 + total, size -= 17 + total;
    }
    return size == 0;
}

bool JpegMarkers::read_frame(const uint8_t *data, int64_t size) {
    if (size < 6 || num_components || data[0] != 8) return false;
    frame = data, height = big16(data + 1), width = big16(data + 3), num_components = data[5];
    if (height == 0 || width == 0 || std::max(height, width) > MAX_SIDE ||
        (num_components != 1 && num_components != 3) || size != 6 + 3 * num_components)
        return false;
    for (int c = 0; c < num_components; c++) {
        const uint8_t *row = data + 6 + 3 * c;
        components[c] = {row[0], uint8_t(row[1] >> 4), uint8_t(row[1] & 15), row[2], 0, 0};
        if (row[1] >> 4 < 1 || row[1] >> 4 > 4 || (row[1] & 15) < 1 || (row[1] & 15) > 4 || row[2] > 3)
            return false;
    }
    return true;
}

bool JpegMarkers::read_scan(const uint8_t *data, int64_t size) {
    if (!num_components || size < 1 || size != 4 + 2 * data[0]) return false;
    const uint8_t *rest = data + 1 + 2 * data[0];
    sequential = sequential && data[0] == num_components && rest[0] == 0 && rest[1] == 63 && rest[2] == 0;
    for (int c = 0; sequential && c < num_components; c++) {
        Component &component = components[c];
        component.dc = data[2 + 2 * c] >> 4, component.ac = data[2 + 2 * c] & 15;
        sequential = data[1 + 2 * c] == component.id && component.dc < 4 && component.ac < 4 &&
            dc[component.dc].defined && ac[component.ac].defined &&
            quantisation_defined[component.quantisation];
    }
    return true;
}

bool JpegMarkers::parse(const uint8_t *data, int64_t size) {
    *this = JpegMarkers();
    begin = data, end = data + size;
    bool jfif = false, adobe = false, adobe_ycc = false;
    if (size < 2 || data[0] != 0xff || data[1] != SOI) return false;
    for (const uint8_t *p = data + 2; !scan;) {
        if (end - p < 4 || p[0] != 0xff) return false;
        const int marker = p[1];
        if (marker == 0xff) {  // fill bytes may stand before any marker
            p++;
            continue;
        }
        const int64_t length = big16(p + 2) - 2;
        p += 4;
        if (length < 0 || end - p < length) return false;
        bool fine = true;
        if (marker == SOF0 || marker == SOF1 || marker == SOF2) {
            fine = read_frame(p, length);
            sequential = marker != SOF2;
        } else if (marker == DHT) {
            fine = read_huffman(p, length);
        } else if (marker == DQT) {
            fine = read_quantisation(p, length);
        } else if (marker == DRI) {
            fine = length == 2;
            if (fine) restart_interval = big16(p);
        } else if (marker == SOS) {
            fine = read_scan(p, length);
            scan = p + length;
        } else if (marker == APP0) {
            jfif = jfif || starts_with(p, length, "JFIF\0", 5, 14);
        } else if (marker == APP0 + 14) {
            if (starts_with(p, length, "Adobe", 5, 12)) adobe = true, adobe_ycc = p[11] == 1;
        } else if ((marker < APP0 || marker > APP0 + 15) && marker != COM) {
            return false;  // other kinds of coding, or a marker that does not belong here
        }
        if (!fine) return false;
        p += length;
    }
    grey = num_components == 1;
    // A scan of a single component is not interleaved, whatever its sampling factors are.
    if (grey) components[0].across = components[0].down = 1;
    mcu_columns = divide_up(width, 8 * components[0].across);
    mcu_rows = divide_up(height, 8 * components[0].down);
    // The same decision as libjpeg's.
    ycc = num_components == 3 && (jfif ||
        (adobe ? adobe_ycc : components[0].id == 1 && components[1].id == 2 && components[2].id == 3));
    return true;
}

bool JpegMarkers::is_common() const {
    const Component *c = components;
    return sequential && (grey || (ycc && c[0].across <= 2 && c[0].down <= 2 && c[1].across == 1 &&
        c[1].down == 1 && c[2].across == 1 && c[2].down == 1));
}

bool JpegMarkers::is_upright() const {
    Orientation exif = UNSAID;
    bool xmp = false;
    for (const uint8_t *p = begin + 2; p < scan;) {
        if (p[1] == 0xff) {
            p++;
            continue;
        }
        const int64_t length = big16(p + 2) - 2;
        if (p[1] == APP0 + 1) {
            if (starts_with(p + 4, length, "Exif\0\0", 6, 6))
                exif = exif == UNSAID ? exif_orientation(p + 10, length - 6) : UNCLEAR;
            else
                xmp = xmp || memmem(p + 4, length, "Orientation", 11);
        }
        p += 4 + length;
    }
    return exif == UPRIGHT || (exif == UNSAID && !xmp);  // EXIF counts before XMP
}

bool JpegMarkers::image_ends() const {
    const uint8_t *p = scan;
    while ((p = static_cast<const uint8_t *>(memchr(p, 0xff, end - p))) && end - p >= 2) {
        if (p[1] == EOI) return true;
        if (p[1] != 0 && p[1] != 0xff && (p[1] < RST0 || p[1] >= RST0 + 8)) return false;
        p += p[1] == 0xff ? 1 : 2;
    }
    return false;
}
