// Reading images. Threads share no data, so each function may run in several of them at once. The only common
// state is the SIGBUS handler, installed by the first batch (guard.h). Pixels are uint8, RGB, interleaved.
#pragma once
#include "native.h"

enum Status : int32_t {
    LLC_OK = 0,
    LLC_CORRUPT,        // libjpeg's error or warning while decoding, such as a premature end of data
    LLC_WRONG_SIZE,     // the JPEG's size is not the one in the beton
    LLC_WRONG_MODE,     // neither JPEG nor raw, or raw data of another length than width * height * 3
    LLC_WRONG_COLOUR,   // a JPEG that is neither grey nor YCbCr nor RGB
    LLC_WRONG_CROP,     // empty, or not within the image
    LLC_OUT_OF_MEMORY,
    LLC_UNREADABLE,     // its mapped file became shorter, or the disk failed
    LLC_NUM_STATUSES
};

// A text for people, or NULL if `status` is none of the above.
LLC_API const char *llc_status_text(int32_t status);

// Decodes n samples: data[i] has sizes[i] bytes of mode modes[i]; crops [n, 4]: top, left, height, width;
// flips [n]: mirrored left to right. Writes out [n, out_height, out_width, 3] and status [n]. The pixels of a
// sample whose status is not LLC_OK are all 0. `instructions` is an index of llc_instructions.
LLC_API void llc_decode_batch(int64_t n, const uint8_t *const *data, const int64_t *sizes,
    const uint8_t *modes, const int32_t *widths, const int32_t *heights, const int32_t *crops,
    const uint8_t *flips, uint8_t *out, int32_t out_height, int32_t out_width, int32_t num_threads,
    int32_t instructions, int32_t *status);

// Size of a JPEG from its header. Returns a Status.
LLC_API int32_t llc_jpeg_size(const uint8_t *data, int64_t size, int32_t *width, int32_t *height);

// Decodes a whole JPEG of that size into out [height, width, 3]. Returns a Status.
LLC_API int32_t llc_decode_jpeg(const uint8_t *data, int64_t size, int32_t width, int32_t height,
    uint8_t *out);
