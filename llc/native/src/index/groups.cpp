// Groups of codes that chains of short steps connect.
//
// Equal codes are joined first, so the rest sees each code once. To find pairs up to `radius` bits apart, the
// bits are divided into radius + t blocks: two such codes agree in at least t of these, so they have the same
// key for at least one choice of t blocks. For each choice the codes are sorted by their key, and those of
// one key compared with each other (Manku, Jain and Das Sarma, WWW 2007, do so in a search). More blocks mean
// longer keys, hence fewer pairs, and more sorting; a sample says which number costs least.
#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#include "cpu.h"
#include "index.h"
#include "kernels.h"
#include "segment.h"

namespace {

// Bits [first_bit, first_bit + num_bits) of a code as a number, the first of them the highest; num_bits < 32.
inline uint32_t bits_at(const uint8_t *code, int32_t code_size, int32_t first_bit, int32_t num_bits) {
    int32_t byte = first_bit / 8;
    uint64_t word;
    if (code_size >= 8) {
        byte = byte < code_size - 8 ? byte : code_size - 8;
        memcpy(&word, code + byte, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        word = __builtin_bswap64(word);
#endif
    } else {
        word = 0;
        for (int32_t i = 0; i < 5; i++)
            word |= byte + i < code_size ? uint64_t(code[byte + i]) << (56 - 8 * i) : 0;
    }
    return word >> (64 - (first_bit - 8 * byte) - num_bits) & ((uint64_t(1) << num_bits) - 1);
}

struct Stopped : std::exception {};

struct Item {
    uint64_t key;
    uint32_t code;
};

struct Groups {
    std::vector<int64_t> lims, ids;
};

constexpr int32_t MAX_BLOCKS = 64;
constexpr int64_t MAX_CHOICES = 2000;
constexpr int64_t SAMPLE = 1 << 13;
constexpr double SORT_COST = 40, PAIR_COST = 1;  // nanoseconds, of a code and of a pair
constexpr int32_t BLOCK = 256;

class Grouping {
public:
    Grouping(int32_t code_size, int32_t num_bits, int32_t radius, const uint8_t *stop)
        : code_size(code_size), num_bits(num_bits), radius(radius), stop(stop),
          kernels(*instruction_set(0)->index) {}

    std::unique_ptr<Groups> run(const IndexSegment *segments, int64_t num_segments) {
        for (int64_t i = 0; i < num_segments; i++) collect(segments[i]);
        join_equal();
        if (radius >= num_bits) {
            for (int64_t i = 1; i < num_codes(); i++) join(0, i);
        } else if (radius > 0 && num_codes() > 1) {
            join_near();
        }
        return result();
    }

private:
    int64_t num_codes() const { return codes.size() / code_size; }
    const uint8_t *code(int64_t i) const { return codes.data() + i * code_size; }

    void heed_stop() const {
        if (is_set(stop)) throw Stopped();
    }

    void collect(const IndexSegment &segment) {
        codes.reserve(codes.size() + segment.num_allowed * code_size);
        ids.reserve(ids.size() + segment.num_allowed);
        for (int64_t position = 0; position < segment.n; position++) {
            if (position % 65536 == 0) heed_stop();
            if (!may_find(segment, position)) continue;
            const uint8_t *from = segment.codes + position * code_size;
            codes.insert(codes.end(), from, from + code_size);
            ids.push_back(id_of(segment, position));
        }
    }

    // ---- equal codes ------------------------------------------------------------------------------------

    // Keeps one of each set of equal codes. of_id: the number of each id's code.
    void join_equal() {
        const int64_t n = ids.size();
        items.resize(n);
        for (int64_t i = 0; i < n; i++) items[i] = {hash(code(i)), uint32_t(i)};
        sort(8);
        of_id.assign(n, 0);
        std::vector<uint32_t> firsts;  // of the different codes with one hash, nearly always one
        std::vector<uint8_t> kept;
        kept.reserve(codes.size() / 4);
        uint32_t number = 0;
        for (int64_t begin = 0, end; begin < n; begin = end) {
            if (begin % 1024 == 0) heed_stop();
            firsts.clear();
            const uint32_t first_number = number;
            for (end = begin; end < n && items[end].key == items[begin].key; end++) {
                size_t same = 0;
                while (same < firsts.size() && memcmp(code(firsts[same]), code(items[end].code), code_size))
                    same++;
                if (same == firsts.size()) {
                    firsts.push_back(items[end].code);
                    kept.insert(kept.end(), code(items[end].code), code(items[end].code) + code_size);
                    number++;
                }
                of_id[items[end].code] = first_number + same;
            }
        }
        codes.swap(kept);
        parents.resize(number);
        std::iota(parents.begin(), parents.end(), 0);
    }

    uint64_t hash(const uint8_t *code) const {
        uint64_t mixed = 0;
        for (int32_t byte = 0; byte < code_size; byte += 8) {
            uint64_t word = 0;
            memcpy(&word, code + byte, std::min(8, code_size - byte));
            mixed = (mixed ^ word) * 0x9e3779b97f4a7c15;
            if (code_size > 8) mixed ^= mixed >> 29;
        }
        return mixed;  // for codes up to 8 bytes one to one
    }

    // Sorts the items by the low bytes of their keys.
    void sort(int32_t num_bytes) {
        spare.resize(items.size());
        for (int32_t shift = 0; shift < 8 * num_bytes; shift += 11) {
            heed_stop();
            int64_t starts[2049] = {0};
            for (const Item &item : items) starts[(item.key >> shift & 2047) + 1]++;
            if (*std::max_element(starts, starts + 2049) == int64_t(items.size())) continue;
            std::partial_sum(starts, starts + 2049, starts);
            for (const Item &item : items) spare[starts[item.key >> shift & 2047]++] = item;
            items.swap(spare);
        }
    }

    // ---- near codes -------------------------------------------------------------------------------------

    void join_near() {
        const int32_t t = best_common();
        for_choices(t, [&](const std::vector<int32_t> &chosen) {
            heed_stop();
            items.resize(num_codes());
            for (int64_t i = 0; i < num_codes(); i++) items[i] = {key(i, chosen, radius + t), uint32_t(i)};
            if (t > 0) sort(8);
            const int64_t n = items.size();
            for (int64_t begin = 0, end; begin < n; begin = end) {
                if (begin % 1024 == 0) heed_stop();
                for (end = begin + 1; end < n && items[end].key == items[begin].key;) end++;
                if (end - begin > 1) join_run(begin, end);
            }
        });
    }

    // The number of blocks in which two near codes agree: that of the lowest estimated cost.
    int32_t best_common() {
        const int64_t n = num_codes(), size = std::min(n, SAMPLE);
        const double scale = double(n) / size;
        int32_t best = 0;
        double lowest = double(n) * n / 2 * PAIR_COST;
        for (int32_t t = 1; t <= 8 && radius + t <= std::min(num_bits, MAX_BLOCKS); t++) {
            double choices = 1;
            for (int32_t i = 0; i < t; i++) choices = choices * (radius + t - i) / (i + 1);
            if (choices > MAX_CHOICES) break;
            if (choices * n * SORT_COST > lowest) break;
            // pairs of the sample with the same key, for the first choice of blocks and for the last
            double pairs = 0;
            for (const int32_t first : {0, radius}) {
                std::vector<int32_t> chosen(t);
                std::iota(chosen.begin(), chosen.end(), first);
                items.clear();
                for (int64_t i = 0; i < size; i++)
                    items.push_back({key(int64_t(i * scale), chosen, radius + t), 0});
                sort(8);
                double length = 0, of_choice = 1;
                for (size_t i = 1; i < items.size(); i++) {
                    length = items[i].key == items[i - 1].key ? length + 1 : 0;
                    of_choice += length;
                }
                pairs = std::max(pairs, of_choice);
            }
            const double cost =
                choices * (n * SORT_COST + std::min(pairs * scale * scale, double(n) * n / 2) * PAIR_COST);
            if (cost < lowest) lowest = cost, best = t;
        }
        return best;
    }

    // Calls use(chosen) for every choice of t of radius + t blocks.
    template <class Use>
    void for_choices(int32_t t, Use use) {
        std::vector<int32_t> chosen(t);
        std::iota(chosen.begin(), chosen.end(), 0);
        for (;;) {
            use(chosen);
            int32_t i = t - 1;
            while (i >= 0 && chosen[i] == radius + i) i--;
            if (i < 0) return;
            chosen[i]++;
            for (int32_t later = i + 1; later < t; later++) chosen[later] = chosen[later - 1] + 1;
        }
    }

    // Equal if the bits of the chosen blocks are; else nearly always different.
    uint64_t key(int64_t i, const std::vector<int32_t> &chosen, int32_t num_blocks) const {
        uint64_t mixed = 0;
        for (const int32_t block : chosen) {
            int32_t first = int64_t(num_bits) * block / num_blocks;
            const int32_t last = int64_t(num_bits) * (block + 1) / num_blocks;
            for (int32_t bits; first < last; first += bits) {
                bits = std::min(last - first, 31);
                mixed = (mixed ^ bits_at(code(i), code_size, first, bits)) * 0x9e3779b97f4a7c15;
                mixed ^= mixed >> 32;
            }
        }
        return mixed;
    }

    // Joins the near ones among the codes of items [begin, end): a search from code to code, which compares
    // each only with those that were not reached before. It begins at those that are joined already.
    void join_run(int64_t begin, int64_t end) {
        const int64_t n = end - begin;
        if (n == 2) {
            uint16_t place, distance;
            const uint32_t a = items[begin].code, b = items[begin + 1].code;
            if (kernels.near_rows(code(a), code_size, 1, code(b), radius, &place, &distance)) join(a, b);
            return;
        }
        const uint32_t root = most_common_root(begin, end);
        std::vector<uint32_t> &left = left_codes, &reached = reached_codes;
        left.clear(), reached.clear(), rows.resize(n * code_size);
        for (int64_t i = begin; i < end; i++) {
            if (find(items[i].code) == root) {
                reached.push_back(items[i].code);
            } else {
                memcpy(&rows[left.size() * code_size], code(items[i].code), code_size);
                left.push_back(items[i].code);
            }
        }
        uint16_t places[BLOCK], distances[BLOCK];
        while (!left.empty()) {
            if (reached.empty()) {
                reached.push_back(left.back());
                left.pop_back();
            }
            const uint32_t from = reached.back();
            reached.pop_back();
            // from the end on, so that the last code can take the place of one that is taken out
            for (int64_t last = left.size(); last > 0;) {
                const int64_t first = std::max<int64_t>(last - BLOCK, 0);
                const int32_t found = kernels.near_rows(&rows[first * code_size], code_size, last - first,
                    code(from), radius, places, distances);
                for (int32_t i = found - 1; i >= 0; i--) {
                    const int64_t at = first + places[i];
                    join(from, left[at]);
                    reached.push_back(left[at]);
                    left[at] = left.back();
                    memmove(&rows[at * code_size], &rows[(left.size() - 1) * code_size], code_size);
                    left.pop_back();
                }
                last = first;
            }
            if (n > 1024) heed_stop();
        }
    }

    // That of most codes, or nearly so.
    uint32_t most_common_root(int64_t begin, int64_t end) {
        uint32_t candidate = 0;
        int64_t lead = 0;  // Boyer and Moore's vote finds a majority, if there is one
        for (int64_t i = begin; i < end; i++) {
            const uint32_t root = find(items[i].code);
            if (lead == 0) candidate = root;
            lead += root == candidate ? 1 : -1;
        }
        return candidate;
    }

    uint32_t find(uint32_t i) {
        while (parents[i] != i) i = parents[i] = parents[parents[i]];
        return i;
    }

    void join(uint32_t a, uint32_t b) {
        a = find(a), b = find(b);
        if (a != b) parents[std::max(a, b)] = std::min(a, b);
    }

    // ---- result -----------------------------------------------------------------------------------------

    std::unique_ptr<Groups> result() {
        std::vector<uint32_t> sizes(parents.size());
        for (const uint32_t number : of_id) sizes[find(number)]++;
        // in the order of ids, so that ids ascend in each group and the groups come by their lowest id
        std::vector<uint32_t> order;
        for (size_t i = 0; i < ids.size(); i++)
            if (sizes[find(of_id[i])] > 1) order.push_back(uint32_t(i));
        std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return ids[a] < ids[b]; });
        auto groups = std::make_unique<Groups>();
        groups->lims.push_back(0);
        constexpr int64_t UNSEEN = -1;
        std::vector<int64_t> next(parents.size(), UNSEEN);  // where the group's next id goes
        for (const uint32_t i : order) {
            const uint32_t root = find(of_id[i]);
            if (next[root] != UNSEEN) continue;
            next[root] = groups->lims.back();
            groups->lims.push_back(next[root] + sizes[root]);
        }
        groups->ids.resize(order.size());
        for (const uint32_t i : order) groups->ids[next[find(of_id[i])]++] = ids[i];
        return groups;
    }

