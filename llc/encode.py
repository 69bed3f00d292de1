"""Packed codes of many images, into one file.

    python -m llc.encode MODEL --data=val.beton --out=codes.npz        (MODEL: a run folder, a saved encoder, the original's model_best.pth)

--data is a beton, a folder with one folder a class, or a folder of images. The file, plain arrays for numpy.load, holds

    codes        uint8 [n, ceil(num_bits / 8)], packed as llc.pack_bits does
    num_bits     int
    labels       int64 [n], in the order of class_names; -1 where the data has no classes
    class_names  text [num_classes], the data's
    files        text [n], paths below the folder; not there for a beton, whose images have no names
"""

import argparse
import collections

import numpy as np
import torch
from tqdm import tqdm

from llc import config as edge
from llc import gpu
from llc.codes import code_size, pack_bits
from llc.data.batches import open_images
from llc.data.sources import printable
from llc.distributed import Processes
from llc.encoder import load
from llc.files import atomic_write


def main(argv):
    parser = argparse.ArgumentParser(
        prog="python -m llc.encode",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="what llc.load takes")
    parser.add_argument("--data", required=True, help="a beton or a folder of images")
    parser.add_argument("--out", required=True, help="the .npz to write")
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    found = encode(
        load(arguments.model, checkpoint=arguments.checkpoint),
        arguments.data,
        device=arguments.device,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
    )
    # a file object: numpy would add .npz to a name that lacks it
    atomic_write(arguments.out, lambda file: np.savez(file, **found))
    num_images, size = found["codes"].shape
    print(f"{arguments.out}: {num_images:,} codes of {found['num_bits']} bits, {size} bytes each")


def add_arguments(parser):
    """The flags of every command that encodes."""
    parser.add_argument("--checkpoint", help="of a run folder: instance (default), joint, codebook, ...")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s"
    )
    parser.add_argument(
        "--batch_size", type=at_least_1, default=256, help="images a step (default: %(default)s)"
    )
    parser.add_argument(
        "--num_workers", type=at_least_1, default=-1, help="threads that decode images (default: one a core)"
    )


def at_least_1(text):
    """argparse's type of a count."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return int(text)


@torch.inference_mode()
def encode(encoder, data, *, device, batch_size, num_workers):
    """The arrays of the file, by name, of the images at `data`. One batch of images is in memory at a time, and one ahead."""
    processes = Processes(device=gpu.device(device))
    encoder.to(processes.device)
    images = open_images(
        data,
        encoder.preprocessing,
        batch_size=batch_size,
        num_workers=num_workers,
        processes=processes,
    )
    for note in images.notes:
        print(printable(note))
    codes = np.empty((images.num_samples, code_size(encoder.num_bits)), np.uint8)
    labels = np.empty(images.num_samples, np.int64)
    if processes.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # all batches but the last have one shape
    done = 0
    with tqdm(total=images.num_samples, unit="image", unit_scale=True) as bar:
        packed = ((pack_bits(encoder(batch)), batch_labels) for batch, batch_labels in images.loader)
        for batch_codes, batch_labels in _on_host(packed):
            part = slice(done, done + len(batch_codes))
            codes[part], labels[part] = batch_codes, batch_labels
            done += len(batch_codes)
            bar.update(len(batch_codes))
    found = {
        "codes": codes,
        "num_bits": np.int64(encoder.num_bits),
        "labels": labels,
        "class_names": np.array(images.class_names, "U"),
    }
    if images.files is not None:
        found["files"] = np.array([printable(name) for name in images.files], "U")
    return found


def _on_host(batches):
    """Yields tuples of tensors on the CPU. A GPU's come a batch late: it computes while the host stores."""
    underway = collections.deque()
    for batch in batches:
        if not batch[0].is_cuda:
            yield batch
            continue
        # such a copy goes to page-locked memory and must not be read before its event
        copies = [tensor.to("cpu", non_blocking=True) for tensor in batch]
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
