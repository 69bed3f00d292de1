// The most probable classes of a code: tables of all short codes, and sums over the bytes of long ones.
//
// The codes that images of a class have are counted. A code x and a counted code t that differ in d of the
// bits contribute the count times ratio^d to the score of the class for x: the counts are spread as through a
// binary symmetric channel, whose factor (1 - q)^num_bits all scores share. The sum over all codes is done
// bit by bit: for each bit, of two codes that differ in this bit alone, each gets ratio times the other's.
// Sums are made in one order only, so they are the same to the last bit on every CPU.
#include <algorithm>
#include <cstring>
#include <vector>

#include "hamming.h"

namespace {

constexpr int BLOCK_BITS = 12;  // a block of scores of one class, 16 KB, stays in the L1 cache
constexpr int64_t CODES_PER_PIECE = 256;
constexpr int32_t FALLOFF_SIZE = 4096;
constexpr int ROW_BITS = 3;      // the lowest bits, done when a code is added: to a row of 8 scores at once
constexpr int64_t ROW = 1 << ROW_BITS;

int32_t ones(uint32_t word) {
    word = word - (word >> 1 & 0x55555555);
    word = (word & 0x33333333) + (word >> 2 & 0x33333333);
    return ((word + (word >> 4)) & 0x0f0f0f0f) * 0x01010101 >> 24;
}

// ratio^(number of ones)
float power(int64_t word, float ratio) {
    float product = 1;
    for (int32_t i = ones(uint32_t(word)); i > 0; i--) product *= ratio;
    return product;
}

// The bits from ROW_BITS on of n scores.
void spread(float *scores, int64_t n, float ratio) {
    for (int64_t half = ROW; half < n; half *= 2)
        for (int64_t first = 0; first < n; first += 2 * half) {
            float *__restrict clear = scores + first, *__restrict set = clear + half;
            for (int64_t i = 0; i < half; i++) {
                const float a = clear[i], b = set[i];
                clear[i] = a + ratio * b;
                set[i] = b + ratio * a;
            }
        }
}

// Puts `value` of class `c` into its place among the k highest of item i; best, classes [k][n]. A class comes
// after all that are lower, so that equal values stay in ascending order of classes.
template <class Value, class Class>
void insert(Value value, Class c, int64_t k, int64_t n, int64_t i, Value *best, Class *classes) {
    int64_t place = k - 1;
    for (; place > 0 && value > best[(place - 1) * n + i]; place--) {
        best[place * n + i] = best[(place - 1) * n + i];
        classes[place * n + i] = classes[(place - 1) * n + i];
    }
    best[place * n + i] = value;
    classes[place * n + i] = c;
}

// Adds the scores of class c to `total`, and keeps the highest; best, classes [k][n].
void keep(const float *scores, int64_t n, int32_t c, int64_t k, float *total, float *best, int32_t *classes) {
    const float *last = best + (k - 1) * n;
    for (int64_t row = 0; row < n; row += ROW) {
        int32_t any = 0;
        for (int64_t i = row; i < row + ROW; i++) {
            total[i] += scores[i];
            any |= scores[i] > last[i];
        }
        if (any)
            for (int64_t i = row; i < row + ROW; i++)
                if (scores[i] > last[i]) insert(scores[i], c, k, n, i, best, classes);
    }
}

constexpr int32_t BYTES_AT_ONCE = 4;  // of whose entries the sum fits into int16

void add(const int16_t *__restrict a, const int16_t *__restrict b, const int16_t *__restrict c,
    const int16_t *__restrict d, int32_t n, int32_t *__restrict sums) {
    for (int32_t i = 0; i < n; i++) sums[i] += int16_t(a[i] + b[i] + c[i] + d[i]);
}

// The k highest of n sums and their positions, ties to the lowest position.
void highest(const int32_t *sums, int32_t n, int64_t k, int32_t *best, int64_t *positions) {
    if (k == 1) {
        int32_t most = INT32_MIN;  // a loop that compilers vectorise, unlike std::max_element
        for (int32_t i = 0; i < n; i++) most = sums[i] > most ? sums[i] : most;
        *best = most;
        *positions = std::find(sums, sums + n, most) - sums;
        return;
    }
    std::fill_n(best, k, INT32_MIN);
    for (int32_t i = 0; i < n; i++)
        if (sums[i] > best[k - 1]) insert<int32_t, int64_t>(sums[i], i, k, 1, 0, best, positions);
}

// The sum of the falloff of how far each of n sums is below the highest.
float total_of(const int32_t *sums, int32_t n, int32_t highest, const float *falloff) {
    float total = 0;
    for (int32_t i = 0; i < n; i++)
        if (highest - sums[i] < FALLOFF_SIZE) total += falloff[highest - sums[i]];
    return total;
}

}  // namespace

