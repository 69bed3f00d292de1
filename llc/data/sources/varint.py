"""Integers of variable length, as protocol buffers and Thrift's compact protocol write them."""


def read_varint(data, position):
    """(number, position behind it) of the integer at `position`: 7 bits per byte, the lowest first.

    Raises IndexError where the data end before it does, and ValueError where it has more than 10 bytes.
    """
    value = 0
    for shift in range(0, 70, 7):
        byte, position = data[position], position + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number without an end")
