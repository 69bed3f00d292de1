"""The posterior decoder: the most probable classes of a code, given the codes that train images have.

Nearest-code decoding asks which class code is nearest. This decoder asks which class's images have such
codes: P(class | code) is proportional to the number of train images of the class times P(code | class).

Up to TABLE_BITS bits, P(code | class) is the class's train codes, counted, each sent through a binary
symmetric channel: a code x has probability q^d (1 - q)^(num_bits - d) of coming from a code d bits away.
Where a code was never seen, the codes around it decide. This is a kernel density estimate for binary vectors
(Aitchison and Aitken, "Multivariate binary discrimination by the kernel method", Biometrika 63, 1976). The
class's own code counts as a few more images, so that classes with few images, or none, are decoded no worse
than by nearest code. The flip probability q and that number of images are those with the highest likelihood
on the train codes, each left out of its own estimate. The best classes of every code are computed once, so a
code is decoded by one lookup.

Longer codes have no table. There the log of the posterior is a weighted sum of the bits (multinomial logistic
regression), which is looked up byte by byte.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from llc.arguments import class_labels, whole_number
from llc.codes import Array, code_size
from llc.hamming.decoders import TABLE_BITS
from llc.hamming.neighbours import as_array, check_codes, is_cuda
from llc.hamming.posterior_fit import (
    FLIP_PROBABILITIES,
    MAX_WEIGHT,
    UNIT,
    as_numbers,
    fit_counts,
    fit_linear,
    with_class_codes,
)
from llc.native import hamming

DEPTH = 5  # classes per code in a table; further ones are found for the codes that are asked for
_CHUNK = 1 << 22  # numbers that are worked on at once where a step needs a row for each code


class PosteriorDecoder:
    """Decodes codes with what `fit` learnt from a train set's codes.

    arrays: what `PosteriorDecoder.fit(...).arrays` held. Raises ValueError if they are something else.

    arrays: {name: numpy array}, everything that was learnt. num_bits, num_classes: ints. flip_probability: q,
    or None for codes of more than TABLE_BITS bits.

    Codes are numpy arrays or torch tensors, on a CPU or CUDA; results are of the same kind and on the same
    device. The table of short codes is made when the first code is decoded.
    """

    arrays: dict[str, np.ndarray]
    num_bits: int
    num_classes: int
    flip_probability: float | None

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = dict(arrays)
        self._check()
        self._tables: dict[Any, Any] = {}  # by device; None: numpy arrays

    @classmethod
    def fit(
        cls,
        codes: Array,
        labels: Array,
        num_bits: int,
        num_classes: int,
        *,
        class_codes: Any = None,
        flip_probability: float | None = None,
    ) -> PosteriorDecoder:
        """Learns from codes uint8 [n, code_size] of train images and their labels, integers [n].

        class_codes: uint8 [num_classes, code_size]; without them only images count. flip_probability: instead
        of the one that leaving each image out finds; for up to TABLE_BITS bits. The order of the images does
        not matter. Raises ValueError if codes, labels, class codes, num_bits and num_classes do not fit each
        other, or if there are no codes.
        """
        check_codes(codes=codes)
        num_bits = whole_number("num_bits", num_bits, 1)
        num_classes = whole_number("num_classes", num_classes, 1, (1 << 31) - 1)
        packed = as_array(codes.cpu() if isinstance(codes, torch.Tensor) else codes)
        if packed.shape[1] != code_size(num_bits):
            raise ValueError(
                f"codes: {packed.shape[1]} bytes each; {num_bits} bits are {code_size(num_bits)} bytes"
            )
        classes = class_labels("labels", labels, len(packed), num_classes)
        if not len(packed):
            raise ValueError("codes: there are none to learn from")
        of_classes = None
        if class_codes is not None:
            check_codes(class_codes=class_codes)
            of_classes = as_array(class_codes.cpu() if isinstance(class_codes, torch.Tensor) else class_codes)
            if of_classes.shape != (num_classes, packed.shape[1]):
                raise ValueError(
                    f"class_codes: expected uint8 [{num_classes}, {packed.shape[1]}], got "
                    f"{list(of_classes.shape)}"
                )
        if num_bits > TABLE_BITS:
            if flip_probability is not None:
                raise ValueError(
                    f"flip_probability: for codes of up to {TABLE_BITS} bits; these have {num_bits}"
                )
            return cls(fit_linear(packed, classes, num_bits, num_classes, of_classes))
        return cls(fit_counts(packed, classes, num_bits, num_classes, of_classes, flip_probability))

    def classes(self, codes: Array, k: int = 1) -> Array:
        """The k most probable classes of each code, best first, ties to the lowest class.

        codes uint8 [n, code_size] -> int64 [n, k]. They are the same on every device. Raises ValueError for
        codes of another size, and a k above the number of classes.

        Up to 5 classes of short codes are a lookup. For more, each code is compared with all train codes.
        """
        classes: Array = self._answer(codes, lambda own: self._decode(own, k, False)[:1])[0]
        return classes

    def decode(self, codes: Array, k: int = 1) -> tuple[Array, Array]:
        """(classes int64 [n, k] as of `classes`, their probabilities float32 [n, k])."""
        classes, probabilities = self._answer(codes, lambda own: self._decode(own, k, True))
        return classes, probabilities

    def log_density(self, codes: Array) -> Array:
        """The natural logarithm of P(code), how probable each code is in the train set: float32 [n].

        A low one says that the image is unlike those of the train set. Raises as `classes` does.
        """
        densities: Array = self._answer(codes, lambda own: [self._log_density(own)])[0]
        return densities

    # ---------------------------------------------------------------------------------------------- decoding
    # Below, codes and results are numpy arrays, or tensors on CUDA.

    def _answer(self, codes, function):
        check_codes(codes=codes)
        if codes.shape[1] != code_size(self.num_bits):
            raise ValueError(
                f"codes: {codes.shape[1]} bytes each; this decoder is for {self.num_bits} bits, "
                f"{code_size(self.num_bits)} bytes"
            )
        if is_cuda(codes):
            return function(codes)
        found = function(as_array(codes))
        return found if isinstance(codes, np.ndarray) else [torch.from_numpy(part) for part in found]

    def _decode(self, codes, k, with_probabilities):
        """(classes, probabilities or None)."""
        k = whole_number("k", k, 1, self.num_classes, "the number of classes")
        if self.flip_probability is None:
            classes, scores, totals = self._linear(codes, "", k, with_totals=with_probabilities)
            if not with_probabilities:
                return classes, None
            below = (scores - scores[:, :1]) / UNIT
            if is_cuda(codes):
                return classes, below.exp() / totals[:, None]
            return classes, (np.exp(below) / totals[:, None]).astype(np.float32)
        if k > DEPTH:
            return self._decode_deeper(codes, k)
        table, probabilities, _ = self._table(codes)
        if not with_probabilities and k == 1:
            return self._look_up(codes, table[0])[:, None], None
        numbers = self._numbers(codes)
        if is_cuda(codes):
            return table[:k, numbers].T.long().contiguous(), probabilities[:k, numbers].T.contiguous()
        # faster than indices in both dimensions
        classes = np.stack([of_place[numbers] for of_place in table[:k]], 1)
        return classes.astype(np.int64), np.stack([of_place[numbers] for of_place in probabilities[:k]], 1)

    def _decode_deeper(self, codes, k):
        """(classes, probabilities) for k above DEPTH; the first ones are the table's."""
        first, of_first = self._decode(codes, DEPTH, True)
        if is_cuda(codes):
            found = self._further(codes.cpu().numpy(), k - DEPTH, first.cpu().numpy())
            further, of_further = (torch.from_numpy(part).to(codes.device) for part in found)
            return torch.cat([first, further], 1), torch.cat([of_first, of_further], 1)
        further, of_further = self._further(codes, k - DEPTH, first)
        return np.concatenate([first, further], 1), np.concatenate([of_first, of_further], 1)

    def _further(self, codes, k, but):
        """The k most probable classes of codes, but those in `but`, int64 [n, ...], and probabilities."""
        q, num_bits, num_classes = float(self.arrays["flip_probability"]), self.num_bits, self.num_classes
        of_train, counts, ends = with_class_codes(self.arrays)
        of_train, counts = of_train.astype(np.uint32), counts.astype(np.int32)
        numbers, powers = self._numbers(codes).astype(np.uint32), (q / (1 - q)) ** np.arange(num_bits + 1)
        classes = np.empty((len(codes), k), np.int64)
        probabilities = np.empty((len(codes), k), np.float32)
        step = max(1, _CHUNK // (num_classes * (num_bits + 1)))
        for start in range(0, len(codes), step):
            part = slice(start, start + step)
            histograms = hamming.posterior_histograms(
                numbers[part], of_train, counts, ends, num_bits, torch.get_num_threads()
            )
            scores = np.zeros(histograms.shape[:2])
            for distance, power in enumerate(powers):  # BLAS would round equal rows in different ways
                scores += histograms[:, :, distance] * power
            totals = scores.sum(1, keepdims=True)
            np.put_along_axis(scores, but[part], -1.0, axis=1)
            classes[part] = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            probabilities[part] = np.take_along_axis(scores, classes[part], axis=1) / totals
        return classes, probabilities

    def _look_up(self, codes, table):
        """The entries of a table int32 [2^num_bits] -> int64 [n]."""
        if is_cuda(codes):
            from llc.hamming import cuda_table

            return cuda_table.look_up(codes, self.num_bits, table)
        return hamming.look_up(codes, self.num_bits, table, torch.get_num_threads())

    def _numbers(self, codes):
        """Codes as numbers of num_bits bits -> int64 [n]; the first bit is the highest."""
        return as_numbers(codes.long() if is_cuda(codes) else codes.astype(np.int64), self.num_bits)

    def _table(self, codes):
        """(classes int32 [DEPTH or fewer, 2^num_bits], probabilities float32 like it, log densities)."""
        device = codes.device if is_cuda(codes) else None
        if device not in self._tables:
            table = self._make_table()
            if device is not None:
                table = tuple(torch.from_numpy(part).to(device) for part in table)
            self._tables[device] = table
        return self._tables[device]

    def _make_table(self):
        arrays, num_bits = self.arrays, self.num_bits
        q = float(arrays["flip_probability"])
        codes, counts, ends = with_class_codes(arrays)
        classes, scores, total = hamming.posterior_table(
            codes.astype(np.uint32),
            counts.astype(np.float32),
            ends,
            max(num_bits, 3),  # the fewest that the library takes; the codes' numbers stay the same
            q / (1 - q),
            min(DEPTH, self.num_classes),
            torch.get_num_threads(),
        )
        n = 1 << num_bits
        classes, scores, total = classes[:, :n], scores[:, :n], total[:n]
        scores /= total
        np.log(total, out=total)
        total += num_bits * math.log(1 - q) - math.log(counts.sum())
        return np.ascontiguousarray(classes), np.ascontiguousarray(scores), total

    def _log_density(self, codes):
        if self.flip_probability is not None:
            return self._table(codes)[2][self._numbers(codes)]
        _, scores, totals = self._linear(codes, "density_", 1, with_totals=True)
        constant = math.log(int(self.arrays["num_images"]))
        if is_cuda(codes):
            return (scores[:, 0].double() / UNIT + totals.log() - constant).float()
        return (scores[:, 0] / UNIT + np.log(totals) - constant).astype(np.float32)

    def _linear(self, codes, prefix, k, with_totals):
        """The k classes of the highest sums of a code's byte tables, of the weights whose name has a prefix.

        -> (classes int64 [n, k], sums int32 [n, k], totals float32 [n] or None: the sum over all classes of e
        to the power of the distance to the highest sum, in nats)
        """
        tables, offsets = self._byte_tables(codes.device if is_cuda(codes) else None, prefix)
        if is_cuda(codes):
            return linear_on_device(codes, tables, offsets, k)
        falloff = _FALLOFF if with_totals else None
        return hamming.posterior_linear(codes, tables, offsets, k, torch.get_num_threads(), falloff)

    def _byte_tables(self, device, prefix):
        """(int16 [code_size, 256, num_classes]: what each value of each byte adds; int32 [num_classes])."""
        if (device, prefix) not in self._tables:
            made: Any = byte_tables(self.arrays[f"{prefix}weights"]), self.arrays[f"{prefix}offsets"]
            if device is not None:
                made = tuple(torch.from_numpy(part).to(device) for part in made)
            self._tables[device, prefix] = made
        return self._tables[device, prefix]

    # ---------------------------------------------------------------------------------------------- checking

    def _check(self):
        """Reads the sizes and raises ValueError if the arrays are not those of a decoder."""
        arrays = self.arrays

        def take(name, dtype, *shape):
            array = arrays.get(name)
            if array is None or array.dtype != dtype or array.shape != shape:
                found = "is missing" if array is None else f"is {array.dtype} {list(array.shape)}"
                raise ValueError(f"{name} {found}; expected {np.dtype(dtype)} {list(shape)}")
            return array

        if "weights" in arrays:
            weights = arrays["weights"]
            if weights.ndim != 2 or weights.shape[1] <= TABLE_BITS or not len(weights):
                raise ValueError(f"weights are {list(weights.shape)}; expected [num_classes, num_bits]")
            self.num_classes, self.num_bits, self.flip_probability = *weights.shape, None
            for prefix in ("", "density_"):
                weights = take(f"{prefix}weights", np.int16, self.num_classes, self.num_bits)
                offsets = take(f"{prefix}offsets", np.int32, self.num_classes)
                if np.abs(weights).max() > MAX_WEIGHT or np.abs(offsets.astype(np.int64)).max() > 1 << 30:
                    raise ValueError(f"{prefix}weights or {prefix}offsets are out of range")
            if take("num_images", np.int64) < 1:
                raise ValueError("num_images is out of range")
            return
        for name in ("codes", "ends"):
            if name not in arrays or arrays[name].ndim != 1:
                raise ValueError(f"{name} is missing, or has another shape than [n]")
        num_codes, self.num_classes = len(arrays["codes"]), len(arrays["ends"])
        codes, counts = take("codes", np.int32, num_codes), take("counts", np.int32, num_codes)
        of_classes = take("class_codes", np.int32, self.num_classes)
        weight = take("class_weight", np.int64)
        ends, q = take("ends", np.int64, self.num_classes), take("flip_probability", np.float64)
        self.num_bits, self.flip_probability = int(take("num_bits", np.int64)), float(q)
        if not 1 <= self.num_bits <= TABLE_BITS or not FLIP_PROBABILITIES[0] <= q < 0.5:
            raise ValueError("num_bits or flip_probability is out of range")
        if not num_codes or codes.min() < 0 or codes.max() >> self.num_bits or counts.min() < 1:
            raise ValueError("codes or counts are out of range, or there are none")
        if not 0 <= weight <= 1 << 20 or of_classes.min() < 0 or of_classes.max() >> self.num_bits:
            raise ValueError("class_codes or class_weight is out of range")
        if not self.num_classes or ends[0] < 0 or (np.diff(ends) < 0).any() or ends[-1] != num_codes:
            raise ValueError("ends do not divide the codes among classes")


def byte_tables(weights: np.ndarray) -> np.ndarray:
    """Weights of bits, int16 [num_classes, num_bits] -> int16 [code_size, 256, num_classes].

    Entry [i, v]: the sum of the weights of the bits that are 1 in byte i if its value is v.
    """
    num_classes, num_bits = weights.shape
    padded = np.zeros((num_classes, 8 * code_size(num_bits)), np.int32)
    padded[:, :num_bits] = weights
    of_value = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.int32)
    by_byte = padded.reshape(num_classes, -1, 8).transpose(1, 2, 0)  # [code_size, 8, num_classes]
    return np.ascontiguousarray((of_value @ by_byte).astype(np.int16))


# e to the power of minus a difference of scores; for greater ones it is taken for 0.
_FALLOFF = np.exp(-np.arange(4096) / UNIT).astype(np.float32)


def linear_on_device(
    codes: torch.Tensor, tables: torch.Tensor, offsets: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(classes int64 [n, k], sums int32 [n, k], totals float32 [n]) of long codes, by torch alone."""
    num_classes = len(offsets)
    of_class = torch.arange(num_classes, device=codes.device)
    parts = [(codes.new_empty(0, k).long(), codes.new_empty(0, k).int(), codes.new_empty(0).float())]
    for part in codes.split(max(1, _CHUNK // num_classes)):
        sums = offsets.expand(len(part), -1).clone()
        for byte in range(part.shape[1]):
            sums += tables[byte][part[:, byte].long()]
        # no two keys are equal, so the order does not depend on how topk breaks ties
        classes = (sums.long() * num_classes - of_class).topk(k, dim=1).indices
        best = sums.gather(1, classes)
        parts.append((classes, best, ((sums - best[:, :1]) / UNIT).exp().sum(1)))
    classes, sums, totals = (torch.cat(part) for part in zip(*parts))
    return classes, sums, totals
