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
        entries.reserve(std::min<int64_t>(capacity, 48));
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

// The codes that a scan finds for one query, until they are added to its Best: eight bytes each, without ids,
// one after the other, so that the lists of many queries stay in the caches. Now and then a list is cut to
// the k nearest and, unless ids ascend with positions, to those as far as the last of them.
class Shortlist {
public:
    static int64_t capacity_of(int64_t k) { return 3 * k + 64; }

    // room [capacity_of(k)]
    Shortlist(uint64_t *room, int64_t k, int32_t limit, bool ids_ascend)
        : limit(limit), room(room), farthest(limit), k(k), growth(std::max<int64_t>(8, 3 * k / 4)),
          next_cut(k + growth), ids_ascend(ids_ascend) {}

    int32_t limit;  // codes further away are not among the k nearest

    // Whether too many codes are equally far, so that the list takes no more.
    bool closed() const { return full; }

    // Finds the first codes: near(limit) adds those within a limit. `guess`: a limit within which k codes may
    // be, so that few others are added. -> the distance of number k, or the limit if there are not as many.
    template <class Near>
    int32_t begin(int32_t guess, Near near) {
        const int32_t last = limit;
        for (int32_t step = 2;; step *= 2) {
            limit = farthest = std::min(guess, last), count = 0, next_cut = k + growth;
            near(limit);
            if (count >= k) return cut();
            if (guess >= last) return last;
            guess += step;
        }
    }

    // In ascending order of positions. False: the list is closed.
    bool add(int64_t position, int64_t distance) {
        if (distance > limit) return true;  // it has fallen since the tile's codes were found
        if (full) return false;
        room[count++] = uint64_t(distance) << POSITION_BITS | position;
        if (count == next_cut) cut();
        return true;
    }

    // Calls use(position, distance) for the codes, and empties the list.
    template <class Use>
    void take_all(Use use) {
        if (count > k) cut();
        for (int64_t i = 0; i < count; i++)
            use(int64_t(room[i] & ((uint64_t(1) << POSITION_BITS) - 1)), int32_t(room[i] >> POSITION_BITS));
        count = 0;
    }

private:
    static constexpr int POSITION_BITS = 40;

    // The sign bit of a difference, which even SSE2 finds for two codes at once, unlike an order of 64 bits.
    static uint64_t is_below(uint64_t code, int32_t distance) {
        return (code - (uint64_t(distance) << POSITION_BITS)) >> 63;
    }

    int64_t num_below(int32_t distance) const {
        int64_t below = 0;
        for (int64_t i = 0; i < count; i++) below += is_below(room[i], distance);
        return below;
    }

    // Cuts a list of k codes or more. -> the distance of number k.
    int32_t cut() {
        // The limit falls by little, so a few short loops are faster than counting all distances.
        const int32_t last = farthest;
        int64_t nearer = num_below(farthest);
        while (nearer >= k) nearer = num_below(--farthest);
        if (farthest < last || ids_ascend) {
            // no branches: which codes stay cannot be predicted
            int64_t kept = 0, ties = ids_ascend ? k - nearer : count;
            for (int64_t i = 0; i < count; i++) {
                const uint64_t code = room[i];
                const int64_t is_nearer = is_below(code, farthest);
                const int64_t is_tie = is_below(code, farthest + 1) - is_nearer;
                room[kept] = code;
                kept += is_nearer + (is_tie & int64_t(ties > 0));
                ties -= is_tie;
            }
            count = kept;
        }
        limit = ids_ascend ? farthest - 1 : farthest;
        next_cut = count + growth;
        full = next_cut > capacity_of(k);
        return farthest;
    }

    uint64_t *room;
    int32_t farthest;  // no code of the list is further away
    int64_t k, growth, count = 0, next_cut;
    bool ids_ascend, full = false;
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
