"""The nearest codes of a database, by Hamming distance, exactly.

    python -m llc.search codes.npz --queries=more.npz [--k=10] [--out=neighbours.npz]
    python -m llc.search codes.npz --queries=cat.jpg --model=MODEL

codes.npz is a file of `python -m llc.encode`. Queries are such a file too, or images: an image, a folder, a
beton, or whatever else `python -m llc.encode` reads. These are encoded by MODEL, which must be the model that
encoded the database, with the --num_bits that the database was made with. --out holds distances int32 [n, k]
and indices int64 [n, k], positions in the database, sorted by distance, then index.
"""

import dataclasses
from typing import Any

from llc import config as edge
from llc.code_files import read_codes, write_arrays
from llc.data.sources import printable
from llc.encode import Encoding, check_out, encode, load_encoder
from llc.errors import UserError
from llc.hamming import search
from llc.options import option

_MAX_SHOWN = 20  # queries on the screen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Encoding):
    """What is searched for, and where."""

    database: str = option(positional=True, help="codes.npz, a file of python -m llc.encode")
    queries: str = option(help="codes.npz, an image, or what llc.encode takes as --data")
    model: str = option("", help="the model that encodes queries that are images: what llc.load takes")
    k: int = option(10, minimum=1, help="number of neighbours of each query")
    out: str = option("", help="an .npz to write")


def main(argv: list[str]) -> None:
    options = edge.read_one(Options, argv, description=__doc__)
    if options.out:
        check_out(options.out, "--out")
    database = read_codes(options.database)
    queries = _queries(options)
    if queries["num_bits"] != database["num_bits"]:
        raise UserError(
            f"{options.queries} has codes of {queries['num_bits']} bits, {options.database} of "
            f"{database['num_bits']}: they were made by different models, or with another --num_bits"
        )
    k = min(options.k, len(database["codes"]))
    distances, indices = search(queries["codes"], database["codes"], k)
    if options.out:  # before anything is printed, because printing may fail
        write_arrays(options.out, {"distances": distances, "indices": indices})
    for i in range(min(len(indices), _MAX_SHOWN)):
        neighbours = ", ".join(
            f"{_name(database, j)} ({d})" for d, j in zip(distances[i].tolist(), indices[i].tolist())
        )
        print(f"{_name(queries, i)}: {neighbours}")
    if len(indices) > _MAX_SHOWN:
        more = f"... and {len(indices) - _MAX_SHOWN:,} more queries"
        print(more if options.out else f"{more}; --out=FILE.npz keeps them all")


def _queries(options: Options) -> dict[str, Any]:
    if options.queries.endswith(".npz"):
        if options.num_bits:
            raise UserError(
                f"--num_bits={options.num_bits}: {printable(options.queries)} holds codes already; give "
                "python -m llc.encode this flag, for both files"
            )
        return read_codes(options.queries)
    if not options.model:
        raise UserError(
            f"--queries={printable(options.queries)}: images need --model=MODEL, the model that encoded the "
            "database; codes need a file .npz of python -m llc.encode"
        )
    return encode(load_encoder(options.model, options), options.queries, options)


def _name(arrays: dict[str, Any], i: int) -> str:
    """An image's file, or its position and class."""
    if "files" in arrays:
        return printable(str(arrays["files"][i]))
    label = int(arrays["labels"][i]) if "labels" in arrays else -1
    named = 0 <= label < len(arrays.get("class_names", ()))
    return f"{i} {printable(str(arrays['class_names'][label]))}" if named else str(i)


if __name__ == "__main__":
    edge.run(main)
