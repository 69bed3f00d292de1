"""Keeps codes of images in a folder, an index, and finds them again by Hamming distance.

python -m llc.index COMMAND INDEX ... [--key=value ...]      (COMMAND --help shows its arguments)
"""

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llc import config as edge
from llc import search
from llc.data.sources import as_unicode, printable
from llc.encode import Encoding, load_encoder
from llc.errors import UserError
from llc.evaluation import wordnet
from llc.index import exports, imports
from llc.index.commands import bits, check_outputs, label_of, model_of, write_json
from llc.index.duplicates import duplicates
from llc.index.images import Added, add_codes, add_images, collect, open_recorded
from llc.index.index import MAX_BITS, Index
from llc.index.verify import verify as problems_of
from llc.montage import MAX_COLUMNS, MAX_ROWS, Tile, draw_sheet, write_sheet
from llc.options import did_you_mean, option

_MAX_SHOWN = 20  # names, groups and members on the screen


def main(argv: list[str]) -> None:
    name = argv[0] if argv else ""
    if name == "search":
        search.main(argv[1:])
        return
    if name in COMMANDS:
        kind, command = COMMANDS[name]
        command(edge.read_one(kind, argv[1:], description=_description(command)))
        return
    lines = {**{key: command.__doc__ for key, (_, command) in COMMANDS.items()}, "search": _SEARCH}
    listing = "\n".join(f"    {key:11s} {(text or '').splitlines()[0]}" for key, text in lines.items())
    if name in ("--help", "-h"):
        print(f"{__doc__}\n{listing}")
        return
    what = f"{printable(name)} is not a command{did_you_mean(name, lines)}" if name else "COMMAND is missing"
    raise UserError(f"{what}\nCOMMAND is one of\n{listing}")


def _description(command: Callable[[Any], None]) -> str:
    """A command's docstring, as --help shows it."""
    return "\n".join(line.removeprefix("    ") for line in (command.__doc__ or "").splitlines())


