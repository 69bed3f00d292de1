#include "recode.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "entropy.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

// The inner loops are compiled a second time for CPUs that have AVX2 and shift by any count in one
// instruction, and chosen at run time by the CPU's features ("arch=haswell" would check the vendor too). They
// are a tenth faster, with the same results. AVX-512 adds nothing.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 12
#define FOR_EVERY_CPU __attribute__((flatten, target_clones("arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_CPU __attribute__((flatten, target_clones("avx2", "default")))
#endif
#else
#define FOR_EVERY_CPU
#endif
#define INLINE inline __attribute__((always_inline))

namespace {

// ---- coefficients -----------------------------------------------------------------------------------------

// The nearest integer, halves to even; |value| < 2^22. The same result on every CPU, and eight at a time.
INLINE int32_t nearest(float value) {
    const float sum = value + 12582912.0f;  // 1.5 * 2^23
    int32_t bits;
    memcpy(&bits, &sum, 4);
    return bits - 0x4b400000;
}

// Clamps to what the standard Huffman codes can express. No 8-bit picture has larger values, but invalid data
// may.
INLINE int16_t limited(int32_t coefficient) { return std::clamp(coefficient, -1023, 1023); }

// Coefficients from `used` on are 0.
INLINE void requantise(int16_t *block, const float *factor, int used) {
    for (int begin = 0; begin < used; begin += 16)
        for (int k = begin; k < begin + 16; k++) block[k] = limited(nearest(block[k] * factor[k]));
}

// 8 numbers; the compiler splits them for CPUs with shorter vectors
typedef float Line __attribute__((vector_size(32)));

typedef int16_t ShortLine __attribute__((vector_size(16)));

// Coefficients or intermediate values, row by row.
struct Square {
    Line row[8];
};

// Maps of the coefficients of 8 samples (T.81, A.3.3, as an orthonormal matrix), as [from][to].
struct Maps {
    // From two blocks' 16 samples to the 8 averages of neighbours, one map per block. As one block mirrors
    // the other, the maps differ in sign where from + to is odd.
    Square halve[2];
    Square replicate[8];  // [n]: sample n - 1 in place of all after it

    Maps() {
        double dct[8][8];
        for (int u = 0; u < 8; u++)
            for (int x = 0; x < 8; x++)
                dct[u][x] = (u ? 0.5 : std::sqrt(0.125)) * std::cos((2 * x + 1) * u * std::acos(-1.0) / 16);
        for (int from = 0; from < 8; from++)
            for (int to = 0; to < 8; to++) {
                double sum = 0;
                for (int x = 0; x < 4; x++) sum += dct[to][x] * (dct[from][2 * x] + dct[from][2 * x + 1]) / 2;
                halve[0].row[from][to] = sum;
                halve[1].row[from][to] = (from + to) % 2 ? -sum : sum;
                for (int n = 1; n < 8; n++) {
                    sum = 0;
                    for (int x = 0; x < 8; x++) sum += dct[to][x] * dct[from][std::min(x, n - 1)];
                    replicate[n].row[from][to] = sum;
                }
            }
    }
};

// In place; rows from `used` on are 0.
INLINE void map_rows(const Square &map, Square &square, int used) {
    Line sum[8] = {};
    for (int from = 0; from < used; from++)
        for (int to = 0; to < 8; to++) sum[to] += map.row[from][to] * square.row[from];
    for (int to = 0; to < 8; to++) square.row[to] = sum[to];
}

// In place; columns from `used` on are 0.
INLINE void map_columns(const Square &map, Square &square, int used) {
    for (int i = 0; i < 8; i++) {
        Line sum = {};
        for (int from = 0; from < used; from++) sum += square.row[i][from] * map.row[from];
        square.row[i] = sum;
    }
}

// Merges two blocks, `second` below `first`, into the first. Rows from `used` on are 0.
INLINE void halve_rows(const Maps &maps, Square &first, const Square &second, int used) {
    Line sum[8] = {};
    for (int from = 0; from < used; from++) {
        const Line other = from % 2 ? -second.row[from] : second.row[from];
        // the sources of even and odd rows
        const Line even = first.row[from] + other, odd = first.row[from] - other;
        for (int to = 0; to < 8; to++) sum[to] += maps.halve[0].row[from][to] * (to % 2 ? odd : even);
    }
    for (int to = 0; to < 8; to++) first.row[to] = sum[to];
}

// The same for two blocks side by side; columns from `used` on are 0.
INLINE void halve_columns(const Maps &maps, Square &first, const Square &second, int used) {
    for (int i = 0; i < 8; i++) {
        Line sum = {};
        for (int from = 0; from < used; from++)
            sum += first.row[i][from] * maps.halve[0].row[from] +
                second.row[i][from] * maps.halve[1].row[from];
        first.row[i] = sum;
    }
}

// ---- writing ----------------------------------------------------------------------------------------------

// The encoding of a symbol, by its value: its code, with room for the number after it, and the total number
// of bits.
struct Encoder {
    struct Code {
        uint32_t code, bits;
    };
    Code symbols[256];

