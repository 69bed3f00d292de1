// For CPUs of which no instruction is known that counts the ones of a word; and for NEON, which all CPUs of
// its kind have.
#include "near.h"

namespace {

struct Ones {
    static inline uint32_t of(uint64_t word) {
#if defined(__aarch64__)
        return __builtin_popcountll(word);
#else
        word = word - (word >> 1 & 0x5555555555555555);
        word = (word & 0x3333333333333333) + (word >> 2 & 0x3333333333333333);
        return ((word + (word >> 4)) & 0x0f0f0f0f0f0f0f0f) * 0x0101010101010101 >> 56;
#endif
    }
};

}  // namespace

const IndexKernels PORTABLE_INDEX = {Near<Ones>::near_rows, Near<Ones>::near_at, Near<Ones>::lowest};
