// What a search keeps of the codes that it finds for one query.
#pragma once
#include <algorithm>
#include <climits>
#include <cstdint>
#include <vector>

struct Entry {
    int64_t id;
    int32_t distance, segment;

    bool operator<(const Entry &other) const {
        return distance != other.distance ? distance < other.distance : id < other.id;
    }
};

// The k nearest codes. How many are at each distance is counted, so that the limit falls at once. The list
// may hold about 2 k codes before it is cut to the best k; then ids that are too high at the limit are known
// as well.
class Best {
public:
    // limit: codes further away are not among the k nearest.
    Best(int64_t k, int32_t num_distances, int32_t limit)
        : limit(limit), first_limit(limit), k(k), capacity(k + std::max<int64_t>(k, 64)),
          counts(num_distances) {
        entries.reserve(std::min<int64_t>(capacity, 256));
    }

    int32_t limit;
    std::vector<Entry> entries;
    int64_t num_ties = 0;  // codes at the limit that an id kept out

    void restart() {
        limit = first_limit, last_id = INT64_MAX, within = 0;
        entries.clear();
        std::fill(counts.begin(), counts.end(), 0);
    }

    // Takes over what is known of the limit.
    void begin_with(const Best &other) { limit = other.limit; }

    bool full() const { return within >= k; }

    // The most codes of one distance that are of use, in ascending order of ids.
    int64_t most() const { return k; }

    bool wants(int32_t distance) const { return distance <= limit; }
    bool wants(int32_t distance, int64_t id) {
        if (distance != limit) return distance < limit;
        if (id <= last_id) return true;
        num_ties++;
        return false;
    }

    // Whether some code at the limit would still be wanted with this id, or a higher one.
    bool wants_ties(int64_t id) const { return id <= last_id; }
    bool knows_last() const { return last_id != INT64_MAX; }

    void add(const Entry &entry) {
        entries.push_back(entry);
        counts[entry.distance]++;
        within++;
        while (within - counts[limit] >= k) {
            within -= counts[limit--];
            last_id = INT64_MAX;
        }
        if (int64_t(entries.size()) >= capacity) cut();
    }

    // Forgets the codes of some segments, but not what they said about the limit.
    template <class Of>
    void forget(Of of) {
        entries.erase(std::remove_if(entries.begin(), entries.end(),
            [&](const Entry &entry) { return entry.distance > limit || of(entry.segment); }), entries.end());
        last_id = INT64_MAX;
        within = entries.size();
        std::fill(counts.begin(), counts.end(), 0);
        for (const Entry &entry : entries) counts[entry.distance]++;
    }

    // Sorts the list and cuts it to the best k.
    void finish() {
        drop_far();
        if (entries.size() <= FEW_ENTRIES) {
            std::sort(entries.begin(), entries.end());
        } else {
            // by distance, whose counts are known, and by id in each
            std::vector<Entry> sorted(entries.size());
            std::vector<int64_t> next(limit + 1);
            for (int32_t d = 1; d <= limit; d++) next[d] = next[d - 1] + counts[d - 1];
            for (const Entry &entry : entries) sorted[next[entry.distance]++] = entry;
            auto first = sorted.begin();
            for (int32_t d = 0; d <= limit; first += counts[d++]) {
                const auto last = first + counts[d];
                const int64_t wanted = k - (first - sorted.begin());
                if (last - first > wanted) std::nth_element(first, first + wanted, last);
                const auto end = first + std::min<int64_t>(wanted, last - first);
                if (!std::is_sorted(first, end)) std::sort(first, end);
            }
            entries.swap(sorted);
        }
        if (int64_t(entries.size()) > k) entries.resize(k);
    }

private:
    static constexpr size_t FEW_ENTRIES = 128;

    void drop_far() {
        entries.erase(std::remove_if(entries.begin(), entries.end(),
            [&](const Entry &entry) { return entry.distance > limit; }), entries.end());
    }

    // Makes room: drops codes beyond the limit, and if these were few also those with high ids at the limit.
    void cut() {
        drop_far();
        if (within <= k + (capacity - k) / 2) return;
        const auto ties = std::partition(entries.begin(), entries.end(),
            [&](const Entry &entry) { return entry.distance < limit; });
        const auto last = entries.begin() + (k - 1);
        std::nth_element(ties, last, entries.end());
        last_id = last->id;
        entries.resize(k);
        counts[limit] -= within - k;
        within = k;
    }

    int32_t first_limit;
    int64_t k, capacity, within = 0;  // codes within the limit
    int64_t last_id = INT64_MAX;      // the highest that is wanted at the limit
    std::vector<uint32_t> counts;     // codes at each distance, up to the limit
};

// All codes within a radius.
class Within {
public:
    explicit Within(int32_t limit) : limit(limit) {}

    int32_t limit;
    std::vector<Entry> entries;
    int64_t num_ties = 0;

    void restart() { entries.clear(); }
    void begin_with(const Within &) {}
    bool full() const { return true; }
    int64_t most() const { return INT64_MAX; }
    bool wants(int32_t distance) const { return distance <= limit; }
    bool wants(int32_t distance, int64_t) const { return distance <= limit; }
    bool wants_ties(int64_t) const { return true; }
    bool knows_last() const { return false; }
    void add(const Entry &entry) { entries.push_back(entry); }

    template <class Of>
    void forget(Of of) {
        entries.erase(std::remove_if(entries.begin(), entries.end(),
            [&](const Entry &entry) { return of(entry.segment); }), entries.end());
    }
    void finish() { std::sort(entries.begin(), entries.end()); }
};