    void prepare(const HuffmanCodes &table) {
        memset(symbols, 0, sizeof symbols);
        for (uint32_t length = 1, next = 0, k = 0; length <= 16; length++, next <<= 1)
            for (int i = 0; i < table.counts[length - 1]; i++, k++) {
                // for DC this is the whole value, which is below 16
                const uint32_t count = table.values[k] & 15;
                symbols[table.values[k]] = {next++ << count, length + count};
            }
    }
};

constexpr int64_t MOST_BLOCK_BYTES = 256;  // 64 codes and numbers of up to 27 bits, and a few over

// Writes codes and numbers as bytes into scratch memory.
struct BitSink {
    uint8_t *next;
    uint64_t bits = 0, held = 0;  // bits that do not fill a byte yet, on top, and their number

    INLINE void put(Encoder::Code symbol, uint32_t number) {
        held += symbol.bits;
        bits |= uint64_t(symbol.code | number) << ((64 - held) & 63);
        const uint64_t bytes = first_on_top(bits);
        memcpy(next, &bytes, 8);
        next += held >> 3;
        bits <<= held & 56;
        held &= 7;
    }

    // Fills the last byte up with ones.
    void finish() {
        if (held) *next++ = bits >> 56 | 0xff >> held;
        bits = held = 0;
    }
};

class Output {
public:
    Output(uint8_t *begin, uint8_t *end) : next(begin), end(end) {}

    uint8_t *next;

    bool has_room(int64_t bytes) const { return end - next >= bytes; }

    void word(int value) { *next++ = value >> 8, *next++ = value & 255; }

    // Stuffs a zero after every 0xff. There must be room for twice as many bytes.
    void stuffed(const uint8_t *data, const uint8_t *data_end) {
        while (data < data_end) {
            const auto *ff = static_cast<const uint8_t *>(memchr(data, 0xff, data_end - data));
            const int64_t count = (ff ? ff + 1 : data_end) - data;
            memcpy(next, data, count);
            next += count, data += count;
            if (ff) *next++ = 0;
        }
    }

private:
    uint8_t *end;
};

// Bit k: whether block[k] is not 0.
INLINE uint64_t nonzero(const int16_t *block) {
    uint64_t mask = 0;
#if defined(__SSE2__)
    const __m128i zero = _mm_setzero_si128();
    for (int k = 0; k < 64; k += 16) {
        const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i *>(block + k));
        const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i *>(block + k + 8));
        const uint64_t zeros =
            _mm_movemask_epi8(_mm_packs_epi16(_mm_cmpeq_epi16(a, zero), _mm_cmpeq_epi16(b, zero)));
        mask |= (~zeros & 0xffff) << k;
    }
#else
    for (int k = 0; k < 64; k++) mask |= uint64_t(block[k] != 0) << k;
#endif
    return mask;
}

INLINE int bit_length(uint32_t value) { return value ? 32 - __builtin_clz(value) : 0; }

// The bits of `number`, which follow a code that says how many they are.
INLINE uint32_t number_bits(int32_t number, int count) {
    return (number + (number >> 31)) & ((1u << count) - 1);
}

INLINE void write_dc(BitSink &out, const Encoder &dc, int32_t difference) {
    const int count = bit_length(std::abs(difference));
    out.put(dc.symbols[count], number_bits(difference, count));
}

INLINE void write_block(BitSink &out, const Encoder &dc, const Encoder &ac, int32_t &last_dc,
    const int16_t *block) {
    write_dc(out, dc, block[0] - last_dc);
    last_dc = block[0];
    int behind = 1;
    for (uint64_t left = nonzero(block) & ~uint64_t(1); left; left &= left - 1) {
        const int k = __builtin_ctzll(left);
        int run = k - behind;
        for (; run > 15; run -= 16) out.put(ac.symbols[0xf0], 0);
        const int count = bit_length(std::abs(block[k]));
        out.put(ac.symbols[run << 4 | count], number_bits(block[k], count));
        behind = k + 1;
    }
    if (behind < 64) out.put(ac.symbols[0], 0);
}

