"""The nearest codes of a database, by Hamming distance, exactly.

    python -m llc.search PHOTOS.index cat.jpg dog.jpg [--montage=out.png] [--json=FILE]
    python -m llc.search PHOTOS.index --like=17,18                            (images of the index as queries)
    python -m llc.search PHOTOS.index cat.jpg --radius=3 --label=cat
    python -m llc.search codes.npz --queries=more.npz [--k=10] [--out=neighbours.npz]
    python -m llc.search codes.npz --queries=cat.jpg --model=MODEL

PHOTOS.index is an index of `python -m llc.index`. Queries are images, folders of images, betons, whatever
else `python -m llc.encode` reads, or a file of codes that it wrote. Images are encoded by the model that the
index keeps, or by --model, which must be the same. --out holds distances int32 [n, k] and ids int64 [n, k],
sorted by distance, then id, padded with -1; with --radius it holds lims int64 [n + 1], distances and ids, and
what was found for query i is at lims[i]:lims[i + 1].

codes.npz is a file of `python -m llc.encode`. Images as queries are encoded by MODEL, which must be the model
that encoded the database, with the --num_bits that the database was made with. --out holds distances int32
[n, k] and indices int64 [n, k], positions in the database, sorted by distance, then index.

A k above the number of codes in the database counts as that number.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from llc import config as edge
from llc.code_files import NETWORK, check_same_network, read_codes, write_arrays
from llc.data.sources import as_unicode, printable
from llc.encode import Encoding, check_out, encode, load_encoder
from llc.errors import UserError
from llc.evaluation import wordnet
from llc.hamming import search
from llc.index.collection import collect, open_recorded
from llc.index.commands import bits, check_outputs, label_of, model_of, write_json
from llc.index.images import codes_of
from llc.index.index import Index
from llc.montage import MAX_COLUMNS, MAX_ROWS, Tile, draw_sheet, write_sheet
from llc.options import option

_MAX_SHOWN = 20  # queries on the screen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Encoding):
    """What is searched for, and where."""

    database: str = option(positional=True, help="an index, or codes.npz, a file of python -m llc.encode")
    images: tuple[str, ...] = option(
        (), positional=True, help="of an index: queries, each an image, or what llc.encode takes as --data"
    )
    queries: str = option("", help="codes.npz, an image, or what llc.encode takes as --data")
    like: tuple[int, ...] = option((), minimum=0, help="of an index: ids whose codes are queries")
    model: str = option(
        "", help="the model that encodes queries that are images: what llc.load takes; an index keeps its own"
    )
    k: int = option(10, minimum=1, help="number of neighbours of each query")
    radius: int = option(
        -1,
        minimum=-1,
        help="of an index: find all codes that differ by at most so many bits; the screen and the montage "
        "show the first k; -1: the k nearest at any distance",
    )
    label: str = option("", help="of an index: find images of this class alone; several: commas between")
    ids: tuple[int, ...] = option((), minimum=0, help="of an index: find these ids alone")
    out: str = option("", help="an .npz to write")
    json: str = option("", help="of an index: a JSON file to write; -: print JSON in place of lines")
    montage: str = option("", help="of an index: a contact sheet to write, .png, .jpg or .webp")


def main(argv: list[str]) -> None:
    options = edge.read_one(Options, argv, description=__doc__)
    if os.path.isdir(options.database):
        _search_index(options)
    else:
        _search_codes(options)


# ---- files of codes


def _search_codes(options: Options) -> None:
    _refuse_flags_of_an_index(options)
    if not options.queries:
        raise UserError("queries is required (codes.npz, or images): give it as --queries=VALUE")
    if options.out:
        check_out(options.out, "--out")
    database = read_codes(options.database)
    queries = _queries(options)
    if queries["num_bits"] != database["num_bits"]:
        raise UserError(
            f"{options.queries} has codes of {queries['num_bits']} bits, {options.database} of "
            f"{database['num_bits']}: they were made by different models, or with another --num_bits"
        )
    of_queries, of_database = (str(arrays.get(NETWORK, "")) for arrays in (queries, database))
    check_same_network(printable(options.queries), of_queries, printable(options.database), of_database)
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


def _refuse_flags_of_an_index(options: Options) -> None:
    given = [f"--{name}" for name in ("like", "label", "ids", "json", "montage") if getattr(options, name)]
    given += ["--radius"] if options.radius >= 0 else []
    if not given and not options.images:
        return
    shown = printable(options.database)
    if not os.path.exists(options.database):
        raise UserError(f"{shown}: there is no such index, nor a file of codes")
    if given:
        raise UserError(
            f"{given[0]}: only for an index, and {shown} is a file; python -m llc.index create makes an "
            "index, and python -m llc.index add puts codes.npz into it"
        )
    raise UserError(
        f"{printable(options.images[0])}: queries as words are for an index; give --queries="
        f"{printable(options.images[0])} --model=MODEL"
    )


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
    return f"{i} {printable(wordnet.with_word(str(arrays['class_names'][label])))}" if named else str(i)


# ---- an index


@dataclasses.dataclass(frozen=True)
class _Query:
    """A query: its code uint8 [code_size]; what to call it; its image's recorded name; its own id, or -1."""

    code: np.ndarray
    name: str
    file: str
    id: int = -1


