"""Whether an exported graph gives on real images what the encoder gives, and which images those are."""

import copy
import dataclasses
import os
from pathlib import Path

import numpy as np
import torch

from llc import runs
from llc.codes import pack_bits, unpack_bits
from llc.data.batches import BetonImages, SourceLoader
from llc.data.reading import Reading
from llc.data.sources import printable
from llc.data.sources.parts import take_evenly
from llc.distributed import Processes
from llc.encode import Encoding, open_for
from llc.encoder import check_finite, non_finite
from llc.errors import UserError
from llc.evaluation.decoders import bind
from llc.inference import evaluating

# Two ways to add up the same float32 products of a deep network give z that differ by some 1e-6 of its size.
# A hundred times that is still far below any fault.
TOLERANCE = 1e-4
BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Sample:
    """Evenly spaced images: iterate over batches (images uint8 [b, 3, H, W], labels int64 [b])."""

    loader: object
    num_images: int
    title: str
    num_unlabelled: int

    def __iter__(self):
        return iter(self.loader)


def take(encoder, path, options, count, *, split=None, labelled=False):
    """`count` evenly spaced images of those at `path`, or all if there are fewer or count is 0.

    options: an instance of Reading. split: instead of that of the options. labelled: labels are those of the
    model's classes, which the images must then have. Raises UserError.
    """
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Reading)}
    given["split"] = split or options.split
    encoding = Encoding(**given, device="cpu", batch_size=BATCH_SIZE)
    images = open_for(encoder, path, encoding, encoder.class_names if labelled and encoder.named else None)
    if not images.num_samples:
        raise UserError(f"{printable(path)} holds no images")
    if not count or count >= images.num_samples:
        return Sample(images.loader, images.num_samples, printable(path), images.num_unlabelled)
    # evenly spaced, because the first images of a folder are those of the first classes
    source = take_evenly(images.source or BetonImages.of(images.shards), count)
    loader = SourceLoader(source, encoder.preprocessing, BATCH_SIZE, -1, Processes())
    return Sample(loader, count, printable(path), int((source.labels < 0).sum()))


def for_check(encoder, options, *, labelled=False):
    """The images that the options name for the check (--check), or None; says so where there are none."""
    if options.check == "none":
        print("not checked on images, as --check=none says")
        return None
    path = options.check or of_run(options, "val_dataset")
    if path is None:
        named = _named_by_run(options, "val_dataset")
        why = f", because the run's val set, {printable(named)}, is not found from here" if named else ""
        print(f"not checked on images{why}: name some with --check=IMAGES")
        return None
    # of a run's own val set the classes are known, which tells another file of its name
    own = not options.check
    return take(encoder, path, options, options.check_images, labelled=labelled or own)


def of_run(options, key):
    """A data set of the run folder that is exported, as its recipe names it; None where it is not there."""
    path = _named_by_run(options, key)
    first = (path or "").split(",")[0].strip()
    return path if first and (os.path.exists(first) or any(mark in first for mark in "*?[{")) else None


def _named_by_run(options, key):
    if not Path(options.run).is_dir():
        return None
    try:
        return str(getattr(runs.read_config(options.run).data, key))
    except UserError:  # a model of another kind, which has no recipe
        return None


@torch.inference_mode()
def compare(run, encoder, outputs, sample, program):
    """Runs a graph beside the encoder on images. Returns what to say; raises UserError where it is wrong.

    run(images uint8 [b, 3, H, W], a tensor) -> {name: numpy array}, as llc.export.graph.Graph names them.
    program: who ran it, for the text.

    A bit may differ only where |z| is below TOLERANCE of z's root mean square, and with it the classes of
    that image's code. z and class logits may differ by as much. All else is equal.
    """
    encoder = copy.copy(encoder)
    encoder.precision = "fp32"
    seen = _Seen(encoder, outputs, program)
    with evaluating(encoder.network):
        for images, _ in sample:
            z = encoder(images)
            check_finite(non_finite(z).numpy())
            seen.add(z, run(images))
    return seen.judge(f"{sample.num_images:,} images of {sample.title}")