    const int32_t code_size, num_bits, radius;
    const uint8_t *stop;
    const IndexKernels &kernels;
    std::vector<uint8_t> codes, rows;
    std::vector<int64_t> ids;
    std::vector<uint32_t> of_id, parents, left_codes, reached_codes;
    std::vector<Item> items, spare;
};

}  // namespace

int32_t llc_index_groups(const IndexSegment *segments, int64_t num_segments, int32_t code_size,
    int32_t num_bits, int32_t radius, const uint8_t *stop, int64_t *num_groups, int64_t *num_ids,
    void **found) try {
    auto groups = Grouping(code_size, num_bits, radius, stop).run(segments, num_segments);
    *num_groups = groups->lims.size() - 1;
    *num_ids = groups->ids.size();
    *found = groups.release();
    return LLC_DONE;
} catch (const Broken &) {
    return LLC_BROKEN;
} catch (const Stopped &) {
    return LLC_STOPPED;
} catch (const std::exception &) {
    return LLC_NO_MEMORY;
}

void llc_index_take_groups(void *found, int64_t *lims, int64_t *ids) {
    const std::unique_ptr<Groups> groups(static_cast<Groups *>(found));
    if (!ids) return;
    std::copy(groups->lims.begin(), groups->lims.end(), lims);
    std::copy(groups->ids.begin(), groups->ids.end(), ids);
}
