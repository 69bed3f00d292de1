// Searches all segments: those with tables first, for every query by itself. What the tables do not find at a
// fraction of a scan's cost is scanned, all queries that need it together.
#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <numeric>
#include <vector>

#include "collect.h"
#include "cost.h"
#include "hamming/scanner.h"
#include "index.h"
#include "kernels.h"
#include "probe.h"
#include "segment.h"

namespace {

enum Method : int32_t { AUTO, TABLES, SCAN };

constexpr int64_t FIRST_TILE = 256;
// Queries that share the planes of a tile. SHARED_BLOCK: the least where all threads can have a part of the
// segment.
constexpr int64_t SCAN_BLOCK = 1024, LEAST_BLOCK = 128, SHARED_BLOCK = 64;
constexpr int64_t PROBE_BLOCK = 16;       // queries that a thread takes at once
constexpr int64_t THREAD_QUERIES = 8;     // queries in tables that are worth a thread
constexpr int64_t THREAD_SORTS = 1000;    // results in a query's list that are
constexpr int64_t MAX_ROUND = 8192;       // queries between whose answers nothing is kept
constexpr int64_t ROUND_BYTES = 256 << 20;
constexpr int64_t PART_CODES = 1 << 16;   // codes that are worth a part of their own
constexpr int64_t MANY_CODES = 4;         // codes for each of the k that make shortlists worth it
constexpr int64_t MANY_TIES = 64;         // in a tile: then its lowest id is looked up

constexpr double AT_ONCE = 0.5, LEAST = 0.1, MOST = 0.7, SAVED = 0.5;

// Collected: Best or Within. make(): a Collected; finish(q, Collected&): takes what was found for a query.
template <class Collected, class Make, class Finish>
class Searcher {
public:
    Searcher(const IndexQuery &search, Make make, Finish finish, int64_t bytes)
        : search(search), set(*instruction_set(search.instructions)), make(make), finish(finish),
          bytes(bytes), round(std::clamp<int64_t>(ROUND_BYTES / bytes, 1, MAX_ROUND)) {
        for (int64_t i = 0; i < search.num_segments; i++)
            if (search.segments[i].num_allowed > 0) order.push_back(i);
        // Large segments give a low limit first.
        std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
            const IndexSegment &first = search.segments[a], &second = search.segments[b];
            if ((first.num_tables > 0) != (second.num_tables > 0)) return first.num_tables > 0;
            return first.n > second.n;
        });
    }

    int32_t run() {
        try {
            for (int64_t first = 0; first < search.n && !is_set(search.stop); first += round)
                if (!run_round(first, std::min(first + round, search.n))) return LLC_LONG;
        } catch (const Broken &) {
            return LLC_BROKEN;
        }
        return is_set(search.stop) ? LLC_STOPPED : LLC_DONE;
    }