// The same DC as in the block before and no AC: the shortest block there is.
INLINE void write_empty_block(BitSink &out, const Encoder &dc, const Encoder &ac) {
    write_dc(out, dc, 0);
    out.put(ac.symbols[0], 0);
}

// ---- both -------------------------------------------------------------------------------------------------

// Positions in a block, by zigzag position.
struct Order {
    uint8_t same[80];  // damaged data reads up to 16 beyond
    uint8_t used_rows[65], used_columns[65];  // of a block with this many zigzag positions in use

    Order() {
        used_rows[0] = used_columns[0] = 0;
        for (int k = 0; k < 80; k++) same[k] = std::min(k, 63);
        for (int k = 0; k < 64; k++) {
            const int row = ZIGZAG[k] / 8, column = ZIGZAG[k] % 8;
            used_rows[k + 1] = std::max<int>(used_rows[k], row + 1), used_columns[k + 1] =
                std::max<int>(used_columns[k], column + 1);
        }
    }
};

const Order ORDER;
const Maps MAPS;

// A recoding in progress. An MCU row of the result has 16 rows of pixels, one of the source 8 or 16.
struct Recoding {
    const JpegMarkers &source;
    ScanData scan;
    const HuffmanTable *source_dc[3], *source_ac[3];
    BitReader in;
    int32_t last_dc[3] = {};
    int64_t interval = 0;               // of restarts
    int32_t left_in_interval = 0;       // MCUs
    Encoder dc[2], ac[2];
    int32_t out_interval, left_in_out_interval;  // MCUs between restart markers, 0: there are none
    std::vector<uint8_t> scratch;       // an encoded MCU row of the result
    std::vector<uint8_t *> ends;        // positions in it that a marker follows
    BitSink out;
    int32_t last_written_dc[3] = {};
    bool halve_rows, halve_columns;     // of chroma samples
    int32_t columns, rows;              // MCUs of the result
    Square step[3];                     // of the source; for chroma that is halved
    // in zigzag order: what coefficients, or halved chroma times `step`, are multiplied by
    float factor[3][64];
    // Each component's blocks of two rows, in zigzag order; those of chroma that is to be halved in rows.
    std::vector<int16_t> coefficients[3];
    std::vector<uint8_t> used[3];       // how many zigzag positions of each of these blocks are not 0

    explicit Recoding(const JpegMarkers &source) : source(source) {}

    size_t block_index(int c, int row, int32_t column) const {
        return size_t(row) * source.mcu_columns * source.components[c].across + column;
    }
    int16_t *block(int c, int row, int32_t column) {
        return &coefficients[c][block_index(c, row, column) * 64];
    }
    uint8_t &used_of(int c, int row, int32_t column) { return used[c][block_index(c, row, column)]; }
};

// One MCU row of the source. It has luma rows first_row ..., and chroma row first_row.
FOR_EVERY_CPU bool read_row(Recoding &task, int first_row) {
    const JpegMarkers &source = task.source;
    for (int c = 0; c < source.num_components; c++) {
        const size_t begin = task.block_index(c, first_row, 0);
        const size_t end = task.block_index(c, first_row + source.components[c].down, 0);
        memset(&task.coefficients[c][begin * 64], 0, (end - begin) * 64 * sizeof(int16_t));
    }
    BitReader in = task.in;
    for (int32_t x = 0; x < source.mcu_columns; x++) {
        if (source.restart_interval && task.left_in_interval-- == 0) {
            if (!in.is_at_end() || !task.scan.begin_segment(task.interval++, in)) return false;
            task.left_in_interval = source.restart_interval - 1;
            std::fill_n(task.last_dc, 3, 0);
        }
        for (int c = 0; c < source.num_components; c++) {
            const int across = source.components[c].across, down = source.components[c].down;
            const uint8_t *order = c && (task.halve_rows || task.halve_columns) ? ZIGZAG : ORDER.same;
            for (int v = 0; v < down; v++)
                for (int h = 0; h < across; h++) {
                    int16_t *block = task.block(c, first_row + v, x * across + h);
                    if (!read_dc(in, *task.source_dc[c], task.last_dc[c])) return false;
                    block[0] = task.last_dc[c];
                    const uint32_t used = read_ac(in, *task.source_ac[c],
                        [=](uint32_t k, int32_t value) { block[order[k]] = value; });
                    if (!used || used > 64) return false;
                    task.used_of(c, first_row + v, x * across + h) = used;
                }
        }
        if (!in.is_within()) return false;
    }
    task.in = in;
    return true;
}

