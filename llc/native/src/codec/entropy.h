// The entropy-coded data of sequential JPEGs: segments, bits, Huffman codes and blocks (ITU-T T.81, annex F).
#pragma once
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "markers.h"

// 8 bytes in memory <-> a number whose highest byte is the first one.
inline uint64_t first_on_top(uint64_t bytes) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return __builtin_bswap64(bytes);
#else
    return bytes;
#endif
}

// The bits of a segment; the next one is the highest of `buffer`.
struct BitReader {
    uint64_t buffer = 0, count = 0;  // at least `count` bits of the buffer are valid
    const uint8_t *next = nullptr, *end = nullptr;

    // Refills to at least 56 bits, without a branch: one on `count` would be mispredicted too often, and this
    // load does not depend on it (Giesen, "Reading bits in far too many ways", part 2, variant 4).
    inline void fill() {
        uint64_t bytes;
        memcpy(&bytes, next, 8);
        buffer |= first_on_top(bytes) >> count;
        next += (63 - count) >> 3;
        count |= 56;
    }

    inline void drop(uint64_t bits) {
        buffer <<= bits;
        count -= bits;
    }

    // The value of `size` bits that stand `skipped` bits from here: negative ones begin with a 0 (F.2.2.1).
    inline int32_t value(uint64_t skipped, uint64_t size) const {
        const uint64_t bits = buffer << skipped;
        const int64_t magnitude = bits >> 1 >> (63 - size);
        // No branch, because the sign is as good as random.
        const int64_t is_negative = static_cast<int64_t>(~bits) >> 63;
        return static_cast<int32_t>(magnitude - (is_negative & ~(~uint64_t(0) << size)));
    }

    // Whether all bits read so far belong to the segment.
    inline bool is_within() const { return next - count / 8 <= end; }

    // Whether less than a byte of the segment is left.
    inline bool is_at_end() const { return next - count / 8 == end; }
};

// The data of a scan without its stuffed zeros. A segment lies between two restart markers.
class ScanData {
public:
    // Copies the segments [first, last), or as many of them as there are. False if the restart markers are
    // not in order, or none of these segments exists.
    bool collect(const JpegMarkers &markers, int64_t first, int64_t last);

    // Moves to a segment's first bit; the reader may read an MCU beyond its end. False if it does not exist.
    bool begin_segment(int64_t segment, BitReader &reader) const;

    // Whether the end of the image followed the last segment, and no marker had fill bytes before it.
    bool is_clean() const { return !has_fill && end_marker == EOI; }

    // Whether a marker followed the last segment.
    bool is_complete() const { return end_marker; }

private:
    std::vector<uint8_t> data;
    std::vector<int64_t> starts;  // segment first + i lies at [starts[i], starts[i + 1])
    int64_t first;
    bool has_fill;
    int end_marker;  // what followed the last segment; 0: the data ended without a marker
};

struct HuffmanTable {
    // Looked up at once; longer codes are rare. With 11 bits recoding is slower: the L1 cache is full.
    static constexpr int LOOKUP_BITS = 10;

    HuffmanCodes source;

    // By the next LOOKUP_BITS bits: length of code and value bits (8), symbol (8), and for AC the value (16)
    // where it is not 0 and all its bits are within those looked up; 0 for longer codes.
    uint32_t entries[1 << LOOKUP_BITS];
    // AC, by the next LOOKUP_BITS bits: the one or two coefficients that these bits hold completely.
    struct Pair {
        int16_t first, second;  // values; 0 where there is none
        // Steps from the last coefficient to them; first_step is END if the bits hold neither a complete
        // coefficient nor the end of the block.
        uint8_t first_step, second_step;
        // from the last coefficient to the last of these; END more where the block ends with them
        uint8_t step;
        uint8_t length;  // their bits
    };
    static constexpr uint32_t END = 128;  // more than any position in a block
    Pair pairs[1 << LOOKUP_BITS];
    // Codes of length l are those below end[l] (16 bits, left-aligned); value index = code + offset[l].
    uint32_t end[17];
    int32_t offset[17];

    HuffmanTable(const HuffmanCodes &codes, bool is_dc);

    // Length of code and value bits (8), symbol (8) of a code that is not in `entries`; 0 if there is no such
    // code.
    __attribute__((noinline)) uint32_t long_code(uint64_t bits) const;

    inline uint32_t next(const BitReader &reader) const {
        const uint32_t entry = entries[reader.buffer >> (64 - LOOKUP_BITS)];
        return __builtin_expect(entry != 0, 1) ? entry : long_code(reader.buffer);
    }
};

// The tables of the current image. They are made again only if the next image has other ones.
class HuffmanTables {
public:
    const HuffmanTable *table(const JpegMarkers &markers, bool is_dc, int number);

private:
    std::unique_ptr<HuffmanTable> kept[2][4];
};

// Adds the difference that comes next to `last`. False if the data is damaged.
inline bool read_dc(BitReader &reader, const HuffmanTable &table, int32_t &last) {
    reader.fill();
    const uint32_t entry = table.next(reader);
    const int32_t length = entry & 255, size = entry >> 8 & 15;
    // wraps in damaged data
    last = static_cast<int32_t>(static_cast<uint32_t>(last) + reader.value(length - size, size));
    reader.drop(length);
    return entry;
}

// Reads the coefficients of a block after the first, and calls store(k, value) in the order of their zigzag
// positions k. Values may be 0, and in damaged data k may be up to 16 beyond the block. Returns the position
// behind the last coefficient, above 64 if that is beyond the block; 0 if there is no such code.
template <typename Store>
inline uint32_t read_ac(BitReader &reader, const HuffmanTable &table, Store store) {
    uint32_t k = 0;  // the last coefficient
    for (;;) {
        reader.fill();
        for (int i = 0; i < 4; i++) {  // 4 * LOOKUP_BITS bits at most
            const HuffmanTable::Pair pair = table.pairs[reader.buffer >> (64 - HuffmanTable::LOOKUP_BITS)];
            const uint32_t first = k + pair.first_step, second = k + pair.second_step;
            if (first >= 63) break;  // also where a second one would belong to the next block
            reader.drop(pair.length);
            store(first, pair.first);
            store(second, pair.second);
            k += pair.step;
            if (k >= 63) return k % HuffmanTable::END + 1;
        }
        reader.fill();
        const uint32_t entry = table.next(reader);
        if (!entry) return 0;
        const uint32_t length = entry & 255, symbol = entry >> 8 & 255, size = symbol & 15;
        if (!size && symbol != 0xf0) {
            reader.drop(length);
            return k + 1;
        }
        k += (symbol >> 4) + 1;
        store(k, reader.value(length - size, size));  // 0 for 16 zeros
        reader.drop(length);
        if (k >= 63) return k + 1;
    }
}
