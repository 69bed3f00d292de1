"""The codebook: real values float32 [num_classes, num_bits], whose signs are the class codes."""

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llc.arguments import class_labels, whole_number
from llc.codes import pack_bits, unpack_bits
from llc.errors import UserError
from llc.files import atomic_write, stand_in
from llc.hamming import decode_ed, search
from llc.text import counted


def random_codebook(
    num_classes: int, num_bits: int, seed: int, scale: float = 1.0, distance: int = 0
) -> torch.Tensor:
    """A random codebook: normal values float32 [num_classes, num_bits] of variance 2 / num_bits, times scale.

    The variance is that of He et al. (arXiv 1502.01852) for the fan-in. If distance > 0, the signs are those
    of `separated_codes`, so every two class codes differ in at least that many bits. Raises UserError as it
    does.
    """
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(num_classes, num_bits, generator=generator) * ((2 / num_bits) ** 0.5 * scale)
    if not distance:
        return values
    bits = torch.from_numpy(separated_codes(num_classes, num_bits, distance, seed))
    sizes = values.abs().clamp_min(torch.finfo(values.dtype).tiny)  # a value of 0 would be bit 0
    return torch.where(bits, sizes, -sizes)


# Machine words of the codes that are tried: in one batch (0.5 MB), and in total, which takes a second or two.
_BATCH_WORDS, _TOTAL_WORDS = 1 << 16, 1 << 26


