// Searches the tables of a segment for one query: multi-index hashing.
//
// For s = 0, 1, 2, ... and each of the m tables, number j, it looks at the buckets whose number differs from
// the query's in s bits. A code that is not found then differs in more than s bits of tables 0 to j, and in
// at least s of the others, so it is more than m * s + j bits away.
#pragma once
#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "collect.h"
#include "cost.h"
#include "kernels.h"

constexpr double UNLIMITED = std::numeric_limits<double>::infinity();

class Prober {
public:
    double spent = 0;  // the estimated cost of the last call

    Prober(const IndexQuery &search, const IndexKernels &kernels)
        : kernels(kernels), code_size(search.code_size), num_bits(search.num_bits), stop(search.stop) {}

    // Adds the codes of segment number `number` that are wanted. False: this would cost more than `budget`,
    // of `scan`, or in random codes more than `random_budget`; what was found before stays. Throws Broken.
    template <class Collected>
    bool probe(const IndexSegment &searched, int32_t number_of_segment, const uint8_t *of_query,
        Collected &collected, double budget, double random_budget, double scan) {
        segment = &searched, number = number_of_segment, query = of_query, num_found = 0;
        const int32_t m = segment->num_tables;
        values.resize(m);
        for (int32_t j = 0; j < m; j++) values[j] = bucket_of(query, table(j));
        cost = ProbeCost(searched, code_size);
        const bool whole = m == 1 && table(0).num_bits == num_bits;
        // all codes of a bucket are equal then, and only the first are wanted
        most = whole ? collected.most() : INT64_MAX;
        spent = 0;
        if (BEGIN_COST > budget) return false;
        spent = BEGIN_COST;
        for (int32_t s = 0;; s++) {
            if (budget < scan && collected.full() && spent < budget) {
                // What is left is known, if the limit does not fall, so no part of the work would be in vain.
                const double counting = std::min(random_budget, budget - spent) / 2;
                const double left = rest(s, collected, counting);
                if (spent + left <= scan) budget = random_budget = UNLIMITED;
            }
            bool any = false;
            for (int32_t j = 0; j < m; j++) {
                if (collected.limit < m * s + j || num_found >= segment->num_allowed) return true;
                if (s > table(j).num_bits) continue;
                any = true;
                const double number_of_buckets = choose(table(j).num_bits, s);
                if (number_of_buckets * cost.bucket > budget - spent) return false;
                random_budget -= number_of_buckets * random_cost(j);
                if (random_budget < 0) return false;
                Buckets buckets(values[j], table(j).num_bits, s);
                while (buckets.more()) {
                    const double next = next_ranges(j, buckets);
                    if (spent + next > budget) return false;
                    spent += next;
                    if (whole) take_ranges(s, collected);
                    else compare_ranges(s, j, collected);
                    if (is_set(stop)) return true;
                }
            }
            if (!any) return true;  // all buckets of all tables
        }
    }

private:
    static constexpr int32_t CHUNK = 256, BLOCK = 256, FIRST_BLOCK = 32, STEP = 8, LONG_RANGE = 64;

    // The numbers of all buckets that differ from `value` in s of num_bits bits.
    class Buckets {
    public:
        Buckets(uint32_t value, int32_t num_bits, int32_t s)
            : value(value), end(uint64_t(1) << num_bits), mask((uint64_t(1) << s) - 1) {}

        bool more() const { return mask < end; }

        uint32_t next() {
            const uint32_t bucket = value ^ uint32_t(mask);
            if (mask == 0) {
                mask = end;
            } else {  // the next higher number with as many ones
                const uint64_t lowest = mask & (~mask + 1), ripple = mask + lowest;
                mask = ((mask ^ ripple) >> (2 + __builtin_ctzll(mask))) | ripple;
            }
            return bucket;
        }

    private:
        uint32_t value;
        uint64_t end, mask;
    };

    struct Range {
        uint32_t begin, end;
    };

    const IndexTable &table(int32_t j) const { return segment->tables[j]; }

    static double choose(int32_t n, int32_t s) {
        double number = 1;
        for (int32_t i = 0; i < s; i++) number = number * (n - i) / (i + 1);
        return number;
    }

    // The cost of a bucket, if all hold as many codes.
    double random_cost(int32_t j) const {
        const double codes = double(segment->n) / double(int64_t(1) << table(j).num_bits);
        return cost.bucket + std::min(codes, 1.0) * (j ? cost.range : cost.first_range) +
            codes * (j ? cost.candidate : cost.row);
    }

    // The cost of all that is to be done from distance s on; unlimited if that of counting the candidates
    // would be more than `budget`.
    template <class Collected>
    double rest(int32_t s, const Collected &collected, double budget) {
        const int32_t m = segment->num_tables;
        double sum = 0;
        for (int32_t t = s; m * t <= collected.limit; t++)
            for (int32_t j = 0; j < m && m * t + j <= collected.limit; j++)
                if (t <= table(j).num_bits) sum += choose(table(j).num_bits, t) * cost.bucket;
        if (sum > budget) return UNLIMITED;
        spent += sum;
        sum = 0;
        for (int32_t t = s; m * t <= collected.limit; t++)
            for (int32_t j = 0; j < m && m * t + j <= collected.limit; j++) {
                if (t > table(j).num_bits) continue;
                for (Buckets buckets(values[j], table(j).num_bits, t); buckets.more();)
                    sum += next_ranges(j, buckets);
            }
        return sum;
    }

