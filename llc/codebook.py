"""The codebook: real values float32 [num_classes, num_bits] and the class codes that are its signs. Load, save, health."""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from llc.codes import pack_bits, unpack_bits
from llc.errors import UserError
from llc.files import atomic_write
from llc.hamming import decode_ed, search


def random_codebook(num_classes, num_bits, seed, scale=1.0, distance=0):
    """Real values float32 [num_classes, num_bits], normal with variance 2 / num_bits (He et al., arXiv 1502.01852, fan-in), times scale.

    distance > 0: with the signs of `separated_codes`, so that class codes start at least so many bits apart; raises UserError as it does.
    """
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(num_classes, num_bits, generator=generator) * ((2 / num_bits) ** 0.5 * scale)
    if not distance:
        return values
    bits = torch.from_numpy(separated_codes(num_classes, num_bits, distance, seed))
    sizes = values.abs().clamp_min(torch.finfo(values.dtype).tiny)  # a value of 0 would be bit 0
    return torch.where(bits, sizes, -sizes)


_AT_ONCE, _IN_ALL = (
    1 << 16,
    1 << 26,
)  # machine words of the codes that are tried: some megabytes, and a second or two


def separated_codes(num_classes, num_bits, distance, seed):
    """A random code, bool [num_classes, num_bits], in which every two rows differ in `distance` bits or more; the same for the same seed.

    Rows are words of a linear code of 2^k >= num_classes words, in which the distance of any two is the weight of their sum, a word too: so
    the smallest weight of 2^k words tells all distances. Two random families are tried in turn, both known to hold very good codes: the
    multiples of a random polynomial (shortened cyclic codes), and [identity | circulant] (MacWilliams and Sloane, The Theory of
    Error-Correcting Codes, 1977, chapters 7 and 16); beside them, one that is right for few classes. Then bits and words are shuffled and
    a random word is added to all, which changes no distance.

    For 1,000 classes at 20 bits it finds distance 6 within a hundredth of a second, and no code has 7 (A(20, 7) = 512 words). Others for
    1,000 classes: 16 bits 4, 24 bits 8, 32 bits 12, 64 bits 24. A code found for an even distance may have even distances only, where images
    lie half-way between two class codes, and tie, more often. Raises UserError, with the largest distance found, after a second or two.
    """
    k = (num_classes - 1).bit_length()
    rng, largest, generator = np.random.default_rng(seed), 0, np.zeros((k, num_bits), np.uint8)
    size = (-(-num_bits // 64)) << k  # of a code, in machine words
    count = max(1, _AT_ONCE // size)
    for attempt in range(max(1, _IN_ALL // (count * size)) if 0 < k <= num_bits else 0):
        generators = (_multiples, _circulants)[attempt % 2](rng, count, k, num_bits)
        generators[0] = _repeated(k, num_bits)
        distances = _smallest_weights(generators)
        best = int(distances.argmax())
        if distances[best] > largest:
            largest, generator = int(distances[best]), generators[best]
        if largest >= distance:
            break
    if k and largest < distance:
        raise UserError(
            f"codes.init_distance = {distance}: found no code of {num_classes} classes with {num_bits} bits that has this "
            f"distance; the largest found is {largest}: lower it to that, or raise codes.num_bits"
        )
    messages = rng.permutation(1 << k)[:num_classes, None] >> np.arange(k) & 1
    words = messages @ generator[:, rng.permutation(num_bits)] & 1
    return (words ^ rng.integers(0, 2, num_bits)).astype(bool)


def _repeated(k, num_bits):
    """A generator matrix 0/1 [k, num_bits] of all columns but 0 in turn: the best code where few classes have many bits (the simplex code)."""
    return ((np.arange(num_bits) % ((1 << k) - 1) + 1) >> np.arange(k)[:, None] & 1).astype(np.uint8)


def _multiples(rng, count, k, num_bits):
    """count generator matrices 0/1 [count, k, num_bits], each of the shifts of a random polynomial of degree num_bits - k."""
    polynomials = rng.integers(0, 2, (count, num_bits - k + 1), np.uint8)
    polynomials[:, [0, -1]] = 1
    generators = np.zeros((count, k, num_bits), np.uint8)
    for i in range(k):
        generators[:, i, i : i + num_bits - k + 1] = polynomials
    return generators


def _circulants(rng, count, k, num_bits):
    """count generator matrices 0/1 [count, k, num_bits]: the identity, and beside it the rotations of a random row."""
    first = rng.integers(0, 2, (count, num_bits - k), np.uint8)
    generators = np.zeros((count, k, num_bits), np.uint8)
    for i in range(k):
        generators[:, i, i], generators[:, i, k:] = 1, np.roll(first, i, axis=1)
    return generators


def _smallest_weights(generators):
    """The smallest weight of the words but 0 of each linear code; generators: 0/1 [count, k, num_bits] -> integers [count]."""
    count, k, num_bits = generators.shape
    rows = np.zeros((count, k, 8 * -(-num_bits // 64)), np.uint8)
    rows[..., : -(-num_bits // 8)] = np.packbits(generators, axis=-1)
    rows, words = rows.view(np.uint64), np.zeros((count, 1, rows.shape[-1] // 8), np.uint64)
    for i in range(k):
        words = np.concatenate([words, words ^ rows[:, i : i + 1]], axis=1)
    return np.bitwise_count(words).sum(-1, dtype=np.int64)[:, 1:].min(1)


_FLIPPED = (
    6,
    10,
    14,
)  # among how many of a class's bits, those of the smallest values, is looked for what to flip


def move_apart(values, distance):
    """Flips bits of real values [num_classes, num_bits] until all class codes differ in `distance` bits or more -> float32, like values.

    A bit is flipped by changing its value's sign. Greedy: of all classes that are too near to another, the one that gets clear of all at the
    least sum of |value| moves first. What is far enough apart stays as it is, so that a second call changes nothing. Where no place is
    found, within 14 flips, classes stay too near (`health` tells). 1,000 random codes of 20 bits take a fraction of a second for a
    distance of 1 or 2, 2 s for 3, 20 s for 4.
    """
    values = values.detach().float().cpu().clone()
    signs = torch.where(values > 0, 1.0, -1.0)
    num_bits = values.shape[1]
    apart = (num_bits - signs @ signs.T) / 2
    apart.fill_diagonal_(torch.inf)
    moves, settled = {}, False  # class -> (sum of |value|, bits to flip), or None where it found no place
    while True:
        for c in (apart < distance).any(1).nonzero()[:, 0].tolist():
            if c not in moves:
                moves[c] = _cheapest_move(values[c], signs[c], signs, apart[c], distance)
        possible = [(move[0], c) for c, move in moves.items() if move and (apart[c] < distance).any()]
        if not possible:
            if settled or None not in moves.values():
                return values
            moves, settled = {}, True  # those that moved may have made room
            continue
        cost, c = min(possible)
        bits = moves.pop(c)[1]
        values[c, bits] = torch.where(values[c, bits] == 0, torch.finfo(torch.float32).tiny, -values[c, bits])
        signs[c, bits] *= -1
        apart[c] = apart[:, c] = (num_bits - signs @ signs[c]) / 2
        apart[c, c] = torch.inf
        settled = False
        for other, move in list(moves.items()):  # whose place this one took
            if move:
                goal = signs[other].clone()
                goal[move[1]] *= -1
                if (num_bits - goal @ signs[c]) / 2 < distance:
                    del moves[other]


def _cheapest_move(values, signs, all_signs, apart, distance):
    """(sum of |value|, bits) of the flips that take a class `distance` bits from all others at the least sum, or None.

    values, signs: the class's own [num_bits]; apart: its distance to all classes [num_classes], infinite to itself.
    """
    order = values.abs().argsort(stable=True)
    for count in sorted({min(count, len(values)) for count in _FLIPPED}):
        bits = order[:count]
        subsets = (torch.arange(1 << count)[:, None] >> torch.arange(count) & 1).float()
        costs = subsets.double() @ values[bits].abs().double()
        subsets = subsets[costs.argsort(stable=True)]
        further = (
            all_signs[:, bits] * signs[bits]
        )  # flipping a bit adds 1 to the distance of those that have the same, and takes 1 of others'
        clear = (apart + subsets @ further.T >= distance).all(1).nonzero()
        if len(clear):
            flipped = bits[subsets[clear[0, 0]] > 0]
            return float(values[flipped].abs().double().sum()), flipped
    return None


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
        raise UserError(f"codebook {path}: holds values that are not finite")
    return torch.from_numpy(values.astype(np.float32))


def save_codebook(path, codebook):
    """Writes real values float32 [num_classes, num_bits] as .npy, whole or not at all."""
    atomic_write(
        path, lambda file: np.save(file, codebook.detach().float().cpu().numpy(), allow_pickle=False)
    )


@dataclasses.dataclass(frozen=True)
class Health:
    """What a codebook's class codes are like. Distances in bits; `balance` is the share of ones, per bit."""

    num_classes: int
    num_bits: int
    collisions: tuple  # (class, the lowest class with the same code), of every class whose code an earlier class has: never decoded
    min_distance: int
    mean_distance: float
    min_balance: float
    max_balance: float

    @property
    def num_collisions(self):
        return len(self.collisions)

    def __str__(self):
        named = ", ".join(f"class {c} = {first}" for c, first in self.collisions[:5]) + (
            ", ..." if len(self.collisions) > 5 else ""
        )
        return (
            f"codebook: {self.num_classes} classes x {self.num_bits} bits, {self.num_collisions} collisions"
            f"{f' ({named})' if named else ''}, "
            f"distance min {self.min_distance} mean {self.mean_distance:.2f}, "
            f"ones per bit {100 * self.min_balance:.0f} to {100 * self.max_balance:.0f} %"
        )


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
    return Health(
        num_classes,
        num_bits,
        tuple((c, f) for c, f in enumerate(first) if c != f),
        smallest,
        mean,
        float(balance.min()),
        float(balance.max()),
    )