def _search_index(options: Options) -> None:
    if not (options.images or options.queries or options.like):
        raise UserError(
            "queries is required: name images behind the index, or give --queries=codes.npz, or --like=ID"
        )
    with Index.open(options.database) as index:
        written = {"--out": options.out, "--json": options.json, "--montage": options.montage}
        check_outputs(index, written, [*options.images, options.queries])
        options = dataclasses.replace(options, k=min(options.k, max(len(index), 1)))
        filter = _filter(index, options)
        queries = _queries_of_index(index, options)
        lims, distances, ids = _find(index, queries, options, filter)
        if options.out:  # before anything is printed, because printing may fail
            _write_found(options, lims, distances, ids)
        if options.json:
            write_json(options.json, _described(index, options, queries, lims, distances, ids))
        if options.montage:
            _write_montage(index, options, queries, lims, distances, ids)
        if options.json == "-":
            return
        for i, query in enumerate(queries[:_MAX_SHOWN]):
            part = slice(lims[i], min(lims[i + 1], lims[i] + options.k))
            print(printable(query.name) + ("" if lims[i + 1] > lims[i] else ": nothing was found"))
            for found in _neighbours(index, distances[part], ids[part]):
                label = "" if found["label"] is None else str(found["label"])
                label = label and f"  {printable(wordnet.with_word(label))}"
                file = f"  {printable(found['file'])}" if found["file"] else ""
                print(f"  {bits(found['distance']):>9s}  id {found['id']}{label}{file}")
            num_hidden = int(lims[i + 1] - lims[i]) - options.k
            if num_hidden > 0:
                print(f"  and {num_hidden:,} more; --k shows more, --json=FILE lists all")
    if len(queries) > _MAX_SHOWN:
        more = f"... and {len(queries) - _MAX_SHOWN:,} more queries"
        print(more if options.json or options.out else f"{more}; --json=FILE or --out=FILE.npz keeps all")


def _filter(index: Index, options: Options) -> np.ndarray | list[str] | int | None:
    """What Index.search takes as its filter. Raises UserError."""
    labels = None
    if options.label:
        whole = options.label in index.class_names  # some names have commas in them
        parts = [options.label] if whole else [part.strip() for part in options.label.split(",")]
        labels = [label_of(index, part) for part in parts]
    if not options.ids:
        if labels is None:
            return None
        if len(labels) == 1 and not index.class_names:
            return labels[0]
        if not index.class_names:
            raise UserError(f"--label={printable(options.label)}: give one number; the classes have no names")
        return [index.class_names[label] for label in labels]
    unknown = [id for id in options.ids if id not in index]
    if unknown:
        raise UserError(f"--ids: {len(unknown)} of them are not in the index, such as {unknown[0]}")
    ids = np.unique(np.array(options.ids, np.int64))
    return ids if labels is None else ids[np.isin(index.records(ids).labels, labels)]


def _queries_of_index(index: Index, options: Options) -> list[_Query]:
    queries = []
    unknown = [id for id in options.like if id not in index]
    if unknown:
        raise UserError(f"--like: {len(unknown)} of these ids are not in the index, such as {unknown[0]}")
    if options.like:
        files = index.records(options.like).files
        for id, code, file in zip(options.like, index.get(options.like), files):
            queries.append(_Query(code, f"id {id}" + (f", {file}" if file else ""), file, id))
    encoder = None
    for data in filter(None, [*options.images, options.queries]):
        if data.endswith(".npz"):
            queries += _of_codes(index, data)
            continue
        images = collect(data, options)
        if encoder is None:
            encoder = model_of(index, options)
        codes = codes_of(encoder, images, batch_size=options.batch_size, num_workers=options.num_workers)
        names = [data] if images.files == [os.path.abspath(data)] else images.files
        queries += map(_Query, codes, names, images.files)
    return queries