// A block's samples beyond the picture, from the `real`-th on, must not become half of an average. Where they
// would, they are set to the last sample of the picture.
INLINE bool must_mend(int32_t real) { return real < 8 && real % 2 != 0; }

// Chroma of one MCU of the result, from 2 x 2, 2 x 1 or 1 x 2 blocks. num_rows: how many rows of blocks there
// are, 1 or 2. If the second of two blocks is missing, it is completely outside the picture; the first one is
// mirrored.
INLINE void halve_chroma(Recoding &task, int c, int32_t row, int32_t column, int num_rows, int16_t *block) {
    const int32_t first = column << task.halve_columns;
    const int num_columns = task.halve_columns && first + 1 < task.source.mcu_columns ? 2 : 1;
    int used_rows = 0, used_columns = 0;
    for (int v = 0; v < num_rows; v++)
        for (int h = 0; h < num_columns; h++) {
            const int used = task.used_of(c, v, first + h);
            used_rows = std::max<int>(used_rows, ORDER.used_rows[used]);
            used_columns = std::max<int>(used_columns, ORDER.used_columns[used]);
        }
    Square columns[2];
    for (int h = 0; h < num_columns; h++) {
        Square rows[2];
        int used = used_rows;
        for (int v = 0; v < num_rows; v++) {
            const int16_t *coefficients = task.block(c, v, first + h);
            for (int i = 0; i < used_rows; i++) {
                ShortLine line;
                memcpy(&line, coefficients + 8 * i, sizeof line);
                rows[v].row[i] = __builtin_convertvector(line, Line) * task.step[c].row[i];
            }
            for (int i = used_rows; i < 8; i++) rows[v].row[i] = Line{};
            const int32_t real = task.source.height - 8 * (2 * row + v);
            if (task.halve_rows && must_mend(real))
                map_rows(MAPS.replicate[real], rows[v], used_rows), used = 8;
        }
        if (task.halve_rows) {
            if (num_rows == 1)
                for (int i = 0; i < 8; i++) rows[1].row[i] = i % 2 ? -rows[0].row[i] : rows[0].row[i];
            halve_rows(MAPS, rows[0], rows[1], used);
        }
        columns[h] = rows[0];
    }
    if (task.halve_columns) {
        int used = used_columns;
        for (int h = 0; h < num_columns; h++) {
            const int32_t real = task.source.width - 8 * (first + h);
            if (must_mend(real)) map_columns(MAPS.replicate[real], columns[h], used_columns), used = 8;
        }
        if (num_columns == 1)
            for (int i = 0; i < 8; i++)
                columns[1].row[i] = columns[0].row[i] * Line{1, -1, 1, -1, 1, -1, 1, -1};
        halve_columns(MAPS, columns[0], columns[1], used);
    }
    float values[64], ordered[64];
    memcpy(values, &columns[0], sizeof values);
    for (int k = 0; k < 64; k++) ordered[k] = values[ZIGZAG[k]];
    for (int k = 0; k < 64; k++) block[k] = limited(nearest(ordered[k] * task.factor[c][k]));
}

// MCU row `row` of the result; num_rows: how many rows of chroma blocks of the source it has.
FOR_EVERY_CPU void write_row(Recoding &task, int32_t row, int num_rows) {
    const int32_t luma_rows = divide_up(task.source.height, 8), luma_columns =
        divide_up(task.source.width, 8);
    BitSink out = task.out;
    for (int32_t column = 0; column < task.columns; column++) {
        if (task.out_interval && task.left_in_out_interval-- == 0) {
            out.finish();
            task.ends.push_back(out.next);
            std::fill_n(task.last_written_dc, 3, 0);
            task.left_in_out_interval = task.out_interval - 1;
        }
        for (int v = 0; v < 2; v++)
            for (int h = 0; h < 2; h++) {
                if (2 * row + v < luma_rows && 2 * column + h < luma_columns) {
                    int16_t *block = task.block(0, v, 2 * column + h);
                    requantise(block, task.factor[0], task.used_of(0, v, 2 * column + h));
                    write_block(out, task.dc[0], task.ac[0], task.last_written_dc[0], block);
                } else {  // outside the picture, to fill the MCU
                    write_empty_block(out, task.dc[0], task.ac[0]);
                }
            }
        if (task.source.grey)
            for (int c = 1; c < 3; c++) write_empty_block(out, task.dc[1], task.ac[1]);
        for (int c = 1; c < task.source.num_components; c++) {
            int16_t halved[64], *block = halved;
            if (task.halve_rows || task.halve_columns) {
                halve_chroma(task, c, row, column, num_rows, block);
            } else {
                block = task.block(c, 0, column);
                requantise(block, task.factor[c], task.used_of(c, 0, column));
            }
            write_block(out, task.dc[1], task.ac[1], task.last_written_dc[c], block);
        }
    }
    task.out = out;
}

}  // namespace

