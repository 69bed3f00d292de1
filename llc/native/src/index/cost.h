// What the ways to search cost, in nanoseconds of one core. Only their ratios matter: they decide when a
// search in tables gives way to a scan. Measured on a 2.8 GHz Ice Lake in a virtual machine, with pages of
// 4 kB. There scans have AVX-512 BITALG; on other CPUs tables give way somewhat earlier than they must.
#pragma once
#include <algorithm>
#include <cmath>

#include "segment.h"

// The fraction of a scan's cost that the tables may use in vain.
constexpr double BUDGET = 0.08, BATCH_BUDGET = 0.025;

// What each query of a batch may spend in vain: less of a short scan, beside which a query's own costs count.
constexpr double SHORT_BATCH_SCAN = 10e3;
inline double batch_budget(double scan) {
    return BATCH_BUDGET * scan / (1 + SHORT_BATCH_SCAN / scan);
}

// What a single query may spend in vain. Of a scan shorter than some SHORT_SCAN it is a smaller fraction: the
// accesses of a query that comes alone miss the caches, and the costs below do not count that.
constexpr double SHORT_SCAN = 100e3;
inline double vain_budget(double scan) { return BUDGET * scan * scan / (scan + SHORT_SCAN); }

constexpr double BEGIN_COST = 2000;

// A random access, beside others that are independent of it, to an array of so many bytes.
inline double access_cost(double bytes) { return std::min(1.5 + 2.6e-3 * std::sqrt(bytes), 100.0); }

struct ProbeCost {
    double bucket = 0, range = 0, first_range = 0, candidate = 0, row = 0;

    ProbeCost() = default;
    ProbeCost(const IndexSegment &segment, int32_t code_size) {
        const double of_codes = access_cost(double(segment.n) * code_size);
        bucket = 3 + access_cost(4.0 * double(int64_t(1) << segment.tables[0].num_bits));
        range = 8 + access_cost(4.0 * double(segment.n));
        first_range = 8 + of_codes;
        candidate = 1 + of_codes + 0.05 * code_size;
        row = 0.7 + 0.05 * code_size;
    }
};

// What a scan of n codes costs for each of so many queries that are compared together.
inline double scan_cost(int64_t n, int32_t code_size, int64_t num_queries) {
    const bool few = num_queries <= 2;
    return double(n) * (few ? 0.3 + code_size * 0.08 : 0.012 * code_size);
}

// The same, if the codes that may be found are copied first to where they follow each other.
inline double copy_cost(const IndexSegment &segment, int32_t code_size, int64_t num_queries) {
    const double codes = double(segment.num_allowed) * access_cost(double(segment.n) * code_size);
    return (double(segment.n) / 64 + codes) / double(std::min<int64_t>(num_queries, 256)) +
        scan_cost(segment.num_allowed, code_size, num_queries);
}

inline bool copying_pays(const IndexSegment &segment, int32_t code_size, int64_t num_queries) {
    return segment.allowed &&
        copy_cost(segment, code_size, num_queries) < scan_cost(segment.n, code_size, num_queries);
}
