#include "cpu.h"

#include "codec/kernels.h"
#include "native.h"

namespace {

#if defined(__x86_64__)
constexpr InstructionSet AVX512 = {"AVX-512", &AVX512_KERNELS};
constexpr InstructionSet AVX2 = {"AVX2", &AVX2_KERNELS};
#endif
constexpr InstructionSet PORTABLE = {"portable", &PORTABLE_KERNELS};

}  // namespace

const InstructionSet *instruction_set(int32_t index) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && index-- == 0)
        return &AVX512;
    if (__builtin_cpu_supports("avx2") && index-- == 0) return &AVX2;
#endif
    return index == 0 ? &PORTABLE : nullptr;
}

const char *llc_instructions(int32_t index) {
    const InstructionSet *set = instruction_set(index);
    return set ? set->name : nullptr;
}
