// What passes between decoders and resizer.
#pragma once
#include <cstdint>

struct Region {
    int32_t top, left, height, width;
};

// Takes an image's rows, uint8 RGB, from top to bottom.
class RowSink {
public:
    // The next row is the first one, whatever came before.
    virtual void begin() = 0;
    // Room for `count` more rows, `stride` bytes apart, with ROOM bytes behind the last one that may be
    // written as well.
    virtual uint8_t *reserve(int32_t count, int64_t &stride) = 0;
    // `count` rows have been written there.
    virtual void added(int32_t count) = 0;

    static constexpr int32_t ROOM = 96;

protected:
    ~RowSink() = default;
};