def _of_codes(index: Index, path: str) -> list[_Query]:
    arrays = read_codes(path)
    if arrays["num_bits"] != index.num_bits:
        raise UserError(
            f"{printable(path)} has codes of {arrays['num_bits']} bits, {printable(str(index.path))} of "
            f"{index.num_bits}: they were made by different models, or with another --num_bits"
        )
    files = arrays.get("files")
    return [
        _Query(code, _name(arrays, i), "" if files is None else str(files[i]))
        for i, code in enumerate(arrays["codes"])
    ]


def _find(index: Index, queries: Sequence[_Query], options: Options, filter: Any):
    """(lims int64 [n + 1], distances, ids) of what was found. A query by id does not find itself."""
    codes = np.stack([query.code for query in queries])
    if options.radius >= 0:
        lims, distances, ids = index.range_search(codes, options.radius, filter=filter)
        found = [(distances[first:last], ids[first:last]) for first, last in zip(lims, lims[1:])]
    else:
        itself = any(query.id >= 0 for query in queries)  # then there must be one more
        found = list(zip(*index.search(codes, options.k + itself, filter=filter)))
    most = options.k if options.radius < 0 else None
    parts = []
    for query, (distances, ids) in zip(queries, found):
        others = np.flatnonzero((ids >= 0) & (ids != query.id))[:most]
        parts.append((distances[others], ids[others]))
    lims = np.cumsum([0, *(len(ids) for _, ids in parts)])
    return lims, *(np.concatenate(columns) for columns in zip(*parts))


def _write_found(options, lims, distances, ids):
    if options.radius >= 0:
        write_arrays(options.out, {"lims": lims, "distances": distances, "ids": ids})
        return
    n, counts = len(lims) - 1, np.diff(lims)
    table = {"distances": np.full((n, options.k), -1, np.int32), "ids": np.full((n, options.k), -1, np.int64)}
    places = np.arange(options.k) < counts[:, None]
    table["distances"][places], table["ids"][places] = distances, ids
    write_arrays(options.out, table)


def _neighbours(index: Index, distances: np.ndarray, ids: np.ndarray) -> list[dict[str, Any]]:
    """What the index knows of ids; label: a class's name, or its number where it has none, or None."""
    records, names = index.records(ids), index.class_names
    return [
        {
            "id": id,
            "distance": distance,
            "label": None if label < 0 else names[label] if names else label,
            "file": as_unicode(file),
        }
        for id, distance, label, file in zip(
            ids.tolist(), distances.tolist(), records.labels.tolist(), records.files
        )
    ]


def _described(index, options, queries, lims, distances, ids):
    found = _neighbours(index, distances, ids)
    return {
        "index": as_unicode(options.database),
        **({"radius": options.radius} if options.radius >= 0 else {"k": options.k}),
        "queries": [
            {"query": as_unicode(query.name), "neighbours": found[first:last]}
            for query, first, last in zip(queries, lims.tolist(), lims[1:].tolist())
        ],
    }


def _write_montage(index, options, queries, lims, distances, ids):
    """Writes a sheet with a row for each query."""
    most = min(options.k, MAX_COLUMNS - 1)
    rows, words = [], dict(zip(index.class_names, wordnet.shown(index.class_names)))
    for i, query in enumerate(queries[:MAX_ROWS]):
        part = slice(lims[i], min(lims[i + 1], lims[i] + most))
        rows.append([Tile(query.file, ("query", os.path.basename(query.name)))])
        for found, file in zip(
            _neighbours(index, distances[part], ids[part]), index.records(ids[part]).files
        ):
            label = "" if found["label"] is None else f" · {words.get(found['label'], found['label'])}"
            name = os.path.basename(found["file"]) or f"id {found['id']}"
            rows[-1].append(Tile(file, (f"{bits(found['distance'])}{label}", name)))
    how = f"within {bits(options.radius)}" if options.radius >= 0 else f"the {options.k} nearest"
    heading = f"{os.path.basename(os.path.abspath(options.database))}: {how} of {len(index):,} images"
    sheet = draw_sheet(rows, open_recorded, heading=heading, queries=True, what="queries", total=len(queries))
    write_sheet(options.montage, sheet)


if __name__ == "__main__":
    edge.run(main)
