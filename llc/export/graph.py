"""From images to codes and classes as one module without llc's own operators, for other runtimes to run."""

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

import llc
from llc import checkpoints
from llc.codes import binarize, code_size
from llc.errors import UserError
from llc.hamming.posterior_fit import UNIT

# --outputs -> the names of the graph's outputs
OUTPUTS = {
    "codes": ("codes",),
    "z": ("z",),
    "class": ("class_labels", "class_logits"),
    "mhd": ("mhd_labels", "mhd_distances"),
    "posterior": ("posterior_labels", "posterior_probabilities"),
}
EXAMPLES = 2  # images that the graph is traced with; its batch may have any other number


class Graph(nn.Module):
    """forward(images uint8 [n, 3, resolution, resolution]) -> a tuple of tensors, those of `names`.

    images: as Encoder.preprocess returns them; they are normalised here.

    codes uint8 [n, code_size], as llc.codes.pack_bits packs them; z float32 [n, num_bits], the mean over an
    image and its mirror image where the encoder has `flip`; class_labels int64 [n] with class_logits float32
    [n, num_classes]; mhd_labels int64 [n] with mhd_distances int32 [n], those of the nearest class;
    posterior_labels int64 [n] with posterior_probabilities float32 [n], of the most probable class. Ties go
    to the lowest class. All is computed in float32, whatever the encoder's precision is. A graph cannot raise
    errors: where z is NaN, as an Encoder would say, bits are 0 and classes without meaning.

    outputs: keys of OUTPUTS. Raises UserError where the encoder has not what an output needs.
    """

    def __init__(self, encoder: llc.Encoder, outputs: Sequence[str]) -> None:
        super().__init__()
        encoder.check_codes()
        for output in ("class", "mhd"):
            if output in outputs and not len(encoder.codebook):
                raise UserError(
                    f"--outputs={output}: this model holds no codebook; give one with --codebook=FILE.npy"
                )
        self.outputs, self.names = tuple(outputs), names_of(outputs)
        self.flip, self.num_bits = encoder.flip, encoder.num_bits
        # a copy without gradients, because what torch.export.load gives would ask for them, too
        self.network = copy.deepcopy(encoder.network).requires_grad_(False)
        codebook = encoder.codebook.cpu()
        self.scale = float(torch.as_tensor(encoder.network.logit_scale).detach())
        self.register_buffer("class_codes", binarize(codebook).T.contiguous())  # [num_bits, num_classes]
        self.register_buffer("places", torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.int32))
        if "posterior" in outputs:
            self._add_posterior(encoder)

    def _add_posterior(self, encoder):
        if "posterior" not in encoder.learnt:
            raise UserError(
                "--outputs=posterior: the posterior decoder has not been fitted to this model; "
                "python -m llc.evaluate MODEL --fit_decoder=TRAIN.beton does that"
            )
        decoder = encoder.learnt["posterior"]
        self.has_table = decoder.flip_probability is not None
        if self.has_table:
            labels, probabilities = decoder.decode(_all_codes(self.num_bits))
            small = next(
                dtype
                for dtype in (np.uint8, np.int16, np.int32)
                if decoder.num_classes - 1 <= np.iinfo(dtype).max
            )
            self.register_buffer("table_labels", torch.from_numpy(labels[:, 0].astype(small)))
            self.register_buffer("table_probabilities", torch.from_numpy(probabilities[:, 0].copy()))
            self.register_buffer("powers", 1 << torch.arange(self.num_bits - 1, -1, -1))
        else:
            # sums of whole numbers below 2^53, so they are exact in any order
            weights, offsets = (torch.from_numpy(decoder.arrays[x]).double() for x in ("weights", "offsets"))
            self.register_buffer("posterior_weights", weights.T.contiguous())  # [num_bits, num_classes]
            self.register_buffer("posterior_offsets", offsets)

    @property
    def table_bytes(self) -> int:
        """Size of the posterior decoder's table; 0 without one."""
        tables = (getattr(self, f"table_{name}", None) for name in ("labels", "probabilities"))
        return sum(table.nbytes for table in tables if table is not None)

    def forward(self, images):
        if self.flip:
            # both halves at once, so that the network is in the graph once
            z = self.network(torch.cat([images, images.flip(3)])).reshape(2, -1, self.num_bits)
            z = (z[0] + z[1]) / 2
        else:
            z = self.network(images)
        bits = (z > 0).to(torch.int32)
        made = {"codes": (self._packed(bits),), "z": (z,)}
        if "class" in self.outputs:
            logits = (self.scale * z) @ self.class_codes
            made["class"] = logits.argmax(1), logits
        if "mhd" in self.outputs:
            agreement = (2 * bits - 1).float() @ self.class_codes  # num_bits - 2 distances, exact
            best, labels = agreement.max(1).values, agreement.argmax(1)
            made["mhd"] = labels, ((self.num_bits - best) / 2).to(torch.int32)
        if "posterior" in self.outputs:
            made["posterior"] = self._posterior(bits)
        return tuple(tensor for output in self.outputs for tensor in made[output])

    def _packed(self, bits):
        size = code_size(self.num_bits)
        padded = nn.functional.pad(bits, (0, 8 * size - self.num_bits))
        return (padded.reshape(-1, size, 8) * self.places).sum(2, dtype=torch.int32).to(torch.uint8)

    def _posterior(self, bits):
        if self.has_table:
            numbers = (bits.long() * self.powers).sum(1)
            return self.table_labels[numbers].long(), self.table_probabilities[numbers]
        sums = bits.double() @ self.posterior_weights + self.posterior_offsets
        best = sums.max(1, keepdim=True).values
        total = ((sums - best) / UNIT).float().exp().sum(1)
        return sums.argmax(1), 1 / total


def names_of(outputs: Sequence[str]) -> tuple[str, ...]:
    """The names of the graph's outputs."""
    return tuple(name for output in outputs for name in OUTPUTS[output])


def description(encoder: llc.Encoder) -> dict:
    """What a reader without llc needs besides the graph, in plain values.

    That is: `format` (1), `llc` (the version), `network` (checkpoints.digest), `num_bits`, `class_names` in
    label order or None, `preprocessing` (llc.data.preprocessing; the graph applies mean and std itself) and
    `flip`.
    """
    return {
        "format": 1,
        "llc": llc.__version__,
        "network": checkpoints.digest(encoder.network),
        "num_bits": encoder.num_bits,
        "class_names": list(encoder.class_names) if encoder.named else None,
        "preprocessing": dataclasses.asdict(encoder.preprocessing),
        "flip": encoder.flip,
    }


def exported(graph: Graph, resolution: int) -> torch.export.ExportedProgram:
    """The graph as torch.export traces it, for batches of any size.

    Raises UserError where torch cannot trace the network.
    """
    images = torch.zeros(EXAMPLES, 3, resolution, resolution, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad():
            program = torch.export.export(graph.eval(), (images,), dynamic_shapes={"images": {0: batch}})
    except UserError:
        raise
    except Exception as error:  # of many kinds: what a backbone from outside llc does is not known
        raise UserError(
            f"torch.export cannot trace {graph.network.options['arch']}: "
            f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names files of this machine
    return program


def _all_codes(num_bits):
    """The packed codes of the numbers 0, 1, ..., 2^num_bits - 1: uint8 [2^num_bits, code_size]."""
    size = code_size(num_bits)
    numbers = np.arange(1 << num_bits, dtype=np.uint32) << (8 * size - num_bits)
    return np.ascontiguousarray(numbers.astype(">u4").view(np.uint8).reshape(-1, 4)[:, 4 - size :])
