// A JPEG -> a JPEG of another quality, 4:2:0, without its pixels in between.
//
// A decoder's inverse DCT and an encoder's DCT undo each other where both have the same grid of blocks. So
// luma coefficients are only multiplied by one step size and divided by the other, rounded once instead of
// three times. Where there are more chroma samples than in 4:2:0, pairs of them are averaged, which is a
// linear map of their coefficients too. What remains is mostly Huffman coding.
#pragma once
#include <cstdint>

#include "encode.h"
#include "markers.h"

// Recodes a common image: writes the whole JPEG to buffer [capacity]. Everything but its size is from the
// header of `model`, a 4:2:0 JPEG by libjpeg with the standard Huffman codes. LLC_NOT_ORDINARY: the scan is
// damaged or unusual in some way.
EncodeStatus recode(const JpegMarkers &source, const JpegMarkers &model, uint8_t *buffer, int64_t capacity,
    int64_t &length);
