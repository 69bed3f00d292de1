"""The two decoders of packed codes, MHD and ED (see README): by scanning the class codes or, for short codes, by one table lookup."""

import functools

import numpy as np
import torch

from llc.codes import Array
from llc.hamming.neighbours import as_array, check_codes, is_cuda, search

TABLE_BITS = 24  # longer codes are scanned: a table holds 2^num_bits int32, 64 MB for 24 bits
# Pairs of codes whose scan takes as long as building an entry of the table. CPU: measured, 2 cores, some 50 pairs an entry at 20 bits and
# 100 at 24. CUDA, where the table comes from the CPU: an assumption.
PAIRS_PER_ENTRY = {"cpu": 64, "cuda": 4096}


class Decoder:
    """Decodes codes with one codebook: class_codes uint8 [num_classes, code_size], numpy or torch, CPU or CUDA.

    table: True builds the table of the nearest class of every code now; False never does; None does once the scans so far have taken
    about as long as building it takes, if the codes have TABLE_BITS or fewer bits. All three give the same classes.
    Raises ValueError when class_codes are no packed codes, are empty, or too long for a table that is asked for.
    """

    def __init__(self, class_codes: Array, table: bool | None = None) -> None:
        check_codes(class_codes=class_codes)
        if len(class_codes) == 0:
            raise ValueError("class_codes: there are no classes")
        self.class_codes = (
            class_codes.clone() if isinstance(class_codes, torch.Tensor) else class_codes.copy()
        )  # the table is of these
        self._num_bits = None if table is False else _bits_in_use(class_codes)
        self._table, self._num_scanned = None, 0
        if table:
            if self._num_bits > TABLE_BITS:
                raise ValueError(
                    f"class_codes: {self._num_bits} bits are in use, a table takes up to {TABLE_BITS}: leave `table` out"
                )
            self._build_table()

    def mhd(self, codes: Array, k: int = 1) -> Array:
        """Minimum Hamming distance: the k nearest classes of codes uint8 [n, code_size] -> int64 [n, k]; ties go to the lowest class.

        Codes must be of the class codes' kind and device. Raises ValueError as `search` does. The table serves k = 1; else a scan.
        """
        check_codes(codes=codes, class_codes=self.class_codes)
        if k != 1:
            return search(codes, self.class_codes, k)[1]
        return self._nearest(codes)[:, None]

    def ed(self, codes: Array) -> Array:
        """Exact decoding: the lowest class whose code equals the given one, else -1 -> int64 [n]. Arguments as mhd."""
        check_codes(codes=codes, class_codes=self.class_codes)
        nearest = self._nearest(codes)
        if is_cuda(codes):
            return torch.where((self.class_codes[nearest] == codes).all(1), nearest, -1)
        from llc.hamming import table

        table.keep_exact(
            as_array(codes), as_array(self.class_codes), as_array(nearest)
        )  # in nearest's own memory
        return nearest

    def _nearest(self, codes):
        if self._table is None and self._num_bits is not None and self._num_bits <= TABLE_BITS:
            self._num_scanned += len(codes)
            if (
                self._num_scanned * len(self.class_codes)
                > PAIRS_PER_ENTRY["cuda" if is_cuda(codes) else "cpu"] << self._num_bits
            ):
                self._build_table()
        if self._table is None:
            return search(codes, self.class_codes, 1)[1][:, 0]
        if is_cuda(codes):
            return self._table[_first_bits(codes, self._num_bits)].long()
        from llc.hamming import table

        classes = table.look_up(as_array(codes), self._num_bits, self._table, torch.get_num_threads())
        return classes if isinstance(codes, np.ndarray) else torch.from_numpy(classes)

    def _build_table(self):
        from llc.hamming import table

        on_cpu = self.class_codes.cpu() if is_cuda(self.class_codes) else self.class_codes
        built = table.build(as_array(on_cpu), self._num_bits)
        self._table = (
            torch.from_numpy(built).to(self.class_codes.device) if is_cuda(self.class_codes) else built
        )


def _bits_in_use(class_codes):
    """Bits up to the last that is 1 in any class code. Those after it, padding first, add the same to every distance: no table needs them."""
    if is_cuda(class_codes):
        class_codes = class_codes.cpu()
    joined = int.from_bytes(np.bitwise_or.reduce(as_array(class_codes), axis=0).tobytes(), "big")
    return 8 * class_codes.shape[1] - ((joined & -joined).bit_length() - 1) if joined else 0


def _first_bits(codes, num_bits):
    """Those of packed codes, num_bits <= 24, as integers: int32 [n]."""
    value = torch.zeros(len(codes), dtype=torch.int32, device=codes.device)
    num_bytes = (num_bits + 7) // 8
    for byte in range(num_bytes):
        value = value << 8 | codes[:, byte]
    return value >> 8 * num_bytes - num_bits


def decode_mhd(codes: Array, class_codes: Array, k: int = 1) -> Array:
    """Minimum Hamming distance decoding: the k nearest classes -> int64 [n, k]; ties go to the lowest class.

    codes uint8 [n, code_size], class_codes uint8 [num_classes, code_size]. Raises ValueError as `search` does. On the CPU the table of the
    last few codebooks is kept (see Decoder). On CUDA this scans, because looking for a kept table would wait for the device: make a Decoder.
    """
    check_codes(codes=codes, class_codes=class_codes)
    return _on_kept_decoder(Decoder.mhd, codes, class_codes, k)


def decode_ed(codes: Array, class_codes: Array) -> Array:
    """Exact decoding: the lowest class whose code equals the given one, else -1 -> int64 [n]. Arguments, errors, tables as decode_mhd."""
    check_codes(codes=codes, class_codes=class_codes)
    return _on_kept_decoder(Decoder.ed, codes, class_codes)


def _on_kept_decoder(decode, codes, class_codes, *arguments):
    # A codebook too long for a table is scanned without being compared with the last ones.
    if is_cuda(codes) or class_codes.shape[1] > TABLE_BITS // 8:
        return decode(Decoder(class_codes, table=False), codes, *arguments)
    decoder = _kept_decoder(as_array(class_codes).tobytes(), class_codes.shape[1])
    classes = decode(decoder, as_array(codes), *arguments)
    return classes if isinstance(codes, np.ndarray) else torch.from_numpy(classes)


@functools.lru_cache(maxsize=2)  # two tables of 24 bits are 128 MB
def _kept_decoder(class_codes, code_size):
    return Decoder(np.frombuffer(bytearray(class_codes), np.uint8).reshape(-1, code_size))
