// Building tables: a stable counting sort.
#include <algorithm>
#include <memory>
#include <vector>

#include "index.h"
#include "segment.h"

namespace {

constexpr int64_t SAMPLE = 1 << 14;
constexpr int32_t MAX_THREADS = 16;  // each reads all codes, so more would not help
constexpr int64_t THREAD_CODES = 1 << 16;
constexpr int64_t STEP = 1 << 16;  // codes between two looks at `stop`
constexpr int32_t AHEAD = 16, BLOCK = 64;

struct Item {
    uint32_t bucket, code;
};

// Looks up what each byte of a code contributes to the number of its bucket.
class Bucketing {
public:
    Bucketing(const int32_t *bits, int32_t num_bits) {
        for (int32_t i = 0; i < num_bits; i++) {
            const int32_t at = bits[i] / 8;
            auto part = std::find_if(parts.begin(), parts.end(),
                [=](const Part &one) { return one.at == at; });
            if (part == parts.end()) part = parts.insert(parts.end(), Part{at, {}});
            for (uint32_t byte = 0; byte < 256; byte++)
                part->values[byte] |= (byte >> (7 - bits[i] % 8) & 1) << (num_bits - 1 - i);
        }
    }

    uint32_t operator()(const uint8_t *code) const {
        uint32_t bucket = 0;
        for (const Part &part : parts) bucket |= part.values[code[part.at]];
        return bucket;
    }

private:
    struct Part {
        int32_t at;
        uint32_t values[256];
    };
    std::vector<Part> parts;
};

}  // namespace

int32_t llc_index_build_table(const uint8_t *codes, int64_t n, int32_t code_size, const int32_t *bits,
    int32_t num_bits, int32_t num_threads, const uint8_t *stop, uint32_t *offsets, uint32_t *positions) try {
    const int64_t num_buckets = int64_t(1) << num_bits;
    const Bucketing bucketing(bits, num_bits);
    const auto bucket_at = [&](int64_t i) { return bucketing(codes + i * code_size); };
    const int32_t threads = std::min(threads_worth(n, THREAD_CODES, num_threads), MAX_THREADS);
    // Each thread has a range of buckets, with about as many codes in it, and looks at all codes.
    std::vector<int64_t> sample, ends(threads, num_buckets);
    if (threads > 1) {
        for (int64_t i = 0; i < SAMPLE; i++) sample.push_back(bucket_at(n * i / SAMPLE));
        std::sort(sample.begin(), sample.end());
        for (int32_t t = 0; t + 1 < threads; t++) ends[t] = sample[SAMPLE * (t + 1) / threads];
    }
    std::fill(offsets, offsets + num_buckets + 1, 0);
    // Calls use(items, number of items) for all codes of a thread's buckets, in their order. Where a bucket's
    // offset is in memory has been asked for some time before.
    const auto for_range = [&](auto use) {
        return in_threads(threads, threads, stop, [&](int64_t t) {
            const uint32_t first = t ? ends[t - 1] : 0, size = ends[t] - first;
            Item items[BLOCK];
            int32_t num_items = 0;
            for (int64_t start = 0; start < n && !is_set(stop); start += STEP)
                for (int64_t i = start; i < std::min(start + STEP, n); i++) {
                    const uint32_t bucket = bucket_at(i);
                    __builtin_prefetch(offsets + bucket, 1);
                    items[num_items] = {bucket, uint32_t(i)};
                    num_items += bucket - first < size;
                    if (num_items == BLOCK) use(items, BLOCK), num_items = 0;
                }
            use(items, num_items);
        });
    };
    bool fine = for_range([=](const Item *items, int32_t size) {
        for (int32_t i = 0; i < size; i++) offsets[items[i].bucket]++;
    });
    if (!fine || is_set(stop)) return status_of(fine, stop);
    uint32_t begin = 0;
    for (int64_t bucket = 0; bucket <= num_buckets; bucket++) {
        const uint32_t size = offsets[bucket];
        offsets[bucket] = begin;
        begin += size;
    }
    fine = for_range([=](const Item *items, int32_t size) {
        for (int32_t i = 0; i < size; i++) __builtin_prefetch(positions + offsets[items[i].bucket], 1);
        for (int32_t i = 0; i < size; i++) positions[offsets[items[i].bucket]++] = items[i].code;
    });
    // each has become the beginning of the next bucket
    std::copy_backward(offsets, offsets + num_buckets, offsets + num_buckets + 1);
    offsets[0] = 0;
    return status_of(fine, stop);
} catch (const std::exception &) {
    return LLC_NO_MEMORY;
}

int32_t llc_index_gather(const uint8_t *codes, int64_t n, int32_t code_size, const uint32_t *positions,
    int32_t num_threads, const uint8_t *stop, uint8_t *sorted) {
    const int32_t threads = threads_worth(n, THREAD_CODES, num_threads);
    const bool fine = in_threads((n + STEP - 1) / STEP, threads, stop, [=](int64_t piece) {
        const int64_t end = std::min((piece + 1) * STEP, n);
        for (int64_t i = piece * STEP; i < end; i++) {
            __builtin_prefetch(codes + int64_t(positions[std::min(i + AHEAD, end - 1)]) * code_size);
            memcpy(sorted + i * code_size, codes + int64_t(positions[i]) * code_size, code_size);
        }
    });
    return status_of(fine, stop);
}
