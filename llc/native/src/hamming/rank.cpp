// Rankings by distance, as far as measures of retrieval need them: counts instead of sorted lists.
//
// A code's place among those at its distance is known once the codes before it are counted, so one pass over
// the database in its order is enough. The places of the relevant codes are kept until all are counted.
#include "hamming.h"

#include <algorithm>
#include <vector>

#include "scanner.h"

namespace {

constexpr int64_t BLOCK_QUERIES = 128;      // queries that share the planes of a tile
constexpr int64_t BLOCK_ENTRIES = 2 << 20;  // counts, places or neighbours that a block of queries may hold

// Counts are kept four times and added up at the end: neighbouring codes often have the same distance, and a
// count that was just written can only be read again some cycles later.
constexpr int64_t COPIES = 4;

// A relevant code: its distance, and how many codes at this distance come up to it, itself included.
struct Place {
    int32_t distance, number;
};

struct Neighbour {
    int32_t code, distance;
};

struct Ranking {
    Call call;
    const int32_t *query_classes, *classes, *members;
    const int64_t *ends;
    int64_t num_classes, k, neighbours;
    bool leave_one_out;
    int32_t *total, *relevant, *voted;
    double *precisions;
    int32_t *hits;

    int64_t num_distances() const { return 8 * int64_t(call.queries.size) + 1; }
    int64_t left_out(int64_t q) const { return leave_one_out ? q : -1; }

    // Where the members of the class of query q begin and end.
    int64_t first_member(int64_t q) const { return query_classes[q] > 0 ? ends[query_classes[q] - 1] : 0; }
    int64_t last_member(int64_t q) const { return query_classes[q] < 0 ? 0 : ends[query_classes[q]]; }
};

// The work of one thread: blocks of queries, each in two passes over the database.
class Ranker {
public:
    explicit Ranker(const Ranking &ranking)
        : r(ranking), scanner(r.call.kernels, r.call.queries, r.call.database),
          num_distances(r.num_distances()), nearer(r.num_classes), tied(r.num_classes) {}

    void rank(int64_t first_query, int64_t last_query) {
        // Neither counts nor places of many queries need much memory, however long codes or classes are.
        int64_t end;
        for (int64_t first = first_query; first < last_query && !is_set(r.call.stop); first = end) {
            int64_t entries = 0;
            for (end = first; end < last_query; end++) {
                entries += COPIES * num_distances + num_places(end);
                if (end > first && entries > BLOCK_ENTRIES) break;
            }
            count(first, end);
        }
        for (int64_t first = first_query; first < last_query && !is_set(r.call.stop); first = end) {
            int64_t entries = 0;
            for (end = first; end < last_query; end++) {
                entries += reach_of(end).up_to;
                if (end > first && entries > BLOCK_ENTRIES) break;
            }
            vote(first, end);
        }
    }

private:
    // ---- the first pass: counts -------------------------------------------------------------------------

    struct Progress {
        int64_t member, places;  // the next relevant code, in `members`; where the query's next place goes
    };

    // Room for the places of query q.
    int64_t num_places(int64_t q) const { return r.precisions ? r.last_member(q) - r.first_member(q) : 0; }

    void count(int64_t first_query, int64_t last_query) {
        const int64_t n = last_query - first_query;
        counts.assign(n * COPIES * num_distances, 0);
        progress.clear();
        int64_t size = 0;
        for (int64_t q = first_query; q < last_query; q++) {
            progress.push_back({r.first_member(q), size});
            size += num_places(q);
        }
        places.resize(size);
        std::fill(r.relevant + first_query * num_distances, r.relevant + last_query * num_distances, 0);
        for_tiles(scanner, first_query, last_query, 0, r.call.database.n, MAX_TILE, r.call.stop,
            [&](int64_t q) {
                uint32_t *of_query = counts.data() + (q - first_query) * COPIES * num_distances;
                scanner.for_all(q, [&](const auto *distances, int64_t start, int64_t size) {
                    count_tile(q, distances, start, size, of_query, progress[q - first_query]);
                });
            });
        if (is_set(r.call.stop)) return;
        int64_t first_place = 0;
        for (int64_t q = first_query; q < last_query; q++) {
            const uint32_t *of_query = counts.data() + (q - first_query) * COPIES * num_distances;
            for (int64_t d = 0; d < num_distances; d++)
                r.total[q * num_distances + d] = count_at(of_query, d);
            const int64_t end = progress[q - first_query].places;
            if (r.precisions) add_precisions(q, places.data() + first_place, places.data() + end);
            first_place += num_places(q);
        }
    }

    template <class Distance>
    void count_tile(int64_t q, const Distance *distances, int64_t start, int64_t size, uint32_t *counts,
        Progress &progress) {
        const int64_t last_member = r.last_member(q), left_out = r.left_out(q);
        int32_t *relevant = r.relevant + q * num_distances;
        int64_t at = 0;
        for (; progress.member < last_member; progress.member++) {
            const int64_t code = r.members[progress.member];
            if (code >= start + size) break;
            count_codes(distances + at, distances + (code - start), counts);
            at = code - start + 1;
            if (code == left_out) continue;
            const int32_t distance = distances[code - start];
            counts[distance]++;
            relevant[distance]++;
            if (r.precisions) places[progress.places++] = {distance, count_at(counts, distance)};
        }
        count_codes(distances + at, distances + size, counts);
    }

    template <class Distance>
    void count_codes(const Distance *distances, const Distance *end, uint32_t *counts) {
        uint32_t *second = counts + num_distances, *third = second + num_distances;
        uint32_t *fourth = third + num_distances;
        for (; distances + COPIES <= end; distances += COPIES) {
            counts[distances[0]]++;
            second[distances[1]]++;
            third[distances[2]]++;
            fourth[distances[3]]++;
        }
        for (; distances < end; distances++) counts[*distances]++;
    }

