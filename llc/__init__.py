"""llc: short binary codes for images and classes, learned fast and used by Hamming distance."""
from llc.codes import pack_bits, unpack_bits
from llc.hamming import decode_ed, decode_mhd

__version__ = "0.1.0"
__all__ = ["decode_ed", "decode_mhd", "pack_bits", "unpack_bits"]