private:
    // A query of the round whose answer is not known yet.
    struct Pending {
        int64_t query;
        Collected collected;
        std::vector<int32_t> segments;  // those to scan
    };

    struct Worker {
        Prober prober;
        Collected collected;
        std::vector<int32_t> pending;
        std::vector<double> credit;  // nanoseconds that queries may spend in the tables of each segment
    };

    const uint8_t *query_at(int64_t q) const { return search.queries + q * search.code_size; }

    bool run_round(int64_t first, int64_t last) {
        pending.clear();
        const bool any_tables = search.method != SCAN && !order.empty() &&
            search.segments[order[0]].num_tables > 0;
        if (any_tables) {
            const int32_t threads = threads_worth(last - first, THREAD_QUERIES, search.num_threads);
            const int64_t block =
                std::clamp<int64_t>((last - first) / (4 * threads), 1, PROBE_BLOCK);
            check(in_threads((last - first + block - 1) / block, threads, search.stop, [&] {
                    Worker worker{Prober(search, *set.index), make(), {}, {}};
                    // at least one query may try: in a small batch a scan costs more than assumed
                    for (int64_t i = 0; i < search.num_segments; i++) {
                        const double scan = cost_of_scan(search.segments[i]);
                        const double shares = AT_ONCE * double(last - first) / threads;
                        worker.credit.push_back(std::max(shares * batch_budget(scan), MOST * scan));
                    }
                    return worker;
                },
                [&](Worker &worker, int64_t piece) {
                    guarded([&] {
                        const int64_t end = std::min(first + (piece + 1) * block, last);
                        for (int64_t q = first + piece * block; q < end; q++) probe(worker, q);
                    });
                }));
            if (search.brief && !pending.empty()) return false;
        } else {
            if (search.brief) return false;
            for (int64_t q = first; q < last; q++) pending.push_back({q, make(), order});
        }
        if (pending.empty() || is_set(search.stop)) return true;
        std::sort(pending.begin(), pending.end(),
            [](const Pending &a, const Pending &b) { return a.query < b.query; });
        for (const int32_t segment : order) {
            std::vector<Pending *> of_segment;
            for (Pending &one : pending)
                if (std::find(one.segments.begin(), one.segments.end(), segment) != one.segments.end())
                    of_segment.push_back(&one);
            if (!of_segment.empty()) scan(segment, of_segment);
        }
        if (is_set(search.stop)) return true;
        check(in_threads(pending.size(), threads_worth(pending.size(), THREAD_SORTS, search.num_threads),
            search.stop, [&](int64_t i) { finish(pending[i].query, pending[i].collected); }));
        return true;
    }

    // ---- one query in the tables ------------------------------------------------------------------------

    void probe(Worker &worker, int64_t q) {
        worker.collected.restart();
        worker.pending.clear();
        for (const int32_t i : order) {
            if (is_set(search.stop)) return;
            const IndexSegment &segment = search.segments[i];
            if (segment.num_tables == 0 || (search.pending && search.pending[i])) {
                worker.pending.push_back(i);
                continue;
            }
            const double scan = search.method == TABLES ? UNLIMITED : cost_of_scan(segment);
            // What the tables may spend in vain is a fraction of all scans, half of which the first queries
            // may use up, and half of what the tables have saved.
            double &credit = worker.credit[i];
            credit += (1 - AT_ONCE) * batch_budget(scan);
            double budget = std::min(credit, MOST * scan), random_budget = UNLIMITED;
            // From one or two queries nothing can be learnt; but if their buckets are large, their neighbours
            // are likely there.
            if (search.n <= FEW_QUERIES) budget = MOST * scan, random_budget = vain_budget(scan);
            if (search.method == TABLES) budget = random_budget = UNLIMITED;
            if (budget < LEAST * scan) {
                worker.pending.push_back(i);
                continue;
            }
            const bool found = worker.prober.probe(segment, i, query_at(q), worker.collected, budget,
                random_budget, scan);
            credit += (found ? SAVED * std::max(scan - worker.prober.spent, 0.0) : 0) - worker.prober.spent;
            if (!found) worker.pending.push_back(i);
        }
        if (worker.pending.empty()) {
            finish(q, worker.collected);
            return;
        }
        worker.collected.forget([&](int32_t segment) {
            return std::find(worker.pending.begin(), worker.pending.end(), segment) != worker.pending.end();
        });
        const std::lock_guard<std::mutex> lock(mutex);
        pending.push_back({q, std::move(worker.collected), worker.pending});
        worker.collected = make();
        if (search.brief && search.pending)
            for (const int32_t i : worker.pending) search.pending[i] = 1;
    }

    double cost_of_scan(const IndexSegment &segment) const {
        const double cost = copying_pays(segment, search.code_size, search.n)
            ? copy_cost(segment, search.code_size, search.n)
            : scan_cost(segment.n, search.code_size, search.n);
        if (search.n > 1) return cost;
        return cost / threads_worth(segment.n * search.code_size, THREAD_BYTES, search.num_threads);
    }

    // ---- scans ------------------------------------------------------------------------------------------

    void scan(int32_t number, const std::vector<Pending *> &queries) {
        const IndexSegment &segment = search.segments[number];
        const int32_t size = search.code_size;
        const int64_t n = queries.size();
        std::vector<uint8_t> gathered(n * size);
        for (int64_t i = 0; i < n; i++) memcpy(&gathered[i * size], query_at(queries[i]->query), size);
        const int32_t threads = threads_worth(n * size * segment.n, THREAD_BYTES, search.num_threads);
        // Some blocks for each thread, as other programs may slow one down, but not very small ones.
        const int64_t per_thread = (n + threads - 1) / threads;
        const bool divisible = segment.n / PART_CODES >= threads;
        const int64_t shared = divisible ? std::min(n, SHARED_BLOCK) : 1;
        const int64_t least = std::max(std::min(per_thread, LEAST_BLOCK), shared);
        const int64_t block = std::clamp((per_thread + 2) / 3, least, SCAN_BLOCK);
        const int64_t num_blocks = (n + block - 1) / block;
        // If there are fewer blocks of queries than threads, the segment is divided too. Each part keeps
        // what it finds for every query, which counts in the memory of a round.
        const int64_t affordable = std::max<int64_t>(ROUND_BYTES / (n * bytes), 1);
        const int64_t num_parts = std::clamp<int64_t>(segment.n / PART_CODES, 1,
            std::min((threads + num_blocks - 1) / num_blocks, affordable));
        const bool copying = copying_pays(segment, size, n);
        const Codes codes{gathered.data(), n, size};
        check(in_threads(num_parts * num_blocks, threads, search.stop, [&](int64_t piece) {
            guarded([&] {
                const int64_t first = piece / num_parts * block, last = std::min(first + block, n);
                const int64_t part = piece % num_parts;
                // parts begin at whole bytes of the bitmap
                const int64_t begin = segment.n * part / num_parts & ~int64_t(7);
                const int64_t end =
                    part + 1 == num_parts ? segment.n : segment.n * (part + 1) / num_parts & ~int64_t(7);
                std::vector<Collected> own;
                std::vector<Collected *> found;
                if (num_parts > 1) own.reserve(last - first);
                for (int64_t i = first; i < last; i++) {
                    if (num_parts > 1) {
                        own.push_back(make());
                        const std::lock_guard<std::mutex> lock(mutex);
                        own.back().begin_with(queries[i]->collected);
                    }
                    found.push_back(num_parts > 1 ? &own.back() : &queries[i]->collected);
                }
                if (copying) scan_allowed(number, codes, first, last, begin, end, found);
                else scan_all(number, codes, first, last, begin, end, found);
                if (num_parts == 1) return;
                const std::lock_guard<std::mutex> lock(mutex);
                for (int64_t i = first; i < last; i++)
                    for (const Entry &entry : own[i - first].entries)
                        if (queries[i]->collected.wants(entry.distance, entry.id))
                            queries[i]->collected.add(entry);
            });
        }));
    }

    void scan_all(int32_t number, const Codes &queries, int64_t first, int64_t last, int64_t begin,
        int64_t end, const std::vector<Collected *> &found) {
        const IndexSegment &segment = search.segments[number];
        Scanner scanner(*set.hamming, queries, Codes{segment.codes, segment.n, search.code_size});
        scanner.begin_block(first, last);
        // What a tile without a near code needs, in little memory: a block has many queries.
        struct Hot {
            int32_t limit;
            bool compare_ids;  // whether the tile's lowest id may keep all codes at the limit out
        };
        std::vector<Hot> hot;
        for (const Collected *of_query : found) hot.push_back({of_query->limit, false});

        std::vector<Shortlist> lists;
        std::unique_ptr<uint64_t[]> room;
        const int64_t k = found[0]->most();
        if (last - first > FEW_QUERIES && k <= (end - begin) / MANY_CODES) {
            const int64_t capacity = Shortlist::capacity_of(k);
            room.reset(new uint64_t[(last - first) * capacity]);
            for (int64_t i = 0; i < last - first; i++)
                lists.emplace_back(&room[i * capacity], k, found[i]->limit, !segment.ranks);
        }
        const auto take_list = [&](int64_t i) {
            lists[i].take_all([&](int64_t position, int32_t distance) {
                take(number, position, distance, *found[i]);
            });
        };

        int32_t guess = 8 * search.code_size;  // the limit after the first tile
        int64_t tile = lists.empty() ? FIRST_TILE : scanner.tile_size;
        for (int64_t start = begin; start < end && !is_set(search.stop); start += tile, tile *= 2) {
            tile = std::min(tile, scanner.tile_size);
            const int64_t size = std::min(tile, end - start);
            scanner.begin_tile(start, size);
            int64_t lowest_id = -1;
            bool knows_lowest = false;
            const auto use_list = [&](int64_t q) {
                Shortlist &list = lists[q - first];
                Collected &of_query = *found[q - first];
                const auto near = [&](int32_t limit) {
                    scanner.for_near(q, limit, [&](int64_t position, int64_t distance) {
                        if (may_find(segment, position) && !list.add(position, distance))
                            take(number, position, distance, of_query);
                    });
                };
                if (start == begin) guess = list.begin(guess, near) + 1;
                else near(list.limit);
                if (!list.closed()) return;
                take_list(q - first);
                hot[q - first] = {of_query.limit, of_query.knows_last()};
            };
            for (int64_t q = first; q < last; q++) {
                if (!lists.empty() && !lists[q - first].closed()) {
                    use_list(q);
                    continue;
                }
                Collected &of_query = *found[q - first];
                Hot &known = hot[q - first];
                int64_t limit = known.limit, ties = -1;
                if (known.compare_ids) {
                    if (!knows_lowest) lowest_id = lowest(segment, start, size), knows_lowest = true;
                    if (!of_query.wants_ties(lowest_id)) limit--;
                }
                scanner.for_near(q, limit, [&](int64_t position, int64_t distance) {
                    if (ties < 0) ties = of_query.num_ties;
                    take(number, position, distance, of_query);
                });
                if (ties < 0) continue;
                const bool many = of_query.num_ties - ties >= MANY_TIES || limit < known.limit;
                known = {of_query.limit, of_query.knows_last() && (!segment.ranks || many)};
            }
        }
        for (size_t i = 0; i < lists.size(); i++) take_list(i);
    }

    int64_t lowest(const IndexSegment &segment, int64_t start, int64_t size) const {
        if (!segment.ranks) return id_of(segment, start);
        return id_of_rank(segment, set.index->lowest(segment.ranks + start, size));
    }

    // Copies the codes that may be found, a tile at a time.
    void scan_allowed(int32_t number, const Codes &queries, int64_t first, int64_t last, int64_t begin,
        int64_t end, const std::vector<Collected *> &found) {
        const IndexSegment &segment = search.segments[number];
        const int32_t size = search.code_size;
        std::vector<uint8_t> copied(MAX_TILE * int64_t(size));
        std::vector<int64_t> positions(MAX_TILE);
        Scanner scanner(*set.hamming, queries, Codes{copied.data(), MAX_TILE, size});
        scanner.begin_block(first, last);
        int64_t num_copied = 0, tile = FIRST_TILE;
        const auto compare = [&] {
            if (num_copied == 0) return;
            scanner.begin_tile(0, num_copied);
            for (int64_t q = first; q < last; q++)
                scanner.for_near(q, found[q - first]->limit, [&](int64_t at, int64_t distance) {
                    take(number, positions[at], distance, *found[q - first]);
                });
            num_copied = 0;
            tile = std::min(2 * tile, scanner.tile_size);
        };
        tile = std::min(tile, scanner.tile_size);
        for (int64_t byte = begin / 8; byte < (end + 7) / 8 && !is_set(search.stop); byte++)
            for (uint32_t bits = segment.allowed[byte]; bits; bits &= bits - 1) {
                const int64_t position = 8 * byte + __builtin_ctz(bits);
                if (position >= end) break;
                memcpy(&copied[num_copied * size], segment.codes + position * size, size);
                positions[num_copied++] = position;
                if (num_copied == tile) compare();
            }
        compare();
    }

    void take(int32_t number, int64_t position, int64_t distance, Collected &collected) {
        const IndexSegment &segment = search.segments[number];
        if (!collected.wants(distance) || !may_find(segment, position)) return;
        const int64_t id = id_of(segment, position);
        if (collected.wants(distance, id)) collected.add({id, int32_t(distance), number});
    }

    // ---- errors in threads ------------------------------------------------------------------------------

    template <class Work>
    void guarded(Work work) {
        try {
            work();
        } catch (const Broken &) {
            broken = true;
            throw;
        }
    }

    void check(bool fine) {
        if (broken) throw Broken();
        if (!fine) throw std::bad_alloc();
    }

    const IndexQuery &search;
    const InstructionSet &set;
    Make make;
    Finish finish;
    const int64_t bytes;  // that a query's answer takes while it is looked for
    const int64_t round;  // queries
    std::vector<int32_t> order;  // of segments
    std::vector<Pending> pending;
    std::mutex mutex;
    std::atomic<bool> broken{false};
};

