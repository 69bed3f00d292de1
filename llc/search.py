"""The nearest codes of a database, by Hamming distance, exactly.

    python -m llc.search codes.npz --queries=more.npz [--k=10] [--out=found.npz]
    python -m llc.search codes.npz --queries=cat.jpg --model=MODEL

codes.npz is what `python -m llc.encode` wrote. Queries are such a file too, or an image, a folder of images or a beton, which MODEL encodes:
the one that encoded the database, or its neighbours mean nothing. --out holds distances int32 [n, k] and indices int64 [n, k], positions in
the database, sorted by distance, then index.
"""

import argparse
import zipfile
from pathlib import Path

import numpy as np

from llc import config as edge
from llc.codes import code_size
from llc.data.sources import printable
from llc.encode import add_arguments, at_least_1, encode
from llc.encoder import load
from llc.errors import UserError
from llc.files import atomic_write
from llc.hamming import search

_MAX_SHOWN = 20  # queries on the screen


def main(argv):
    parser = argparse.ArgumentParser(
        prog="python -m llc.search",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("database", help="codes.npz")
    parser.add_argument("--queries", required=True, help="codes.npz, an image, a folder of images or a beton")
    parser.add_argument("--model", help="what encodes the queries that are images: what llc.load takes")
    parser.add_argument(
        "--k", type=at_least_1, default=10, help="neighbours of each query (default: %(default)s)"
    )
    parser.add_argument("--out", help="an .npz to write")
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    database = read_codes(arguments.database)
    queries = _queries(arguments)
    if queries["num_bits"] != database["num_bits"]:
        raise UserError(
            f"{arguments.queries} has codes of {queries['num_bits']} bits, {arguments.database} of {database['num_bits']}: they were "
            "made by different models"
        )
    distances, indices = search(queries["codes"], database["codes"], min(arguments.k, len(database["codes"])))
    for i in range(min(len(indices), _MAX_SHOWN)):
        found = ", ".join(
            f"{_name(database, j)} ({d})" for d, j in zip(distances[i].tolist(), indices[i].tolist())
        )
        print(f"{_name(queries, i)}: {found}")
    if len(indices) > _MAX_SHOWN:
        print(
            f"... and {len(indices) - _MAX_SHOWN:,} more queries"
            + ("" if arguments.out else "; --out=FILE.npz keeps them all")
        )
    if arguments.out:
        atomic_write(arguments.out, lambda file: np.savez(file, distances=distances, indices=indices))


def _queries(arguments):
    path = Path(arguments.queries)
    if path.suffix == ".npz":
        return read_codes(path)
    if not arguments.model:
        raise UserError(
            f"--queries={path} are images: say with --model= what encodes them, or give codes (.npz of python -m llc.encode)"
        )
    encoder = load(arguments.model, checkpoint=arguments.checkpoint)
    if path.is_dir() or path.suffix == ".beton":
        return encode(
            encoder,
            path,
            device=arguments.device,
            batch_size=arguments.batch_size,
            num_workers=arguments.num_workers,
        )
    return {"codes": encoder.encode(path).numpy(), "num_bits": encoder.num_bits, "files": [path.name]}


def read_codes(path):
    """The arrays of a file of `python -m llc.encode`, by name. Raises UserError naming the file where it is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = dict(file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (
        ValueError,
        EOFError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
    ) as error:  # a lone array is not a context manager
        raise UserError(f"{path}: not a file of codes as python -m llc.encode writes: {error}") from error
    codes, num_bits = found.get("codes"), found.get("num_bits")
    if codes is None or num_bits is None or num_bits.shape != () or num_bits.dtype.kind not in "iu":
        raise UserError(
            f"{path}: not a file of codes as python -m llc.encode writes; it holds {', '.join(found) or 'nothing'}"
        )
    if (
        codes.dtype != np.uint8
        or codes.ndim != 2
        or num_bits < 1
        or codes.shape[1] != code_size(int(num_bits))
        or not len(codes)
    ):
        raise UserError(
            f"{path}: codes are {codes.dtype} {list(codes.shape)}; expected uint8 [n, ceil({num_bits} / 8)]"
        )
    return found


def _name(arrays, i):
    """An image's file, else its position and class."""
    if "files" in arrays:
        return printable(str(arrays["files"][i]))
    label = int(arrays["labels"][i]) if "labels" in arrays else -1
    return f"{i}" + (
        f" {arrays['class_names'][label]}" if 0 <= label < len(arrays.get("class_names", ())) else ""
    )


if __name__ == "__main__":
    edge.run(main)
