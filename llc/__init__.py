"""llc: short binary codes for images and classes, learned fast and used by Hamming distance."""
import importlib

__version__ = "0.1.0"

# Loaded when they are first used: they need torch, which takes a second that writing a beton, and each of its workers, need not pay.
_HOMES = {"pack_bits": "llc.codes", "unpack_bits": "llc.codes", "decode_ed": "llc.hamming", "decode_mhd": "llc.hamming"}
__all__ = sorted(_HOMES)


def __getattr__(name):
    if name in ("codes", "hamming"):
        return importlib.import_module(f"llc.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'llc' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__():
    return sorted({*globals(), *__all__})