    int32_t count_at(const uint32_t *counts, int64_t distance) const {
        uint32_t sum = 0;
        for (int64_t copy = 0; copy < COPIES; copy++) sum += counts[copy * num_distances + distance];
        return sum;
    }

    void add_precisions(int64_t q, const Place *place, const Place *end) {
        // how many codes, and relevant ones, come before the next relevant code of each distance
        before.assign(num_distances, 0);
        relevant_before.assign(num_distances, 0);
        for (int64_t d = 1; d < num_distances; d++) {
            before[d] = before[d - 1] + r.total[q * num_distances + d - 1];
            relevant_before[d] = relevant_before[d - 1] + r.relevant[q * num_distances + d - 1];
        }
        double whole = 0, of_first = 0;
        int32_t hits = 0;
        for (; place < end; place++) {
            const int64_t rank = before[place->distance] + place->number;
            const double precision = double(++relevant_before[place->distance]) / double(rank);
            whole += precision;
            if (rank <= r.k) of_first += precision, hits++;
        }
        r.precisions[2 * q] = of_first, r.precisions[2 * q + 1] = whole;
        r.hits[q] = hits;
    }

    // ---- the second pass: votes -------------------------------------------------------------------------

    // The distance of the last of the nearest neighbours, the codes nearer than it, and up to it.
    struct Reach {
        int64_t distance, nearer, up_to;
    };

    Reach reach_of(int64_t q) const {
        const int32_t *total = r.total + q * num_distances;
        Reach reach{0, 0, total[0]};
        while (reach.up_to < r.neighbours && reach.distance + 1 < num_distances)
            reach.nearer = reach.up_to, reach.up_to += total[++reach.distance];
        return reach;
    }

    void vote(int64_t first_query, int64_t last_query) {
        std::vector<Reach> reaches;
        std::vector<int64_t> found;  // where the next neighbour of each query goes
        int64_t num_found = 0;
        for (int64_t q = first_query; q < last_query; q++) {
            reaches.push_back(reach_of(q));
            found.push_back(num_found);
            num_found += reaches.back().up_to;
        }
        voters.resize(num_found);
        for_tiles(scanner, first_query, last_query, 0, r.call.database.n, MAX_TILE, r.call.stop,
            [&](int64_t q) {
                const int64_t left_out = r.left_out(q);
                scanner.for_near(q, reaches[q - first_query].distance, [&](int64_t code, int64_t distance) {
                    if (code != left_out)
                        voters[found[q - first_query]++] = {int32_t(code), int32_t(distance)};
                });
            });
        if (is_set(r.call.stop)) return;
        const Neighbour *voter = voters.data();
        for (int64_t q = first_query; q < last_query; q++) {
            const Reach &reach = reaches[q - first_query];
            r.voted[q] = elect(voter, voter + reach.up_to, reach);
            voter += reach.up_to;
        }
    }

    // A class has a vote for each of its nearer codes, and its part of the codes at the last distance of the
    // votes that are left. They are compared as whole numbers: times the number of codes at that distance.
    int32_t elect(const Neighbour *first, const Neighbour *last, const Reach &reach) {
        for (const Neighbour *voter = first; voter < last; voter++)
            (voter->distance < reach.distance ? nearer : tied)[r.classes[voter->code]]++;
        const int64_t num_tied = reach.up_to - reach.nearer, left = r.neighbours - reach.nearer;
        int64_t most = -1;
        int32_t best = -1;
        for (const Neighbour *voter = first; voter < last; voter++) {
            const int32_t c = r.classes[voter->code];
            const int64_t votes = nearer[c] * num_tied + tied[c] * left;
            if (votes > most || (votes == most && c < best)) most = votes, best = c;
        }
        for (const Neighbour *voter = first; voter < last; voter++)
            nearer[r.classes[voter->code]] = tied[r.classes[voter->code]] = 0;
        return best;
    }

    const Ranking &r;
    Scanner scanner;
    const int64_t num_distances;
    std::vector<uint32_t> counts;  // [queries of a block, COPIES, num_distances]
    std::vector<Progress> progress;
    std::vector<Place> places;  // of each query of a block, one after another
    std::vector<int64_t> before, relevant_before;
    std::vector<Neighbour> voters;
    std::vector<int64_t> nearer, tied;  // votes of each class, 0 between two elections
};

}  // namespace

int32_t llc_hamming_rank(const uint8_t *queries, int64_t n, const uint8_t *database, int64_t m,
    int32_t code_size, const int32_t *query_classes, const int32_t *classes, const int32_t *members,
    const int64_t *ends, int64_t num_classes, int64_t k, int64_t neighbours, int32_t leave_one_out,
    int32_t num_threads, int32_t instructions, const uint8_t *stop, int32_t *total, int32_t *relevant,
    int32_t *voted, double *precisions, int32_t *hits) {
    const Call call(queries, n, database, m, code_size, num_threads, instructions, stop);
    const Ranking ranking{call, query_classes, classes, members, ends, num_classes, k, neighbours,
        leave_one_out != 0, total, relevant, voted, precisions, hits};
    const int64_t per_thread = (n + call.num_threads - 1) / call.num_threads;
    const int64_t block = std::clamp<int64_t>(per_thread, 1, BLOCK_QUERIES);
    const bool fine = in_threads((n + block - 1) / block, call.num_threads, stop,
        [&] { return Ranker(ranking); },
        [&](Ranker &ranker, int64_t piece) {
            ranker.rank(piece * block, std::min((piece + 1) * block, n));
        });
    return status_of(fine, stop);
}
