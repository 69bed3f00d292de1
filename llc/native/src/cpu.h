// The kernels for each kind of CPU, chosen at run time.
#pragma once
#include <cstdint>

struct CodecKernels;
struct HammingKernels;
struct IndexKernels;

struct InstructionSet {
    const char *name;
    const CodecKernels *codec;
    const HammingKernels *hamming;
    const IndexKernels *index;
};

// The index-th best instruction set that this CPU has; NULL beyond the last.
const InstructionSet *instruction_set(int32_t index);