int32_t llc_posterior_table(const uint32_t *codes, const float *counts, const int64_t *ends,
    int32_t num_classes, int32_t num_bits, float ratio, int64_t k, int32_t num_threads, const uint8_t *stop,
    int32_t *classes, float *scores, float *total) {
    const int block_bits = std::min(num_bits, BLOCK_BITS);
    const int64_t block = int64_t(1) << block_bits, n = int64_t(1) << num_bits;
    float rows[ROW][ROW];  // what a code adds to the row of its block, by its lowest bits
    for (int64_t low = 0; low < ROW; low++)
        for (int64_t i = 0; i < ROW; i++) rows[low][i] = power(low ^ i, ratio);
    struct Scratch {
        std::vector<float> scores, best, of_block;
        std::vector<int32_t> classes;
    };
    const bool fine = in_threads(
        n >> block_bits, num_threads, stop,
        [=] {
            Scratch scratch{std::vector<float>(block), std::vector<float>(k * block),
                std::vector<float>(n >> block_bits), std::vector<int32_t>(k * block)};
            for (int64_t i = 0; i < n >> block_bits; i++) scratch.of_block[i] = power(i, ratio);
            return scratch;
        },
        [&](Scratch &scratch, int64_t piece) {
            float *__restrict of_class = scratch.scores.data();
            float *sum = total + piece * block, *best = scratch.best.data();
            const float *of_block = scratch.of_block.data();
            std::fill_n(sum, block, 0.0f);
            std::fill_n(best, k * block, -1.0f);
            for (int32_t c = 0; c < num_classes && !is_set(stop); c++) {
                std::fill_n(of_class, block, 0.0f);
                for (int64_t p = c ? ends[c - 1] : 0; p < ends[c]; p++) {
                    const uint32_t code = codes[p];
                    const float weight = counts[p] * of_block[code >> block_bits ^ piece];
                    float *row = of_class + (code & (block - ROW));
                    for (int64_t i = 0; i < ROW; i++) row[i] += weight * rows[code & (ROW - 1)][i];
                }
                spread(of_class, block, ratio);
                keep(of_class, block, c, k, sum, best, scratch.classes.data());
            }
            for (int64_t place = 0; place < k; place++) {
                const int64_t to = place * n + piece * block;
                memcpy(scores + to, best + place * block, block * sizeof(float));
                memcpy(classes + to, scratch.classes.data() + place * block, block * sizeof(int32_t));
            }
        });
    return status_of(fine, stop);
}

int32_t llc_posterior_histograms(const uint32_t *queries, int64_t n, const uint32_t *codes,
    const int32_t *counts, const int64_t *ends, int32_t num_classes, int32_t num_bits, int32_t num_threads,
    const uint8_t *stop, int32_t *histograms) {
    const int64_t size = num_bits + 1;
    std::fill_n(histograms, n * num_classes * size, 0);
    const bool fine = in_threads(n, num_threads, stop, [=](int64_t query) {
        int32_t *histogram = histograms + query * num_classes * size;
        for (int32_t c = 0; c < num_classes && !is_set(stop); c++, histogram += size)
            for (int64_t p = c ? ends[c - 1] : 0; p < ends[c]; p++)
                histogram[ones(codes[p] ^ queries[query])] += counts[p];
    });
    return status_of(fine, stop);
}

int32_t llc_posterior_linear(const uint8_t *codes, int64_t n, int32_t code_size, const int16_t *tables,
    const int32_t *offsets, int32_t num_classes, int64_t k, const float *falloff, int32_t num_threads,
    const uint8_t *stop, int64_t *classes, int32_t *scores, float *totals) {
    const bool fine = in_threads(
        (n + CODES_PER_PIECE - 1) / CODES_PER_PIECE, num_threads, stop,
        [=] { return std::vector<int32_t>(num_classes); },
        [=](std::vector<int32_t> &sums, int64_t piece) {
            const int64_t end = std::min(n, (piece + 1) * CODES_PER_PIECE);
            for (int64_t row = piece * CODES_PER_PIECE; row < end && !is_set(stop); row++) {
                std::copy_n(offsets, num_classes, sums.data());
                for (int32_t byte = 0; byte < code_size; byte += BYTES_AT_ONCE) {
                    const int16_t *of_byte[BYTES_AT_ONCE];
                    for (int32_t i = 0; i < BYTES_AT_ONCE; i++) {
                        const int64_t value = byte + i < code_size ? codes[row * code_size + byte + i] : 0;
                        // the entries of the value 0 are 0, so they do for bytes beyond the last
                        of_byte[i] = tables + (std::min(byte + i, code_size - 1) * 256 + value) * num_classes;
                    }
                    add(of_byte[0], of_byte[1], of_byte[2], of_byte[3], num_classes, sums.data());
                }
                highest(sums.data(), num_classes, k, scores + row * k, classes + row * k);
                if (falloff) totals[row] = total_of(sums.data(), num_classes, scores[row * k], falloff);
            }
        });
    return status_of(fine, stop);
}