# ---- making and filling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filling(Encoding):
    """Which images are added, and by which model."""

    index: str = option(positional=True, help="the folder of the index")
    model: str = option(
        "", help="the model that makes the codes: what llc.load takes; empty: the index's own"
    )
    skip_broken: bool = option(False, help="leave out images that cannot be read, and list them")
    remove_missing: bool = option(
        False, help="remove what the index has of DATA, or from below that folder, and whose files are gone"
    )
    files_below: str = option(
        "", help="of codes.npz: the folder that the names of its files are relative to, to find the images"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Create(Filling):
    """What is made."""

    data: tuple[str, ...] = option((), positional=True, help="what to add at once, as for add; or nothing")
    num_bits: int = option(
        0, minimum=0, maximum=MAX_BITS, help="bits of a code; 0: all of MODEL's, else its first ones"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Add(Filling):
    """What is added."""

    data: tuple[str, ...] = option(
        positional=True, help="folders of images, images, betons, tars, tables, ..., or files codes.npz"
    )


def create(options: Create) -> None:
    """Makes a new index, and adds images if any are named.

        python -m llc.index create PHOTOS.index photos --model=MODEL
        python -m llc.index create CODES.index --num_bits=64                         (codes of other programs)

    The index keeps a copy of MODEL, a run folder or another model that llc.load takes, so later commands need
    no --model. Nothing that exists is overwritten.
    """
    path = options.index
    if os.path.lexists(path):
        raise UserError(
            f"{printable(path)}: it exists already; python -m llc.index add adds to an index, and "
            "a new one needs a name of its own"
        )
    if not options.model and not options.num_bits:
        raise UserError(
            "say what codes the index will hold: --model=MODEL, or for codes of other programs --num_bits=64"
        )
    _check_data(options)
    if options.model:
        encoder = load_encoder(options.model, options)
        index = Index(encoder.num_bits)
        index.set_model(encoder)
    else:
        index = Index(options.num_bits)
    index.save(path)
    kept = f" of the model {printable(options.model)}" if options.model else ""
    print(f"{printable(path)}: a new index for codes of {index.num_bits} bits{kept}")
    if options.data:
        _fill(dataclasses.replace(options, num_bits=0, model="", checkpoint=""))


def add(options: Add) -> None:
    """Adds images that are not in the index yet, or the codes of a file.

        python -m llc.index add PHOTOS.index photos
        python -m llc.index add PHOTOS.index val.beton cat.jpg --skip_broken
        python -m llc.index add PHOTOS.index photos --remove_missing
        python -m llc.index add CODES.index codes.npz

    DATA is what python -m llc.encode takes. Files that are there already, with the same size and time of
    modification, are skipped; those that have changed are encoded anew and keep their ids. What is done is
    saved every few seconds, so a second run goes on where the first was stopped.
    """
    if not options.data:
        raise UserError("DATA is missing: folders of images, images, betons, ..., or files codes.npz")
    _check_data(options)
    _fill(options)


def _check_data(options):
    """Raises UserError for flags that fit none of the data. Before long work."""
    codes = [name for name in options.data if name.endswith(".npz")]
    if options.files_below and not codes:
        raise UserError(f"--files_below={printable(options.files_below)}: it is for files codes.npz alone")
    if options.files_below and not os.path.isdir(options.files_below):
        raise UserError(f"--files_below={printable(options.files_below)}: there is no such folder")
    for name in codes:
        if not os.path.isfile(name):
            raise UserError(f"{printable(name)}: there is no such file")
    for name in options.data:
        if not name.endswith(".npz") and not os.path.lexists(name) and not any(c in name for c in "*?[{,"):
            raise UserError(
                f"{printable(name)} does not exist; if images of it in the index were moved or deleted, "
                f"python -m llc.index remove {printable(options.index)} {printable(name)} takes them out"
            )


def _fill(options):
    with Index.open(options.index, write=True) as index:
        encoder = None
        for name in options.data:
            if name.endswith(".npz"):
                _report(name, add_codes(index, name, options.files_below))
                continue
            images = collect(name, options)
            for note in images.source.notes:
                print(printable(note))
            if encoder is None:
                encoder = model_of(index, options)
            added = add_images(
                index,
                encoder,
                images,
                batch_size=options.batch_size,
                num_workers=options.num_workers,
                skip_broken=options.skip_broken,
                remove_missing=options.remove_missing,
            )
            _report(name, added)
        print(f"{printable(options.index)}: {len(index):,} codes")


def _report(name: str, added: Added) -> None:
    for broken, why in added.broken[:_MAX_SHOWN]:
        print(f"left out: {printable(broken)}: {printable(why)}")
    if len(added.broken) > _MAX_SHOWN:
        print(f"left out: and {len(added.broken) - _MAX_SHOWN:,} more")
    print(f"{printable(name)}: {added}")
    if added.missing and not added.removed:
        print(
            f"  gone, but still in the index: {printable(added.missing[0])}"
            + (f" and {len(added.missing) - 1:,} more" if len(added.missing) > 1 else "")
            + "; --remove_missing removes them"
        )


# ---- removing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remove:
    """What is removed; a row that fits one of these."""

    index: str = option(positional=True, help="the folder of the index")
    file: tuple[str, ...] = option(
        (), positional=True, help="files as the index records them, or folders and files that hold images"
    )
    ids: tuple[int, ...] = option((), minimum=0, help="ids")
    label: str = option("", help="the name of a class, or its number where classes have no names")


def remove(options: Remove) -> None:
    """Removes rows by the names of files, by ids, or by class. The files themselves stay.

        python -m llc.index remove PHOTOS.index photos/2019 cat.jpg
        python -m llc.index remove PHOTOS.index --ids=17,18
        python -m llc.index remove PHOTOS.index --label=cat

    A folder, or a file that holds images, such as a beton, stands for all images below or in it.
    """
    if not options.file and not options.ids and not options.label:
        raise UserError("name what to remove: files, --ids=17,18 or --label=NAME")
    with Index.open(options.index, write=True) as index:
        ids = list(options.ids)
        unknown = [id for id in options.ids if id not in index]
        if unknown:
            raise UserError(
                f"--ids: {len(unknown)} of them are not in the index, such as {unknown[0]}; nothing was "
                "removed"
            )
        ids += _ids_of_files(index, options.file)
        if options.label:
            label = label_of(index, options.label)
            ids += index.select(index.class_names[label] if index.class_names else label).tolist()
        before = len(index)
        removed = index.remove(np.array(ids, np.int64))
        index.save()
        print(f"{printable(options.index)}: {removed:,} of {before:,} codes removed")


def _ids_of_files(index: Index, names: Sequence[str]) -> list[int]:
    """The ids of files, of images below folders, and of images inside files. Raises UserError for others."""
    if not names:
        return []
    wanted = {form: name for name in names for form in (name, os.path.abspath(name))}
    inside = {os.path.join(form, ""): name for form, name in wanted.items()}
    inside |= {f"{form}#": name for form, name in wanted.items()}
    starts = tuple(inside)
    ids, found = [], set()
    for some_ids, _, records in index.batches():
        for id, file in zip(some_ids.tolist(), records.files):
            if file in wanted:
                ids.append(id)
                found.add(wanted[file])
            elif file and file.startswith(starts):
                ids.append(id)
                found |= {name for start, name in inside.items() if file.startswith(start)}
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(
            f"{printable(missing[0])}: the index has no such file, nor images below or in it"
            + (f" (nor of {len(missing) - 1} other names)" if len(missing) > 1 else "")
            + "; nothing was removed"
        )
    return ids


# ---- looking


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stats:
    """What is shown."""

    index: str = option(positional=True, help="the folder of the index")
    json: str = option("", help="a file to write the figures to; -: print them in place of the table")


def stats(options: Stats) -> None:
    """Shows what an index consists of: codes, classes, segments, and how each is searched.

        python -m llc.index stats PHOTOS.index [--json=FILE]

    The figures are those of llc.Index.stats; with --json=- they are printed as JSON.
    """
    index = Index.open(options.index)
    check_outputs(index, {"--json": options.json})
    figures = index.stats()
    figures["model"] = None if index.model is None else str(index.model)
    if options.json:
        write_json(options.json, figures)
    if options.json == "-":
        return
    rows = [
        ("codes", f"{figures['num_codes']:,}"),
        ("bits of a code", str(figures["num_bits"])),
        ("with a label", f"{figures['num_labelled']:,}"),
        ("classes", f"{figures['num_classes']:,}"),
        ("removed, not yet cleared", f"{figures['num_removed']:,}"),
        ("next free id", str(figures["next_id"])),
        ("megabytes", f"{figures['bytes'] / 1e6:,.1f}"),
        ("model", printable(index.model.name) if index.model else "none is kept"),
        ("segments", f"{len(figures['segments']):,}"),
    ]
    print(printable(options.index))
    for name, value in rows:
        print(f"  {name:25s} {value}")
    print(f"\n  {'segment':24s} {'codes':>13s} {'removed':>10s} {'MB':>9s}  search")
    for segment in figures["segments"][:_MAX_SHOWN]:
        widths = segment["tables"]
        how = f"{len(widths)} tables of {min(widths)} to {max(widths)} bits" if widths else "scan"
        print(
            f"  {segment['file'] or 'not saved':24s} {segment['num_codes']:13,} {segment['num_removed']:10,} "
            f"{segment['bytes'] / 1e6:9,.1f}  {how}"
        )
    if len(figures["segments"]) > _MAX_SHOWN:
        print(f"  and {len(figures['segments']) - _MAX_SHOWN:,} more segments; optimize makes one of all")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verify:
    """What is checked."""

    index: str = option(positional=True, help="the folder of the index")


def verify(options: Verify) -> None:
    """Reads a whole index, compares all checksums, and names what is broken; then the exit status is 2.

        python -m llc.index verify PHOTOS.index

    It takes as long as it takes to read all files.
    """
    num_files, broken = 0, 0
    for file, problems in problems_of(Path(options.index)):
        num_files += 1
        broken += bool(problems)
        for problem in problems or ["ok"]:
            print(f"{printable(file)}: {printable(problem)}", flush=True)
    what = f"{broken} of {num_files} files are broken" if broken else f"{num_files} files, nothing is broken"
    print(f"{printable(options.index)}: {what}")
    if broken:
        print(
            "restore the broken files from a copy of the index; or export what can still be read, or add the "
            "images to a new index"
        )
        sys.exit(2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Which groups are listed."""

    index: str = option(positional=True, help="the folder of the index")
    radius: int = option(0, minimum=0, help="bits by which near-duplicates may differ; 0: equal codes")
    json: str = option("", help="a file to write all groups to; -: print them in place of the list")
    montage: str = option("", help="a contact sheet to write, .png, .jpg or .webp; a row is a group")


def list_duplicates(options: Duplicates) -> None:
    """Lists groups of images whose codes differ by a few bits at most.

        python -m llc.index duplicates PHOTOS.index --radius=2 [--json=FILE] [--montage=out.png]

    In a group, each image is within the radius of another one. Distances are to the group's first image. The
    largest groups come first.
    """
    index = Index.open(options.index)
    check_outputs(index, {"--json": options.json, "--montage": options.montage})
    groups = duplicates(index, options.radius)
    if options.json:
        write_json(options.json, [_described(index, ids) for ids in groups])
    if options.montage:
        heading = (
            f"{Path(options.index).name}: {len(groups):,} groups of codes that differ by at most "
            f"{bits(options.radius)}"
        )
        rows = [_row_of(index, ids[:MAX_COLUMNS], len(ids)) for ids in groups[:MAX_ROWS]]
        sheet = draw_sheet(rows, open_recorded, heading=heading, what="groups", total=len(groups))
        write_sheet(options.montage, sheet)
    if options.json == "-":
        return
    num_images = sum(map(len, groups))
    print(
        f"{printable(options.index)}: {len(groups):,} group{'s' * (len(groups) != 1)}, "
        f"{num_images:,} of {len(index):,} images in them"
    )
    for number, ids in enumerate(groups[:_MAX_SHOWN], 1):
        print(f"group {number}, {len(ids):,} images:")
        group = _described(index, ids[:_MAX_SHOWN])
        for id, distance, file in zip(group["ids"], group["distances"], group["files"]):
            print(f"  {bits(distance):>9s}  id {id}  {printable(file)}")
        if len(ids) > _MAX_SHOWN:
            print(f"  and {len(ids) - _MAX_SHOWN:,} more")
    if len(groups) > _MAX_SHOWN:
        print(f"and {len(groups) - _MAX_SHOWN:,} more; --json=FILE lists all groups")


def _described(index: Index, ids: np.ndarray) -> dict[str, list[Any]]:
    """A group for people: ids, their files, and their distances from the first."""
    codes = index.get(ids)
    distances = np.unpackbits(codes ^ codes[:1], axis=1).sum(axis=1)
    files = [as_unicode(name) for name in index.records(ids).files]
    return {"ids": ids.tolist(), "distances": distances.tolist(), "files": files}


def _row_of(index, ids, num_images):
    """The tiles of a group; the first says how many images there are."""
    group, labels = _described(index, ids), index.records(ids).labels.tolist()
    words = wordnet.shown(index.class_names)
    heads = [f"{num_images:,} images", *map(bits, group["distances"][1:])]
    classes = [(words[label],) if words and label >= 0 else () for label in labels]
    return [
        Tile(file, (f"{head} · id {id}", *its_class, os.path.basename(file)))
        for head, id, file, its_class in zip(heads, group["ids"], group["files"], classes)
    ]


# ---- other forms


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """What is written."""

    index: str = option(positional=True, help="the folder of the index")
    to: str = option(choices=exports.FORMS, help="the form")
    out: str = option(help="a file to write; lancedb: a folder, or an address such as s3://bucket/folder")
    kind: str = option("", help="faiss: flat, hnsw or ivf; lancedb: flat or ivf; empty: flat")
    lists: int = option(0, minimum=0, help="of kind ivf: number of lists; 0: chosen by the number of codes")
    table: str = option("", help="lancedb: the table's name; empty: codes")


def export(options: Export) -> None:
    """Writes the codes with their ids in the form of another program. The index stays as it is.

        python -m llc.index export PHOTOS.index --to=faiss --out=photos.faiss
        python -m llc.index export PHOTOS.index --to=lancedb --kind=ivf --out=photos.lancedb
        python -m llc.index export PHOTOS.index --to=parquet --out=photos.parquet

    What exists is not overwritten.
    """
    index = Index.open(options.index)
    check_outputs(index, {"--out": "" if "://" in options.out else options.out}, may_be_folder=True)
    said = exports.export(
        index, options.to, options.out, kind=options.kind, lists=options.lists, table=options.table
    )
    print(f"{printable(options.out)}: {said}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Import:
    """What is read, and how."""

    index: str = option(positional=True, help="the folder of the index, or of the one to make")
    source: str = option(positional=True, help="a file of codes; of lancedb a folder, or an address")
    form: str = option("auto", choices=imports.FORMS, help="of SOURCE; auto: by its contents")
    id_column: str = option("", help="of parquet and lancedb: the column of ids; empty: id")
    code_column: str = option("", help="the column of codes; empty: code")
    label_column: str = option("", help="the column of labels or class names; empty: label, class_name")
    file_column: str = option("", help="the column of file names; empty: file")
    num_bits: int = option(0, minimum=0, maximum=MAX_BITS, help="bits of a code; 0: as SOURCE says")
    table: str = option("", help="lancedb: the table's name; empty: the only table")
    new_ids: bool = option(False, help="give new ids in place of those that SOURCE has")


def import_codes(options: Import) -> None:
    """Adds codes that other programs hold; makes the index if there is none.

        python -m llc.index import CODES.index codes.parquet
        python -m llc.index import CODES.index photos.lancedb --table=photos --new_ids

    SOURCE is what python -m llc.index export has written, or a table or FAISS index of another program.
    """
    incoming = imports.open_codes(
        options.source,
        options.form,
        id_column=options.id_column,
        code_column=options.code_column,
        label_column=options.label_column,
        file_column=options.file_column,
        num_bits=options.num_bits,
        table=options.table,
    )
    if os.path.lexists(options.index):
        with Index.open(options.index, write=True) as index:
            count = imports.add_to(index, incoming, new_ids=options.new_ids)
            index.save()
    else:
        index = Index(incoming.num_bits or 8 * incoming.code_size)
        if incoming.num_bits is None:
            print(f"taken for codes of {index.num_bits} bits; if they have fewer, give --num_bits")
        count = imports.add_to(index, incoming, new_ids=options.new_ids)
        index.save(options.index)
    print(f"{printable(options.index)}: {count:,} codes added, {len(index):,} in all")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimize:
    """What is rewritten."""

    index: str = option(positional=True, help="the folder of the index")


def optimize(options: Optimize) -> None:
    """Makes one segment of all, and clears the place of removed codes. Ids and results stay the same.

        python -m llc.index optimize PHOTOS.index

    The disk needs room for a second copy of the codes while it runs.
    """
    with Index.open(options.index, write=True) as index:
        before = index.stats()
        index.optimize()
        index.save()
        after = index.stats()
    was, removed = len(before["segments"]), before["num_removed"]
    print(
        f"{printable(options.index)}: {was:,} segment{'s' * (was != 1)} before, "
        f"now {len(after['segments']):,}; {removed:,} removed code{'s' * (removed != 1)} cleared"
    )


COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "create": (Create, create),
    "add": (Add, add),
    "remove": (Remove, remove),
    "stats": (Stats, stats),
    "verify": (Verify, verify),
    "duplicates": (Duplicates, list_duplicates),
    "export": (Export, export),
    "import": (Import, import_codes),
    "optimize": (Optimize, optimize),
}
_SEARCH = "Finds the nearest codes of images: python -m llc.search."

if __name__ == "__main__":
    edge.run(main)