template <class Collected, class Make, class Finish>
int32_t run(const IndexQuery &search, Make make, Finish finish, int64_t bytes) try {
    return Searcher<Collected, Make, Finish>(search, make, finish, bytes).run();
} catch (const std::exception &) {
    return LLC_NO_MEMORY;
}

struct Found {
    std::vector<std::vector<Entry>> of_query;
};

}  // namespace

int32_t llc_index_search(const IndexQuery *query, int64_t k, int32_t *distances, int64_t *ids) {
    const int32_t farthest = 8 * query->code_size;
    return run<Best>(
        *query, [=] { return Best(k, farthest + 1, farthest); },
        [=](int64_t q, Best &best) {
            best.finish();
            const int64_t found = best.entries.size();
            for (int64_t i = 0; i < found; i++) {
                distances[q * k + i] = best.entries[i].distance;
                ids[q * k + i] = best.entries[i].id;
            }
            std::fill(distances + q * k + found, distances + (q + 1) * k, -1);
            std::fill(ids + q * k + found, ids + (q + 1) * k, -1);
        },
        2 * k * sizeof(Entry) + 4 * int64_t(farthest) + 8 * Shortlist::capacity_of(k));
}

int32_t llc_index_range_search(const IndexQuery *query, int64_t radius, int64_t *lims, void **found) try {
    const int32_t limit = std::min<int64_t>(radius, 8 * query->code_size);
    auto all = std::make_unique<Found>();
    all->of_query.resize(query->n);
    const int32_t status = run<Within>(
        *query, [=] { return Within(limit); },
        [&](int64_t q, Within &within) {
            within.finish();
            all->of_query[q] = within.entries;  // a copy, without spare room
        },
        1024);
    if (status != LLC_DONE) return status;
    lims[0] = 0;
    for (int64_t q = 0; q < query->n; q++) lims[q + 1] = lims[q] + all->of_query[q].size();
    *found = all.release();
    return LLC_DONE;
} catch (const std::exception &) {
    return LLC_NO_MEMORY;
}

void llc_index_take(void *found, int32_t *distances, int64_t *ids) {
    const std::unique_ptr<Found> all(static_cast<Found *>(found));
    if (!ids) return;
    for (std::vector<Entry> &entries : all->of_query) {
        for (const Entry &entry : entries) *distances++ = entry.distance, *ids++ = entry.id;
        std::vector<Entry>().swap(entries);
    }
}

int64_t llc_index_count(const uint8_t *bitmap, int64_t n) {
    int64_t count = 0, byte = 0;
    for (; byte + 4 <= n / 8; byte += 4) {
        uint32_t word;
        memcpy(&word, bitmap + byte, 4);
        count += num_ones(word);
    }
    for (; byte < n / 8; byte++) count += num_ones(bitmap[byte]);
    if (n % 8) count += num_ones(bitmap[n / 8] & ((1 << n % 8) - 1));
    return count;
}
