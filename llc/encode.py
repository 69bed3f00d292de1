"""Packed codes of many images, written to one file.

    python -m llc.encode MODEL --data=val.beton --out=codes.npz
    python -m llc.encode MODEL --data='val-*.parquet' --out=codes.npz
    python -m llc.encode MODEL --data=photos.csv --image_column=path --out=codes.npz
    python -m llc.encode MODEL --data=val.beton --num_bits=8 --out=codes.npz           (the first 8 bits)

MODEL is a run folder, a saved encoder, a folder that llc.export --to=hub wrote, its address on the Hugging
Face Hub, hf://OWNER/NAME, or the original code's model_best.pth. --data is a beton, a folder with one folder
of images per class, a folder of images, an image, or whatever another source takes, such as tars, tables or
LMDB; --dataset names the source where the path does not tell. Images are read from where they are. The file
holds plain arrays for numpy.load:

    codes        uint8 [n, ceil(num_bits / 8)], packed as llc.pack_bits does
    num_bits     int
    labels       int64 [n], in the order of class_names; -1 if the data has no classes
    class_names  text [num_classes], the data's
    network      text, which tells the network of the codes from others
    files        text [n], the source's name of each image: in a folder, its path below the folder. A beton's
                 images have no names, and then it is missing
"""

import collections
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from llc import checkpoints, gpu, progress
from llc import config as edge
from llc.code_files import NETWORK, write_arrays
from llc.codes import code_size, pack_bits
from llc.data.batches import Images, open_images
from llc.data.reading import Reading
from llc.data.sources import as_unicode, printable
from llc.distributed import Processes
from llc.encoder import Encoder, check_finite, load, non_finite
from llc.errors import UserError
from llc.inference import evaluating
from llc.options import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding(Reading):
    """The flags of every command that encodes."""

    checkpoint: str = option(
        "", help="of a run folder: instance, joint, codebook, ...; empty: the first of these"
    )
    num_bits: int = option(0, minimum=0, help="use only this many bits of each code, the first ones; 0: all")
    device: str = option("auto", help="cpu, cuda, or cuda:N for GPU number N; auto: cuda if there is a GPU")
    batch_size: int = option(256, minimum=1, help="images per step")
    num_workers: int = option(-1, minimum=-1, help="threads that decode images, not 0; -1: one per core")

    def __post_init__(self) -> None:
        if self.num_workers == 0:
            raise UserError("--num_workers=0: expected 1 or more, or -1 for one per core")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Encoding):
    """What is encoded."""

    model: str = option(positional=True, help="what llc.load takes: a run folder or a file")
    data: str = option(help="a beton, a folder of images, an image, tars, a table, ...")
    out: str = option(help="the .npz to write")


def main(argv: list[str]) -> None:
    options = edge.read_one(Options, argv, description=__doc__)
    check_out(options.out, "--out")
    encoder = load_encoder(options.model, options)
    arrays = encode(encoder, options.data, options)
    write_arrays(options.out, arrays)
    num_images, size = arrays["codes"].shape
    print(f"{printable(options.out)}: {num_images:,} codes of {arrays['num_bits']} bits, {size} bytes each")


def load_encoder(model: str, options: Encoding) -> Encoder:
    """The Encoder that the flags name. Raises UserError, also if it makes no codes."""
    encoder = load(model, checkpoint=options.checkpoint or None, num_bits=options.num_bits or None)
    encoder.check_codes()
    return encoder


def check_out(path: str, flag: str) -> None:
    """Raises UserError if no file can be written at `path`, given by `flag`. For use before long work."""
    out = Path(path)
    folder = out.parent
    if not folder.is_dir():
        raise UserError(f"{flag}={printable(path)}: there is no folder {printable(folder)}; make it first")
    if out.is_dir():
        raise UserError(f"{flag}={printable(path)}: this is a folder; expected the name of a file to write")
    if out.exists() and not out.is_file():
        raise UserError(f"{flag}={printable(path)}: it exists and is not a file")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{flag}={printable(path)}: the folder {printable(folder)} cannot be written")


def open_for(
    encoder: Encoder,
    data: str | os.PathLike[str],
    options: Encoding,
    class_names: Sequence[str] | None = None,
) -> Images:
    """The images at `data` for an encoder, which is moved to options.device; prints notes on them.

    class_names: as open_images takes them. Raises UserError.
    """
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    processes = Processes(device=gpu.device(device))
    encoder.to(processes.device)
    images = open_images(
        data,
        encoder.preprocessing,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        processes=processes,
        class_names=class_names,
        reading=options,
    )
    for note in images.notes:
        print(printable(note))
    return images


@torch.inference_mode()
def encode(encoder: Encoder, data: str | os.PathLike[str], options: Encoding) -> dict[str, np.ndarray]:
    """The arrays of the file, by name, of the images at `data`; the encoder is moved to options.device.

    Two batches of images are in memory at a time. Raises UserError, also where z is NaN or infinite.
    """
    images = open_for(encoder, data, options)
    codes = np.empty((images.num_samples, code_size(encoder.num_bits)), np.uint8)
    labels = np.empty(images.num_samples, np.int64)
    broken = np.empty(images.num_samples, bool)
    if encoder.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # all batches but the last have one shape

    def packed(batch):
        z = encoder(batch[0])
        return pack_bits(z), batch[1], non_finite(z)

    done = 0
    with progress.bar(images.num_samples, "encode") as bar, evaluating(encoder.network):
        for batch_codes, batch_labels, batch_broken in _on_host(map(packed, images.loader)):
            part = slice(done, done + len(batch_codes))
            codes[part], labels[part], broken[part] = batch_codes, batch_labels, batch_broken
            done += len(batch_codes)
            bar.update(len(batch_codes))
    names = images.files
    check_finite(broken, names)
    arrays = {
        "codes": codes,
        "num_bits": np.array(encoder.num_bits),
        "labels": labels,
        "class_names": np.array(images.class_names, "U"),
        NETWORK: np.array(checkpoints.digest(encoder.network)),
    }
    if names is not None:
        arrays["files"] = np.array([as_unicode(name) for name in names], "U")
    return arrays


def _on_host(batches: Iterator[tuple[torch.Tensor, ...]]) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yields tuples of tensors on the CPU.

    A GPU's tensors come a batch late, so that it computes while the host stores.
    """
    underway: collections.deque = collections.deque()
    for batch in batches:
        if not batch[0].is_cuda:
            yield batch
            continue
        # The copy goes to page-locked memory, which must not be read before the event.
        copies = tuple(tensor.to("cpu", non_blocking=True) for tensor in batch)
        underway.append((copies, torch.cuda.current_stream(batch[0].device).record_event()))
        if len(underway) > 1:
            yield _arrived(*underway.popleft())
    while underway:
        yield _arrived(*underway.popleft())


def _arrived(copies, event):
    event.synchronize()
    return copies


if __name__ == "__main__":
    edge.run(main)