    // Reads where the next buckets begin and end -> what it costs to look at their codes. Short loops without
    // branches: whether a bucket is empty cannot be predicted.
    double next_ranges(int32_t j, Buckets &buckets) {
        const uint32_t *offsets = table(j).offsets, *positions = table(j).positions;
        uint32_t numbers[CHUNK];
        for (num_buckets = 0; num_buckets < CHUNK && buckets.more(); num_buckets++) {
            numbers[num_buckets] = buckets.next();
            __builtin_prefetch(offsets + numbers[num_buckets]);
        }
        int64_t candidates = 0;
        bool fine = true;
        num_ranges = 0;
        for (int32_t i = 0; i < num_buckets; i++) {
            const uint32_t begin = offsets[numbers[i]], end = offsets[numbers[i] + 1];
            fine &= begin <= end && end <= segment->n;
            ranges[num_ranges] = {begin, end};
            num_ranges += begin != end;
            candidates += std::min<int64_t>(end - begin, most);
            if (positions) __builtin_prefetch(positions + begin);
            else __builtin_prefetch(segment->codes + int64_t(begin) * code_size);
        }
        if (!fine) throw Broken();
        return num_buckets * cost.bucket + num_ranges * (j ? cost.range : cost.first_range) +
            candidates * (j ? cost.candidate : cost.row);
    }

    // All codes of a bucket are s bits away, and their ids ascend.
    template <class Collected>
    void take_ranges(int32_t s, Collected &collected) {
        for (int32_t r = 0; r < num_ranges; r++)
            for (int64_t position = ranges[r].begin; position < ranges[r].end; position++) {
                if (!may_find(*segment, position)) continue;
                const int64_t id = id_of(*segment, position);
                if (!collected.wants(s, id)) break;
                collected.add({id, s, number});
                num_found++;
            }
    }

    template <class Collected>
    void compare_ranges(int32_t s, int32_t j, Collected &collected) {
        const uint32_t *in_table = table(j).positions;
        int32_t size = 0;
        for (int32_t r = 0; r < num_ranges; r++) {
            int64_t at = ranges[r].begin;
            const int64_t end = ranges[r].end;
            if (!in_table && end - at >= LONG_RANGE) {
                compare_rows(at, end, s, j, collected);
                continue;
            }
            while (at < end) {
                // Always STEP positions, because how many there are cannot be predicted.
                if (!in_table) {
                    for (int32_t i = 0; i < STEP; i++) positions[size + i] = uint32_t(at + i);
                } else if (at + STEP <= segment->n) {
                    memcpy(positions + size, in_table + at, STEP * sizeof(uint32_t));
                } else {
                    memcpy(positions + size, in_table + at, (segment->n - at) * sizeof(uint32_t));
                }
                size += std::min<int64_t>(end - at, STEP);
                at += STEP;
                if (size >= (collected.full() ? BLOCK : FIRST_BLOCK)) {
                    compare(size, s, j, collected);
                    size = 0;
                    if (is_set(stop)) return;
                }
            }
        }
        compare(size, s, j, collected);
    }

    template <class Collected>
    void compare(int32_t size, int32_t s, int32_t j, Collected &collected) {
        uint32_t highest = 0;
        for (int32_t i = 0; i < size; i++) highest = std::max(highest, positions[i]);
        if (highest >= segment->n) throw Broken();
        uint16_t places[BLOCK + STEP], distances[BLOCK + STEP];
        const int32_t found = kernels.near_at(segment->codes, code_size, positions, size, query,
            collected.limit, places, distances);
        for (int32_t i = 0; i < found; i++) take(positions[places[i]], distances[i], s, j, collected);
    }

    template <class Collected>
    void compare_rows(int64_t begin, int64_t end, int32_t s, int32_t j, Collected &collected) {
        uint16_t places[BLOCK], distances[BLOCK];
        while (begin < end && !is_set(stop)) {
            const int32_t size = std::min<int64_t>(collected.full() ? BLOCK : FIRST_BLOCK, end - begin);
            const int32_t found = kernels.near_rows(segment->codes + begin * code_size, code_size, size,
                query, collected.limit, places, distances);
            for (int32_t i = 0; i < found; i++) take(begin + places[i], distances[i], s, j, collected);
            begin += size;
        }
    }

    template <class Collected>
    void take(int64_t position, int32_t distance, int32_t s, int32_t j, Collected &collected) {
        if (!collected.wants(distance) || !may_find(*segment, position)) return;
        if (!is_first(segment->codes + position * code_size, s, j)) return;
        const int64_t id = id_of(*segment, position);
        if (!collected.wants(distance, id)) return;
        collected.add({id, distance, number});
        num_found++;
    }

    // Whether no bucket before those s bits from the query's in table j holds the code.
    bool is_first(const uint8_t *code, int32_t s, int32_t j) const {
        for (int32_t t = 0; t < segment->num_tables; t++) {
            if (t == j) continue;
            const int32_t differing = num_differing(code, query, code_size, table(t));
            if (differing < s || (differing == s && t < j)) return false;
        }
        return true;
    }

    const IndexKernels &kernels;
    const int32_t code_size, num_bits;
    const uint8_t *stop;
    const IndexSegment *segment;
    int32_t number;
    const uint8_t *query;
    std::vector<uint32_t> values;  // the query's bucket in each table
    int64_t most, num_found;       // codes of a bucket that are of use; codes that were added
    int32_t num_buckets, num_ranges;
    ProbeCost cost;
    Range ranges[CHUNK + 1];
    uint32_t positions[BLOCK + STEP];
};