def separated_codes(num_classes: int, num_bits: int, distance: int, seed: int) -> np.ndarray:
    """Random class codes, of which every two differ in at least `distance` bits.

    Returns bool [num_classes, num_bits]. The same seed gives the same code. The rows are words of a linear
    code of 2^k >= num_classes words. In such a code the sum of two words is a word too, and its weight is
    their distance. So the minimum distance is the smallest weight of all words but 0, and finding it takes
    2^k weights instead of all pairs.

    Two random families of codes are tried in turn, and both are known to contain very good codes: the
    multiples of a random polynomial (shortened cyclic codes), and [identity | circulant] (MacWilliams and
    Sloane, The Theory of Error-Correcting Codes, 1977, chapters 7 and 16). A simplex code, the best for few
    classes, is tried too. Then the bits and the words are shuffled, and one random word is added to all
    words. This changes no distance.

    For 1,000 classes and 20 bits it finds distance 6 within a hundredth of a second; distance 7 is
    impossible, because such a code has at most A(20, 7) = 512 words. For 1,000 classes it also finds distance
    4 for 16 bits, 8 for 24 bits, 12 for 32 bits and 24 for 64 bits. In a code found for an even distance all
    distances may be even, so that more images lie half-way between two class codes and tie. Raises UserError,
    with the largest distance found, after a second or two.
    """
    k = (num_classes - 1).bit_length()
    rng, largest, generator = np.random.default_rng(seed), 0, np.zeros((k, num_bits), np.uint8)
    size = (-(-num_bits // 64)) << k  # machine words of a code
    count = max(1, _BATCH_WORDS // size)
    for attempt in range(max(1, _TOTAL_WORDS // (count * size)) if 0 < k <= num_bits else 0):
        generators = (_multiples, _circulants)[attempt % 2](rng, count, k, num_bits)
        generators[0] = _simplex(k, num_bits)
        distances = _smallest_weights(generators)
        best = int(distances.argmax())
        if distances[best] > largest:
            largest, generator = int(distances[best]), generators[best]
        if largest >= distance:
            break
    if k and largest < distance:
        raise UserError(
            f"codes.init_distance = {distance}: found no code of {num_classes} classes with {num_bits} bits "
            f"that has this distance; the largest found is {largest}: lower it to that, "
            "or raise codes.num_bits"
        )
    messages = rng.permutation(1 << k)[:num_classes, None] >> np.arange(k) & 1
    words = messages @ generator[:, rng.permutation(num_bits)] & 1
    return (words ^ rng.integers(0, 2, num_bits)).astype(bool)


def _simplex(k: int, num_bits: int) -> np.ndarray:
    """The generator matrix 0/1 [k, num_bits] of a simplex code: all columns but 0, repeated in order.

    It is the best code if there are few classes and many bits.
    """
    return ((np.arange(num_bits) % ((1 << k) - 1) + 1) >> np.arange(k)[:, None] & 1).astype(np.uint8)


def _multiples(rng: np.random.Generator, count: int, k: int, num_bits: int) -> np.ndarray:
    """Generator matrices 0/1 [count, k, num_bits]: the k shifts of a random polynomial each.

    The degree of the polynomials is num_bits - k.
    """
    polynomials = rng.integers(0, 2, (count, num_bits - k + 1), np.uint8)
    polynomials[:, [0, -1]] = 1
    generators = np.zeros((count, k, num_bits), np.uint8)
    for i in range(k):
        generators[:, i, i : i + num_bits - k + 1] = polynomials
    return generators


def _circulants(rng: np.random.Generator, count: int, k: int, num_bits: int) -> np.ndarray:
    """Generator matrices 0/1 [count, k, num_bits]: the identity, then the rotations of a random row."""
    first = rng.integers(0, 2, (count, num_bits - k), np.uint8)
    generators = np.zeros((count, k, num_bits), np.uint8)
    for i in range(k):
        generators[:, i, i], generators[:, i, k:] = 1, np.roll(first, i, axis=1)
    return generators


def _smallest_weights(generators: np.ndarray) -> np.ndarray:
    """The smallest weight of a linear code's words other than 0.

    generators: 0/1 [count, k, num_bits], of `count` codes -> integers [count].
    """
    count, k, num_bits = generators.shape
    rows = np.zeros((count, k, 8 * -(-num_bits // 64)), np.uint8)
    rows[..., : -(-num_bits // 8)] = np.packbits(generators, axis=-1)
    rows, words = rows.view(np.uint64), np.zeros((count, 1, rows.shape[-1] // 8), np.uint64)
    for i in range(k):
        words = np.concatenate([words, words ^ rows[:, i : i + 1]], axis=1)
    return np.bitwise_count(words).sum(-1, dtype=np.int64)[:, 1:].min(1)


_CANDIDATE_BITS = (6, 10, 14)  # flips are searched among this many bits of smallest |value|, in turn


def fits(num_classes: int, num_bits: int, distance: int) -> bool:
    """Whether the Singleton bound leaves room for so many codes with this Hamming distance between them."""
    return math.log2(num_classes) <= num_bits - distance + 1


def move_apart(values: torch.Tensor, distance: int) -> torch.Tensor:
    """Flips bits of a codebook until all class codes differ in at least `distance` bits.

    values: real [num_classes, num_bits] -> float32, a changed copy. A bit is flipped by changing the sign of
    its value. The search is greedy: of all classes that are too near to another one, the class moves first
    that can get away from all others by flipping the smallest sum of |value|. Classes that are far enough
    apart keep their codes, so a second call changes nothing. A class for which no flips among its 14 smallest
    |value| help stays too near; `health` shows it. 1,000 random codes of 20 bits take a fraction of a second
    for a distance of 1 or 2, 2 s for 3 and 20 s for 4.
    """
    values = values.detach().float().cpu().clone()
    signs = torch.where(values > 0, 1.0, -1.0)
    num_bits = values.shape[1]
    apart = (num_bits - signs @ signs.T) / 2
    apart.fill_diagonal_(torch.inf)
    # class -> (sum of |value|, bits to flip), or None if no flips help it
    moves: dict[int, Any] = {}
    settled = False  # whether all classes were tried again since the last move
    while True:
        for c in (apart < distance).any(1).nonzero()[:, 0].tolist():
            if c not in moves:
                moves[c] = _cheapest_move(values[c], signs[c], signs, apart[c], distance)
        possible = [(move[0], c) for c, move in moves.items() if move and (apart[c] < distance).any()]
        if not possible:
            if settled or None not in moves.values():
                return values
            moves, settled = {}, True  # try again: classes that moved may have made room for others
            continue
        cost, c = min(possible)
        bits = moves.pop(c)[1]
        values[c, bits] = torch.where(values[c, bits] == 0, torch.finfo(torch.float32).tiny, -values[c, bits])
        signs[c, bits] *= -1
        apart[c] = apart[:, c] = (num_bits - signs @ signs[c]) / 2
        apart[c, c] = torch.inf
        settled = False
        for other, move in list(moves.items()):
            if move:  # dropped, if it would now lead too near to class c
                goal = signs[other].clone()
                goal[move[1]] *= -1
                if (num_bits - goal @ signs[c]) / 2 < distance:
                    del moves[other]


def _cheapest_move(
    values: torch.Tensor, signs: torch.Tensor, all_signs: torch.Tensor, apart: torch.Tensor, distance: int
) -> tuple[float, torch.Tensor] | None:
    """The flips of smallest sum of |value| that take a class `distance` bits from all others, or None.

    values, signs: of this class, [num_bits]. all_signs: of all classes, [num_classes, num_bits]. apart: this
    class's distance to all classes, [num_classes], infinite to itself. Returns (sum of |value|, positions of
    the bits).
    """
    order = values.abs().argsort(stable=True)
    for count in sorted({min(count, len(values)) for count in _CANDIDATE_BITS}):
        bits = order[:count]
        subsets = (torch.arange(1 << count)[:, None] >> torch.arange(count) & 1).float()
        costs = subsets.double() @ values[bits].abs().double()
        subsets = subsets[costs.argsort(stable=True)]
        # flipping a bit adds 1 to the distance to classes with the same bit, and subtracts 1 for the others
        further = all_signs[:, bits] * signs[bits]
        clear = (apart + subsets @ further.T >= distance).all(1).nonzero()
        if len(clear):
            flipped = bits[subsets[clear[0, 0]] > 0]
            return float(values[flipped].abs().double().sum()), flipped
    return None


def majority_codes(codes: np.ndarray, labels: np.ndarray, num_classes: int, num_bits: int) -> np.ndarray:
    """A class code for each class from the codes of its images: each bit is that of most of them, 0 if tied.

    codes uint8 [n, code_size], labels int64 [n], 0 to num_classes - 1 -> uint8 [C, code_size]. Raises
    ValueError for other labels, for codes of another size, and for a class without an image.
    """
    num_classes = whole_number("num_classes", num_classes, 1)
    bits = unpack_bits(codes, num_bits)
    labels = class_labels("labels", labels, len(codes), num_classes)
    counts = np.bincount(labels, minlength=num_classes)
    if not counts.all():
        raise ValueError(f"labels: class {int(counts.argmin())} has no image, so it has no code")
    ones = np.stack([np.bincount(labels, bit, num_classes) for bit in bits.T], axis=1)
    return pack_bits(2 * ones - counts[:, None])


def load_codebook(path: str | os.PathLike, num_bits: int | None = None) -> torch.Tensor:
    """Reads a codebook from a `.npy` file, or from codebook.npy in a run folder.

    Returns a tensor float32 [num_classes, num_bits]. The file holds real numbers [num_classes, num_bits].
    Further axes of length 1 may follow, as in the convolutions of the original code. If num_bits is given,
    the array may also be flat. Raises UserError if the file cannot be read, if it holds something else, NaN
    or infinity, or if its number of bits is not num_bits.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "codebook.npy"
    try:
        something_else = stand_in(path)
        if something_else:
            raise UserError(f"codebook {path}: {something_else}")
        # mapped, not read: a header that claims more than the file holds fails before memory is allocated
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"codebook {path}: cannot be read: {error}") from error
    except Exception as error:  # numpy parses the header as Python, which can raise many kinds of errors
        raise UserError(f"codebook {path}: not a .npy file of plain numbers: {error}") from error
    found = (
        f"{values.dtype} {list(values.shape)}" if isinstance(values, np.ndarray) else type(values).__name__
    )
    if isinstance(values, np.ndarray) and values.size:
        if values.ndim == 1 and num_bits and values.size % num_bits == 0:
            values = values.reshape(-1, num_bits)
        elif values.ndim > 2 and values.shape[2:] == (1,) * (values.ndim - 2):
            values = values.reshape(values.shape[:2])
    if (
        not isinstance(values, np.ndarray)
        or values.ndim != 2
        or values.dtype.kind not in "fiub"
        or 0 in values.shape
    ):
        raise UserError(f"codebook {path}: expected real values [num_classes, num_bits], found {found}")
    if num_bits and values.shape[1] != num_bits:
        raise UserError(f"codebook {path}: {values.shape[1]} bits ({found}); {num_bits} are needed")
    if not np.isfinite(values).all():
        raise UserError(f"codebook {path}: holds NaN or infinite values")
    return torch.from_numpy(values.astype(np.float32))


def save_codebook(path: str | os.PathLike, codebook: torch.Tensor) -> None:
    """Writes a codebook as .npy, float32 [num_classes, num_bits]; the file is written whole or not at all."""
    values = codebook.detach().float().cpu().numpy()
    atomic_write(path, lambda file: np.save(file, values, allow_pickle=False))


@dataclasses.dataclass(frozen=True)
class Health:
    """Statistics of the class codes of a codebook.

    Distances are in bits. The balance of a bit is the fraction of class codes in which it is 1. collisions:
    (class, the lowest class with the same code) for every class whose code an earlier class has. Decoding
    never returns these classes.
    """

    num_classes: int
    num_bits: int
    collisions: tuple[tuple[int, int], ...]
    min_distance: int
    mean_distance: float
    min_balance: float
    max_balance: float

    @property
    def num_collisions(self) -> int:
        return len(self.collisions)

    def __str__(self) -> str:
        named = ", ".join(f"class {c} = {first}" for c, first in self.collisions[:5]) + (
            ", ..." if len(self.collisions) > 5 else ""
        )
        return (
            f"codebook: {self.num_classes} classes x {self.num_bits} bits, "
            f"{counted(self.num_collisions, 'collision')}"
            f"{f' ({named})' if named else ''}, "
            f"distance min {self.min_distance} mean {self.mean_distance:.2f}, "
            f"ones per bit {100 * self.min_balance:.0f} to {100 * self.max_balance:.0f} %"
        )


def health(codebook: torch.Tensor) -> Health:
    """The Health of a codebook, real values [num_classes, num_bits]."""
    codes = pack_bits(codebook.detach().cpu())
    bits = unpack_bits(codes, codebook.shape[1]).double()
    num_classes, num_bits = bits.shape
    first = decode_ed(codes, codes).tolist()
    ones = bits.sum(0)
    pairs = num_classes * (num_classes - 1) / 2
    mean = float((ones * (num_classes - ones)).sum() / pairs) if pairs else 0.0
    balance = ones / num_classes
    smallest = int(search(codes, codes, 2)[0][:, 1].min()) if pairs else 0
    return Health(
        num_classes,
        num_bits,
        tuple((c, f) for c, f in enumerate(first) if c != f),
        smallest,
        mean,
        float(balance.min()),
        float(balance.max()),
    )
