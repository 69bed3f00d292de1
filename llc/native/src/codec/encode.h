// The writer's part of the interface, by the same rules as codec.h. It handles ordinary JPEGs only: upright,
// YCbCr or grey, 8 bits, in one scan, complete, undamaged, with sides up to 65,500 pixels. For all others
// each function returns LLC_NOT_ORDINARY, and the caller takes a slower way.
#pragma once
#include "codec.h"

enum EncodeStatus : int32_t {
    LLC_ENCODED = 0,
    LLC_NOT_ORDINARY,  // or damaged, or out of memory
    LLC_TOO_LARGE,     // the result is longer than `capacity`
};

// Each function writes its result to out [capacity], its length and the picture's size to the last three
// arguments, and returns an EncodeStatus. max_side: a longer side is shrunk to this length; 0: no shrinking.
// restart_blocks: the number of blocks between two restart markers, at least one MCU; 0: no markers.
//
// llc_recode_jpeg   a JPEG -> a baseline JPEG of that quality, 4:2:0
// llc_keep_jpeg     a JPEG that is no larger -> the same coefficients; in several scans (progressive) too
// llc_read_jpeg     a JPEG -> its pixels, RGB
LLC_API int32_t llc_recode_jpeg(const uint8_t *data, int64_t size, int32_t max_side, int32_t quality,
    int32_t restart_blocks, uint8_t *out, int64_t capacity, int64_t *length, int32_t *width, int32_t *height);
LLC_API int32_t llc_keep_jpeg(const uint8_t *data, int64_t size, int32_t max_side, int32_t restart_blocks,
    uint8_t *out, int64_t capacity, int64_t *length, int32_t *width, int32_t *height);
LLC_API int32_t llc_read_jpeg(const uint8_t *data, int64_t size, int32_t max_side, uint8_t *out,
    int64_t capacity, int64_t *length, int32_t *width, int32_t *height);

// pixels [height, width, 3] -> a baseline JPEG of that quality, 4:2:0.
LLC_API int32_t llc_encode_jpeg(const uint8_t *pixels, int32_t height, int32_t width, int32_t quality,
    int32_t restart_blocks, uint8_t *out, int64_t capacity, int64_t *length);
