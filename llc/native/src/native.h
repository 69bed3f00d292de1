// What all parts of the library's interface share. It consists of plain C functions, which llc/native loads
// through ctypes: codec/codec.h, codec/encode.h, hamming/hamming.h, index/index.h. No function throws.
#pragma once
#include <cstdint>

#define LLC_API extern "C" __attribute__((visibility("default")))

// The name of the index-th best instruction set that this CPU has; NULL beyond the last. Functions that take
// `instructions` take such an index.
LLC_API const char *llc_instructions(int32_t index);
