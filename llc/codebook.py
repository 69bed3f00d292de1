"""The codebook: real values float32 [num_classes, num_bits] and the class codes that are its signs. Load, save, health."""
import dataclasses
from pathlib import Path

import numpy as np
import torch

from llc.codes import pack_bits, unpack_bits
from llc.errors import UserError
from llc.files import atomic_write
from llc.hamming import decode_ed, search


def random_codebook(num_classes, num_bits, seed):
    """Real values float32 [num_classes, num_bits], normal with variance 2 / num_bits (He et al., arXiv 1502.01852, fan-in)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_classes, num_bits, generator=generator) * (2 / num_bits) ** 0.5


def load_codebook(path, num_bits=None):
    """Reads a codebook from a `.npy` file of real values, or from a run folder holding codebook.npy -> float32 tensor.

    The array is [num_classes, num_bits], with any axes of length 1 behind, as the original's convolutions have them; or, where num_bits
    is given, flat. Raises UserError when it is missing, not such an array of plain numbers, not finite, or not of num_bits.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "codebook.npy"
    try:
        # mapped, not read: a header that claims more than the file holds is an error before anything is allocated
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"codebook {path}: cannot be read: {error}") from error
    except Exception as error:  # numpy parses the header as Python's syntax and raises many kinds
        raise UserError(f"codebook {path}: not a .npy file of plain numbers: {error}") from error
    found = f"{values.dtype} {list(values.shape)}" if isinstance(values, np.ndarray) else type(values).__name__
    if isinstance(values, np.ndarray) and values.size:
        if values.ndim == 1 and num_bits and values.size % num_bits == 0:
            values = values.reshape(-1, num_bits)
        elif values.ndim > 2 and values.shape[2:] == (1,) * (values.ndim - 2):
            values = values.reshape(values.shape[:2])
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "fiub" or 0 in values.shape:
        raise UserError(f"codebook {path}: expected real values [num_classes, num_bits], found {found}")
    if num_bits and values.shape[1] != num_bits:
        raise UserError(f"codebook {path}: {values.shape[1]} bits ({found}); {num_bits} are needed")
    if not np.isfinite(values).all():
        raise UserError(f"codebook {path}: holds values that are not finite")
    return torch.from_numpy(values.astype(np.float32))


def save_codebook(path, codebook):
    """Writes real values float32 [num_classes, num_bits] as .npy, whole or not at all."""
    atomic_write(path, lambda file: np.save(file, codebook.detach().float().cpu().numpy(), allow_pickle=False))


@dataclasses.dataclass(frozen=True)
class Health:
    """What a codebook's class codes are like. Distances in bits; `balance` is the share of ones, per bit."""

    num_classes: int
    num_bits: int
    collisions: tuple        # (class, the lowest class with the same code), of every class whose code an earlier class has: never decoded
    min_distance: int
    mean_distance: float
    min_balance: float
    max_balance: float

    @property
    def num_collisions(self):
        return len(self.collisions)

    def __str__(self):
        named = ", ".join(f"class {c} = {first}" for c, first in self.collisions[:5]) + (", ..." if len(self.collisions) > 5 else "")
        return (f"codebook: {self.num_classes} classes x {self.num_bits} bits, {self.num_collisions} collisions"
                f"{f' ({named})' if named else ''}, "
                f"distance min {self.min_distance} mean {self.mean_distance:.2f}, "
                f"ones per bit {100 * self.min_balance:.0f} to {100 * self.max_balance:.0f} %")


def health(codebook):
    """Health of a codebook (real values [num_classes, num_bits])."""
    codes = pack_bits(codebook.detach().cpu())
    bits = unpack_bits(codes, codebook.shape[1]).double()
    num_classes, num_bits = bits.shape
    first = decode_ed(codes, codes).tolist()
    ones = bits.sum(0)
    pairs = num_classes * (num_classes - 1) / 2
    mean = float((ones * (num_classes - ones)).sum() / pairs) if pairs else 0.0
    balance = ones / num_classes
    smallest = int(search(codes, codes, 2)[0][:, 1].min()) if pairs else 0
    return Health(num_classes, num_bits, tuple((c, f) for c, f in enumerate(first) if c != f), smallest, mean, float(balance.min()), float(balance.max()))
