#include <algorithm>

#include "cpu.h"
#include "hamming.h"
#include "kernels.h"

namespace {

constexpr int64_t VALUES_PER_THREAD = 1 << 21;
constexpr int64_t VALUES_PER_PIECE = 1 << 22;

}  // namespace

int32_t llc_pack_bits(const void *values, int64_t n, int64_t num_bits, int32_t item_size, uint64_t limit,
    int32_t num_threads, int32_t instructions, const uint8_t *stop, uint8_t *codes) {
    const HammingKernels &kernels = *instruction_set(instructions)->hamming;
    const auto *bytes = static_cast<const uint8_t *>(values);
    const int64_t row_bytes = num_bits * item_size, code_size = (num_bits + 7) / 8;
    const int32_t threads = threads_worth(n * num_bits, VALUES_PER_THREAD, num_threads);
    const int64_t step =
        std::max<int64_t>(1, std::min((n + threads - 1) / threads, VALUES_PER_PIECE / num_bits));
    const bool fine = in_threads((n + step - 1) / step, threads, stop, [&](int64_t piece) {
        const int64_t row = piece * step;
        kernels.pack(bytes + row * row_bytes, bytes + n * row_bytes, std::min(step, n - row), num_bits,
            item_size, limit, codes + row * code_size);
    });
    return status_of(fine, stop);
}
