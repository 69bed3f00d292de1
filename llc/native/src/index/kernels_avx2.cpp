#if defined(__x86_64__)
#include <cstdint>
#include <cstring>
#include <immintrin.h>

#include "kernels.h"

#pragma GCC target("avx2,popcnt,bmi,bmi2")
#include "near.h"

namespace {

struct Ones {
    static inline __attribute__((always_inline)) uint32_t of(uint64_t word) { return _mm_popcnt_u64(word); }
};

}  // namespace

const IndexKernels AVX2_INDEX = {Near<Ones>::near_rows, Near<Ones>::near_at, Near<Ones>::lowest};
#endif
