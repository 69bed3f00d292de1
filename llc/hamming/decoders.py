"""The two Hamming decoders of packed codes, MHD and ED.

Both scan the class codes or, for short codes, look each code up in a table.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from llc.arguments import whole_number
from llc.codes import Array
from llc.hamming.neighbours import as_array, check_codes, is_cuda, search
from llc.native import hamming

TABLE_BITS = 24  # longer codes are always scanned: a table has 2^num_bits int32 entries, 64 MB for 24 bits
# Scanning this many pairs of codes takes about as long as building one entry of the table. Measured: 50 pairs
# for 20 bits and 100 for 24 bits on a CPU with 2 cores; on an H200, where the table is built on the CPU and
# copied, 1,700 if 50,000 codes come at a time, and up to 27,000 for more.
PAIRS_PER_ENTRY = {"cpu": 64, "cuda": 4096}


class Decoder:
    """Decodes codes with the class codes of one codebook.

    class_codes: uint8 [num_classes, code_size], a numpy array or a torch tensor on a CPU or CUDA; they are
    copied. table: True builds a table of the nearest class of every possible code now, and False never does.
    None builds it once the scans have taken about as long as building it takes, if at most TABLE_BITS bits
    are in use. The classes found are the same in all three cases. Raises ValueError if class_codes are not
    packed codes, if there are none, or if table is True and more than TABLE_BITS bits are in use.
    """

    # Any: one decoder holds arrays of one kind, but a method takes and returns either kind.
    class_codes: Any
    _table: Any

    def __init__(self, class_codes: Array, table: bool | None = None) -> None:
        check_codes(class_codes=class_codes)
        if len(class_codes) == 0:
            raise ValueError("class_codes: there are no classes")
        if table not in (True, False, None):
            raise ValueError(f"table: expected True, False or None, got {table!r:.80}")
        # a copy, so that the table keeps fitting them
        self.class_codes = (
            class_codes.clone() if isinstance(class_codes, torch.Tensor) else class_codes.copy()
        )
        self._table, self._num_scanned = None, 0
        self._num_bits = 0 if table is False else _bits_in_use(class_codes)
        self._may_build = table is not False and self._num_bits <= TABLE_BITS
        if table:
            if not self._may_build:
                raise ValueError(
                    f"class_codes: {self._num_bits} bits are in use, but a table takes up to {TABLE_BITS}: "
                    "leave `table` out"
                )
            self._build_table()

    def mhd(self, codes: Array, k: int = 1) -> Array:
        """Minimum Hamming distance decoding: the k nearest classes of each code, ties to the lowest class.

        codes uint8 [n, code_size] -> classes int64 [n, k]. The codes must be of the same kind and on the
        same device as the class codes. The table is used for k = 1 only. Raises ValueError as `search`
        does.
        """
        check_codes(codes=codes, class_codes=self.class_codes)
        k = whole_number("k", k, 1, len(self.class_codes), "the number of classes")
        if k != 1:
            return search(codes, self.class_codes, k)[1]
        return self._nearest(codes)[:, None]

    def ed(self, codes: Array) -> Array:
        """Exact decoding: the class whose code equals the given one, or -1 if there is none.

        codes uint8 [n, code_size] -> classes int64 [n]. Where several classes have that code, it is the
        lowest of them. For arguments and errors see `mhd`.
        """
        check_codes(codes=codes, class_codes=self.class_codes)
        nearest: Any = self._nearest(codes)
        if is_cuda(codes):
            nearest = torch.where((self.class_codes[nearest] == codes).all(1), nearest, -1)
            return nearest
        # as_array shares the memory of `nearest`, so this changes it
        hamming.keep_exact(
            as_array(codes), as_array(self.class_codes), as_array(nearest), torch.get_num_threads()
        )
        return nearest

    def _nearest(self, codes: Array) -> Array:
        """The nearest class of each code -> int64 [n]."""
        if self._table is None and self._may_build:
            self._num_scanned += len(codes)
            pairs_per_entry = PAIRS_PER_ENTRY["cuda" if is_cuda(codes) else "cpu"]
            if self._num_scanned * len(self.class_codes) > pairs_per_entry << self._num_bits:
                self._build_table()
        if self._table is None:
            return search(codes, self.class_codes, 1)[1][:, 0]
        if is_cuda(codes):
            from llc.hamming import cuda_table

            nearest: Any = cuda_table.look_up(torch.as_tensor(codes), self._num_bits, self._table)
            return nearest
        classes = hamming.look_up(as_array(codes), self._num_bits, self._table, torch.get_num_threads())
        return classes if isinstance(codes, np.ndarray) else torch.from_numpy(classes)

    def _build_table(self) -> None:
        on_cpu = self.class_codes.cpu() if is_cuda(self.class_codes) else self.class_codes
        built = hamming.build_table(as_array(on_cpu), self._num_bits, torch.get_num_threads())
        on_cuda = is_cuda(self.class_codes)
        self._table = torch.from_numpy(built).to(self.class_codes.device) if on_cuda else built


def _bits_in_use(class_codes: Any) -> int:
    """The number of bits up to the last one that is 1 in any class code.

    No table needs the bits after it: they are 0 in all class codes, so they add the same to every distance.
    """
    if is_cuda(class_codes):
        class_codes = class_codes.cpu()
    joined = int.from_bytes(np.bitwise_or.reduce(as_array(class_codes), axis=0).tobytes(), "big")
    return 8 * class_codes.shape[1] - ((joined & -joined).bit_length() - 1) if joined else 0


def decode_mhd(codes: Array, class_codes: Array, k: int = 1) -> Array:
    """Minimum Hamming distance decoding: the k nearest classes of each code, ties to the lowest class.

    codes uint8 [n, code_size], class_codes uint8 [num_classes, code_size] -> classes int64 [n, k]. Raises
    ValueError as `search` does. On the CPU the tables of the last two sets of class codes are kept, see
    Decoder. On CUDA every call scans, because looking for a kept table would wait for the device; a Decoder
    avoids that.
    """
    check_codes(codes=codes, class_codes=class_codes)
    return _on_kept_decoder(Decoder.mhd, codes, class_codes, k)


def decode_ed(codes: Array, class_codes: Array) -> Array:
    """Exact decoding: the class whose code equals the given one, or -1 if there is none.

    codes uint8 [n, code_size], class_codes uint8 [num_classes, code_size] -> classes int64 [n]. Where several
    classes have the same code, it is the lowest of them. For errors and kept tables see decode_mhd.
    """
    check_codes(codes=codes, class_codes=class_codes)
    return _on_kept_decoder(Decoder.ed, codes, class_codes)


def _on_kept_decoder(decode: Callable[..., Any], codes: Array, class_codes: Array, *arguments: int) -> Array:
    """Calls Decoder.mhd or Decoder.ed on a decoder of these class codes; on the CPU it may be a kept one."""
    # Class codes that are too long for a table are scanned, so they need not be compared with the kept ones.
    if is_cuda(codes) or class_codes.shape[1] > TABLE_BITS // 8:
        return decode(Decoder(class_codes, table=False), codes, *arguments)
    decoder = _kept_decoder(as_array(class_codes).tobytes(), class_codes.shape[1])
    classes = decode(decoder, as_array(codes), *arguments)
    return classes if isinstance(codes, np.ndarray) else torch.from_numpy(classes)


@functools.lru_cache(maxsize=2)  # two tables of 24 bits are 128 MB
def _kept_decoder(class_codes: bytes, code_size: int) -> Decoder:
    return Decoder(np.frombuffer(bytearray(class_codes), np.uint8).reshape(-1, code_size))