class _Seen:
    """What is found, batch by batch, and what follows from it."""

    def __init__(self, encoder, outputs, program):
        self.encoder, self.outputs, self.program = encoder, outputs, program
        self.ranks = {
            name: bind(name, encoder.network, encoder.learnt)
            for name in ("class", "mhd", "posterior")
            if name in outputs
        }
        self.num_bits = self.squares = self.num_differing_images = 0
        self.bits = []  # |z| of the bits that differ
        self.z = self.logits = 0.0  # the largest differences
        # of each image with another answer, how near another answer is: the gap between logits, the least |z|
        self.nearest = {name: [] for name in self.ranks}

    def add(self, z, answers):
        self.num_bits += z.numel()
        self.squares += float(z.double().square().sum())
        self._expect(answers, z)
        if "codes" in self.outputs:
            codes = torch.from_numpy(answers["codes"])
            differs = unpack_bits(codes, z.shape[1]) != (z > 0)
            self.bits += z.abs()[differs].tolist()
            self.num_differing_images += int(differs.any(1).sum())
            if not torch.equal(pack_bits(unpack_bits(codes, z.shape[1])), codes):
                raise UserError(f"{self.program}: the padding bits of its codes are not 0")
        if "z" in self.outputs:
            self.z = np.maximum(self.z, _largest(torch.from_numpy(answers["z"]) - z))
        for name, rank in self.ranks.items():
            labels, scores = (part[:, 0] for part in rank(z, 1))
            given = torch.from_numpy(answers[f"{name}_labels"])
            wrong = given != labels
            if name == "class":
                logits = self.encoder.network.class_logits(z)
                found = torch.from_numpy(answers["class_logits"])
                self.logits = np.maximum(self.logits, _largest(found - logits))
                last = logits.shape[1] - 1
                gap = scores - logits.gather(1, given.clamp(0, last)[:, None])[:, 0]
                gap[(given < 0) | (given > last)] = torch.inf
                self.nearest[name] += gap[wrong].tolist()
                continue
            if name == "mhd":
                wrong |= torch.from_numpy(answers["mhd_distances"]) != scores
            else:
                found = torch.from_numpy(answers["posterior_probabilities"])
                # llc's sums for long codes leave out differences of more than 32 nats
                wrong |= ~((found - scores).abs() <= 1e-4)
            self.nearest[name] += z.abs().min(1).values[wrong].tolist()

    def _expect(self, answers, z):
        """Raises UserError unless the answers have the dtypes and numbers of rows that Graph states."""
        dtypes = {"codes": "uint8", "labels": "int64", "distances": "int32"}
        for name, array in answers.items():
            dtype = dtypes.get(name.rpartition("_")[2], "float32")
            if array.dtype.name != dtype or len(array) != len(z):
                raise UserError(
                    f"{self.program}: its output {name} is {array.dtype} {list(array.shape)} for {len(z)} "
                    f"images; expected {dtype}"
                )

    def judge(self, images):
        """What to say of all images. Raises UserError for a difference that rounding does not explain."""
        size = (self.squares / self.num_bits) ** 0.5
        bound = TOLERANCE * size
        of_logits = bound * self.encoder.num_bits * float(self.encoder.network.logit_scale)
        faults, said = [], []
        if "codes" in self.outputs:
            text = "all bits of all codes are equal"
            if self.bits:
                text = (
                    f"{len(self.bits):,} of {self.num_bits:,} bits differ, in {self.num_differing_images:,} "
                    f"images, where |z| is at most {max(self.bits):.1e} (z's root mean square: {size:.3g})"
                )
            (faults if self.bits and max(self.bits) > bound else said).append(text)
        if "z" in self.outputs:
            text = f"z differs by at most {self.z:.1e}"
            (faults if not self.z <= bound else said).append(text)
        if "class" in self.outputs:
            text = f"class logits differ by at most {self.logits:.1e}"
            (faults if not self.logits <= of_logits else said).append(text)
        for name, nearest in self.nearest.items():
            text = f"{name} answers are equal"
            if nearest:
                text = f"{name} answers differ for {len(nearest):,} images, where they are within rounding"
            limit = 2 * of_logits if name == "class" else bound
            if nearest and max(nearest) > limit:
                faults.append(f"{name} answers differ for {len(nearest):,} images")
            else:
                said.append(text)
        if faults:
            raise UserError(
                f"what {self.program} computes on {images} is not what this model computes, so no file is "
                f"written: {'; '.join(faults)}. Rounding explains differences of z up to {bound:.1e} alone. "
                "Other versions of the packages may do better"
            )
        return "\n    ".join([f"checked with {self.program} on {images}:", *said])


def _largest(difference):
    """The largest absolute value; NaN if there is one, which np.maximum keeps and `max` may not."""
    return float(difference.abs().max()) if difference.numel() else 0.0


def as_numpy(names, tensors):
    return {name: np.asarray(tensor) for name, tensor in zip(names, tensors)}
