"""llc: short binary codes for images and classes, learned fast and used by Hamming distance.

>>> import torch, llc
>>> llc.pack_bits(torch.tensor([[0.5, -1.0, 2.0], [-3.0, 1.0, 0.0]]))
tensor([[160],
        [ 64]], dtype=torch.uint8)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llc import codes, hamming
    from llc.codes import pack_bits, unpack_bits
    from llc.encoder import Classes, Encoder, load
    from llc.errors import UserError
    from llc.hamming import decode_ed, decode_mhd
    from llc.index.index import Index

__version__ = "0.2.0"
__all__ = [
    "Classes",
    "Encoder",
    "Index",
    "UserError",
    "codes",
    "decode_ed",
    "decode_mhd",
    "hamming",
    "load",
    "pack_bits",
    "unpack_bits",
]

# Names are imported when they are first used: torch and torchvision take seconds to import, and the commands
# that write betons, and their worker processes, do without them.
_HOMES = {
    "Classes": "llc.encoder",
    "Encoder": "llc.encoder",
    "load": "llc.encoder",
    "Index": "llc.index.index",
    "UserError": "llc.errors",
    "pack_bits": "llc.codes",
    "unpack_bits": "llc.codes",
    "decode_ed": "llc.hamming",
    "decode_mhd": "llc.hamming",
}


def __getattr__(name: str) -> Any:
    if name in ("codes", "hamming"):
        return importlib.import_module(f"llc.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'llc' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
