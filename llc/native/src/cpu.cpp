#include "cpu.h"

#include "codec/kernels.h"
#include "hamming/kernels.h"
#include "index/kernels.h"
#include "native.h"

namespace {

#if defined(__x86_64__)
constexpr InstructionSet BITALG = {"AVX-512 BITALG", &AVX512_CODEC, &BITALG_HAMMING, &AVX2_INDEX};
constexpr InstructionSet AVX512 = {"AVX-512", &AVX512_CODEC, &AVX512_HAMMING, &AVX2_INDEX};
constexpr InstructionSet AVX2 = {"AVX2", &AVX2_CODEC, &AVX2_HAMMING, &AVX2_INDEX};
#elif defined(__aarch64__)
constexpr InstructionSet NEON = {"NEON", &PORTABLE_CODEC, &NEON_HAMMING, &PORTABLE_INDEX};
#endif
constexpr InstructionSet PORTABLE = {"portable", &PORTABLE_CODEC, &PORTABLE_HAMMING, &PORTABLE_INDEX};

}  // namespace

const InstructionSet *instruction_set(int32_t index) {
#if defined(__x86_64__)
    // GCC and Clang check that the system saves the registers too
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt") &&
        __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (avx512 && __builtin_cpu_supports("avx512bitalg") && index-- == 0) return &BITALG;
    if (avx512 && index-- == 0) return &AVX512;
    if (avx2 && index-- == 0) return &AVX2;
#elif defined(__aarch64__)
    if (index-- == 0) return &NEON;
#endif
    return index == 0 ? &PORTABLE : nullptr;
}

const char *llc_instructions(int32_t index) {
    const InstructionSet *set = instruction_set(index);
    return set ? set->name : nullptr;
}
