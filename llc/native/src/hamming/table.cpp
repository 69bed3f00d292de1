// A table of the nearest class of every possible short code, for decoding by one lookup.
//
// While it is built, the entry of a code is distance << TABLE_CLASS_BITS | class, for the nearest class known
// so far. At first only the class codes' own entries are known, with distance 0. Then, for each bit, every
// two codes that differ in this bit alone exchange their nearest classes, one bit further away. A distance is
// a sum over bits, so after all bits, in any order, every class has reached every code. The minimum of two
// entries is the smaller distance and, at equal distances, the lower class.
#include <algorithm>

#include "cpu.h"
#include "hamming.h"
#include "kernels.h"

namespace {

constexpr int BLOCK_BITS = 12;  // the lowest bits are done in blocks that fit in the L1 cache: 16 KB
// Of the higher ones, so many are done together: 2^4 rows of a cache block's size at a time.
constexpr int GROUP_BITS = 4, ROW_BITS = BLOCK_BITS - GROUP_BITS;
constexpr int64_t ENTRIES_PER_THREAD = 1 << 16;
constexpr int64_t CODES_PER_THREAD = 1 << 18;
constexpr int64_t CODES_PER_PIECE = 1 << 18;

int32_t code_of(const uint8_t *code, int32_t code_size, int32_t num_bits) {
    uint32_t word = 0;
    for (int32_t byte = 0; byte < std::min(code_size, 4); byte++)
        word |= uint32_t(code[byte]) << (24 - 8 * byte);
    return int32_t(uint64_t(word) >> (32 - num_bits));
}

// The bits [0, num_bits) of a block of 2^num_bits entries.
void grow_block(const HammingKernels &kernels, int32_t *entries, int num_bits) {
    const int64_t n = int64_t(1) << num_bits;
    int bit = 0;
    if (num_bits >= 3) kernels.grow_low(entries, n), bit = 3;
    for (; bit < num_bits; bit++) {
        const int64_t half = int64_t(1) << bit;
        for (int64_t first = 0; first < n; first += 2 * half)
            kernels.grow(entries + first, entries + first + half, half);
    }
}

// `num_bits` bits of 2^num_bits rows of 2^ROW_BITS entries, which begin `stride` entries apart.
void grow_rows(const HammingKernels &kernels, int32_t *entries, int64_t stride, int num_bits) {
    for (int64_t half = 1; half < 1 << num_bits; half *= 2)
        for (int64_t row = 0; row < 1 << num_bits; row++)
            if (!(row & half))
                kernels.grow(entries + row * stride, entries + (row + half) * stride, 1 << ROW_BITS);
}

}  // namespace

int32_t llc_hamming_build_table(const uint8_t *class_codes, int64_t num_classes, int32_t code_size,
    int32_t num_bits, int32_t num_threads, int32_t instructions, const uint8_t *stop, int32_t *table) {
    const HammingKernels &kernels = *instruction_set(instructions)->hamming;
    const int64_t n = int64_t(1) << num_bits;
    const int32_t threads = threads_worth(n, ENTRIES_PER_THREAD, num_threads);
    std::fill_n(table, n, 31 << TABLE_CLASS_BITS);
    // downwards, so that of classes with the same code the lowest is written last and stays
    for (int64_t c = num_classes - 1; c >= 0; c--)
        table[code_of(class_codes + c * code_size, code_size, num_bits)] = c;

    const int block_bits = std::min(num_bits, BLOCK_BITS);
    bool fine = in_threads(n >> block_bits, threads, stop,
        [&](int64_t block) { grow_block(kernels, table + (block << block_bits), block_bits); });
    for (int bit = BLOCK_BITS; bit < num_bits && fine && !is_set(stop); bit += GROUP_BITS) {
        const int bits = std::min(GROUP_BITS, num_bits - bit);
        const int64_t stride = int64_t(1) << bit, rows_apart = stride >> ROW_BITS;
        fine = in_threads(n >> (bits + ROW_BITS), threads, stop, [&](int64_t piece) {
            const int64_t group = piece / rows_apart, row = piece % rows_apart;
            grow_rows(kernels, table + (group << (bit + bits)) + (row << ROW_BITS), stride, bits);
        });
    }
    for (int64_t i = 0; i < n; i++) table[i] &= TABLE_STEP - 1;
    return status_of(fine, stop);
}

int32_t llc_hamming_look_up(const uint8_t *codes, int64_t n, int32_t code_size, int32_t num_bits,
    const int32_t *table, int32_t num_threads, int32_t instructions, const uint8_t *stop, int64_t *classes) {
    const HammingKernels &kernels = *instruction_set(instructions)->hamming;
    const int32_t threads = threads_worth(n, CODES_PER_THREAD, num_threads);
    const int64_t step = std::min<int64_t>((n + threads - 1) / threads, CODES_PER_PIECE);
    // reading 4 bytes at one of the last codes could reach beyond the array
    const int64_t num_fast = n * code_size < 4 ? 0 : (n * code_size - 4) / code_size + 1;
    const int64_t num_pieces = n ? (n + step - 1) / step : 0;
    const bool fine = in_threads(num_pieces, threads, stop, [&](int64_t piece) {
        const int64_t first = piece * step, last = std::min(first + step, n);
        const uint8_t *code = codes + first * code_size;
        int64_t row = std::clamp(num_fast, first, last);
        kernels.look_up(code, row - first, code_size, num_bits, table, classes + first);
        code += (row - first) * code_size;
        for (; row < last; row++, code += code_size) classes[row] = table[code_of(code, code_size, num_bits)];
    });
    return status_of(fine, stop);
}

int32_t llc_hamming_keep_exact(const uint8_t *codes, int64_t n, int32_t code_size,
    const uint8_t *class_codes, int32_t num_threads, const uint8_t *stop, int64_t *classes) {
    const int32_t threads = threads_worth(n, CODES_PER_THREAD, num_threads);
    const int64_t step = std::max<int64_t>(1, CODES_PER_PIECE / code_size);
    const bool fine = in_threads((n + step - 1) / step, threads, stop, [=](int64_t piece) {
        const int64_t last = std::min(piece * step + step, n);
        for (int64_t row = piece * step; row < last; row++) {
            const uint8_t *code = codes + row * code_size, *found = class_codes + classes[row] * code_size;
            bool differs = false;
            for (int32_t byte = 0; byte < code_size && !differs; byte++) differs = code[byte] != found[byte];
            if (differs) classes[row] = -1;
        }
    });
    return status_of(fine, stop);
}