EncodeStatus recode(const JpegMarkers &source, const JpegMarkers &model, uint8_t *buffer, int64_t capacity,
    int64_t &length) {
    Output out(buffer, buffer + capacity);
    // Most files have the same tables as the one before, and making them takes a twentieth of the time.
    static thread_local HuffmanTables tables;
    const auto task_on_heap = std::make_unique<Recoding>(source);
    Recoding &task = *task_on_heap;
    task.halve_columns = source.components[0].across == 1, task.halve_rows = source.components[0].down == 1;
    task.columns = divide_up(source.width, 16), task.rows = divide_up(source.height, 16);
    for (int c = 0; c < source.num_components; c++) {
        const Component &component = source.components[c];
        task.source_dc[c] = tables.table(source, true, component.dc);
        task.source_ac[c] = tables.table(source, false, component.ac);
        const uint16_t *before = source.quantisation[component.quantisation], *after =
            model.quantisation[c > 0];
        const bool halved = c > 0 && (task.halve_rows || task.halve_columns);
        for (int k = 0; k < 64; k++) {
            task.step[c].row[ZIGZAG[k] / 8][ZIGZAG[k] % 8] = before[k];
            task.factor[c][k] = (halved ? 1.0f : before[k]) / after[k];
        }
        task.coefficients[c].resize(task.block_index(c, 2, 0) * 64);
        task.used[c].resize(task.block_index(c, 2, 0));
    }
    for (int number = 0; number < 2; number++)
        task.dc[number].prepare(model.dc[number]), task.ac[number].prepare(model.ac[number]);

    task.scratch.resize(size_t(6) * task.columns * MOST_BLOCK_BYTES + 8);
    task.out.next = task.scratch.data();
    task.out_interval = task.left_in_out_interval = model.restart_interval;

    const int64_t header_size = model.scan - model.begin, size_at = model.frame + 1 - model.begin;
    if (!out.has_room(header_size)) return LLC_TOO_LARGE;
    memcpy(buffer, model.begin, header_size);
    out.next = buffer + size_at, out.word(source.height), out.word(source.width);
    out.next = buffer + header_size;
    const int64_t mcus = int64_t(source.mcu_columns) * source.mcu_rows, interval = source.restart_interval;
    const int64_t num_intervals = interval ? (mcus + interval - 1) / interval : 1;
    if (!task.scan.collect(source, 0, num_intervals) || !task.scan.is_clean()) return LLC_NOT_ORDINARY;
    if (!interval) task.scan.begin_segment(0, task.in);
    int num_markers = 0;
    for (int32_t row = 0, source_row = 0; row < task.rows; row++) {
        int num_rows = 0;
        for (; num_rows < (task.halve_rows ? 2 : 1) && source_row < source.mcu_rows; source_row++)
            if (!read_row(task, num_rows++)) return LLC_NOT_ORDINARY;
        write_row(task, row, num_rows);
        if (row + 1 == task.rows) task.out.finish();
        const uint8_t *begin = task.scratch.data();
        if (!out.has_room(2 * (task.out.next - begin) + 2 * int64_t(task.ends.size()) + 2))
            return LLC_TOO_LARGE;
        for (const uint8_t *end : task.ends) {
            out.stuffed(begin, end);
            out.word(0xff00 | (RST0 + num_markers++ % 8));
            begin = end;
        }
        out.stuffed(begin, task.out.next);
        task.ends.clear();
        task.out.next = task.scratch.data();
    }
    if (!task.in.is_at_end()) return LLC_NOT_ORDINARY;
    out.word(0xff00 | EOI);
    length = out.next - buffer;
    return LLC_ENCODED;
}
