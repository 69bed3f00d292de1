"""CIFAR-10's three retrieval protocols of the hashing literature: trains, encodes, and prints one table.

    python experiments/cifar10_protocols.py --data_dir=CIFAR --folder=runs/cifar10
    ... --data_dir=data --dataset=CIFAR10                           torchvision's copy, which it downloads
    ... --num_bits=32 --seed=1 --protocols=cifar10,cifar10-1        other lengths, seeds and protocols
    ... --held_out=0.1                                              to choose settings, without the queries

CIFAR holds train/ and test/ with a folder of images for each class. The protocols are those of
DeepHash-pytorch (github.com/swuxyj/DeepHash-pytorch, utils/tools.py), with its names:

    name        queries     train   database
    cifar10       1,000     5,000     54,000    what is neither a query nor a train image
    cifar10-1     1,000     5,000     59,000    what is not a query, so the train images too
    cifar10-2    10,000    50,000     50,000    the train images

In the first two, queries and train images are drawn from all 60,000 images, 100 and 500 of each class, by the
seed. These are other images than in other implementations, which draw them anew, without a stated seed. The
third is CIFAR-10's own division into train and test images; DeepHash-pytorch draws as many at random there
too.

The first two share one training (cifar10_500_per_class.yaml), the third has its own (cifar10.yaml). The
trainer validates on the queries after each epoch, but nothing is chosen by that: the codes are those of the
last epoch. The same command again continues: a training that is finished is not repeated.

Everything is written to FOLDER: images/ (CIFAR-10 as betons), splits/ (the rows of queries, train and
database among all images, train before test, and the former two as betons), runs/, of which each has a
codes.npz of all images in that order, and results/, a JSON file of all metrics for each row of the table. On
one CPU core that trains 1,000 images/s it takes about 20 minutes.
"""

import csv
import dataclasses
import json
import math
import shlex
from pathlib import Path

import numpy as np

from llc import config as edge
from llc import train
from llc.codes import pack_bits
from llc.data.manifest import load_manifest
from llc.data.shards import open_shards
from llc.data.subset import held_out, write_subset
from llc.data.writer import WriterConfig, write_beton
from llc.encode import Encoding, encode, load_encoder, write_arrays
from llc.errors import UserError
from llc.evaluation import retrieval
from llc.files import atomic_write
from llc.hamming import Decoder
from llc.options import option

HERE = Path(__file__).resolve().parent
PROTOCOLS = ("cifar10", "cifar10-1", "cifar10-2")
K = 1000  # of mAP@k


@dataclasses.dataclass(frozen=True)
class Options:
    """What is run."""

    data_dir: str = option(help="the images: train/ and test/ with a folder for each class, or see --dataset")
    folder: str = option(help="the folder for everything that is written")
    dataset: str = option(
        "auto", help="what data_dir is, as for write_ffcv.py; CIFAR10: torchvision's, downloaded if need be"
    )
    num_bits: int = option(16, minimum=1, help="length of a code in bits")
    seed: int = option(0, minimum=0, help="of the draw of queries and train images, and of the trainings")
    protocols: tuple[str, ...] = option(PROTOCOLS, choices=PROTOCOLS, help="those that are run")
    num_queries: int = option(100, minimum=1, help="queries of each class in the first two protocols")
    num_train: int = option(500, minimum=2, help="train images of each class in the first two protocols")
    held_out: float = option(
        0.0,
        minimum=0,
        maximum=0.9,
        help="take this fraction of the train images as queries, and train on the others: for choosing "
        "settings without a look at the queries; 0: the protocols",
    )
    num_workers: int = option(-1, minimum=-1, help="threads that decode images, not 0; -1: one per core")
    train: str = option(
        "", help="more flags for train_llc.py, as one text: '--dense.epochs=2 --dense.lr=0.1'"
    )


@dataclasses.dataclass(frozen=True)
class Split:
    """The rows of a protocol among all images: int64, ascending. `recipe` and `name` are its training's."""

    queries: np.ndarray
    train: np.ndarray
    database: np.ndarray
    recipe: str
    name: str


def split_of(protocol, labels, num_official, *, num_queries=100, num_train=500, seed=0, fraction=0.0):
    """The Split of a protocol.

    labels: int64 [n] of all images, of which the first num_official are CIFAR-10's own train images. In
    cifar10 and cifar10-1, each class is shuffled by (seed, its label); its first num_queries images are
    queries and the next num_train train images. fraction: that of the train images, drawn by the seed, which
    then are the queries and leave the train images and the database; no image that was a query is used.
    Raises UserError where a class has too few images.
    """
    if protocol == "cifar10-2":
        recipe = "cifar10"
        train, queries = np.arange(num_official), np.arange(num_official, len(labels))
        database = train
    else:
        recipe = "cifar10_500_per_class"
        queries, train, rest = _draw(labels, num_queries, num_train, seed)
        database = rest if protocol == "cifar10" else np.union1d(train, rest)
    name = recipe
    if fraction:
        name = f"{recipe}_held_out_{fraction:g}"
        queries = train[held_out(labels[train], fraction, seed)]
        train, database = np.setdiff1d(train, queries), np.setdiff1d(database, queries)
    return Split(queries, train, database, recipe, name)


def _draw(labels, num_queries, num_train, seed):
    parts = [], [], []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) <= num_queries + num_train:
            raise UserError(
                f"class {label} has {len(rows):,} images, but {num_queries:,} queries, {num_train:,} train "
                "images and at least one more are needed: lower --num_queries or --num_train"
            )
        order = np.random.default_rng([seed, int(label)]).permutation(rows)
        for part, chosen in zip(parts, np.split(order, [num_queries, num_queries + num_train])):
            part.append(chosen)
    return [np.sort(np.concatenate(part)) for part in parts]


def main(argv):
    options = edge.read_one(Options, argv, description=__doc__)
    folder = Path(options.folder)
    for name in ("images", "splits", "runs", "results"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    images = [_beton(options, folder, split) for split in ("train", "val")]
    shards = open_shards(",".join(map(str, images)))
    rows = []
    for protocol in options.protocols:
        split = split_of(
            protocol,
            shards.labels,
            int(shards.starts[1]),
            num_queries=options.num_queries,
            num_train=options.num_train,
            seed=options.seed,
            fraction=options.held_out,
        )
        _keep_split(folder / "splits" / f"{protocol}_{split.name}_seed{options.seed}.npz", split)
        run = _train(options, folder, split, shards)
        encoder = load_encoder(str(run), Encoding())
        codes = _codes(options, run / "codes.npz", encoder, shards)
        row = {"protocol": protocol, "bits": options.num_bits, "seed": options.seed, "run": run.name}
        row |= measure(codes, shards.labels, split, encoder) | _dense_accuracy(run)
        text = json.dumps(row, indent=1) + "\n"
        result = folder / "results" / f"{protocol}{run.name.removeprefix(split.recipe)}.json"
        atomic_write(result, lambda file, text=text: file.write(text.encode()))
        rows.append(row)
    print(f"\n{table(rows)}\n\n{folder / 'results'}: a file for each row")


def _beton(options, folder, split):
    """The beton of CIFAR-10's own train or test images, written unless it exists. Raises UserError."""
    path = folder / "images" / f"{'test' if split == 'val' else split}.beton"
    config = WriterConfig(
        write_path=str(path),
        data_dir=options.data_dir,
        dataset=options.dataset,
        split=split,
        write_mode="raw",
        max_resolution=32,
        num_workers=options.num_workers,
    )
    if not path.exists():
        write_beton(config)
    made = load_manifest(f"{path}.json").writer.get("data_dir")
    if made != options.data_dir:
        raise UserError(f"{path} was made from --data_dir={made}; for other images give another --folder")
    return path


def _keep_split(path, split):
    """Writes a Split to `path`. Raises UserError if another one is there, whose betons would be used."""
    arrays = {part: getattr(split, part) for part in ("queries", "train", "database")}
    if not path.exists():
        write_arrays(path, arrays)
    with np.load(path) as kept:
        if not all(np.array_equal(kept[part], rows) for part, rows in arrays.items()):
            raise UserError(
                f"{path} holds another split: it was made with other --num_queries or --num_train; give "
                "another --folder"
            )


def _train(options, folder, split, shards):
    """The run folder of a training, which is trained unless it is finished."""
    name = f"{split.name}_{options.num_bits}bit_seed{options.seed}"
    betons = {}
    for part in ("train", "queries"):
        betons[part] = folder / "splits" / f"{split.name}_seed{options.seed}_{part}.beton"
        if not betons[part].exists():
            write_subset(shards, getattr(split, part), betons[part])
    train.main(
        [
            f"--config={HERE / split.recipe}.yaml",
            f"--data.train_dataset={betons['train']}",
            f"--data.val_dataset={betons['queries']}",
            f"--data.num_workers={options.num_workers}",
            f"--codes.num_bits={options.num_bits}",
            f"--training.seed={options.seed}",
            f"--logging.folder={folder / 'runs'}",
            f"--logging.name={name}",
            "--resume=auto",
            *shlex.split(options.train),
        ]
    )
    return folder / "runs" / name


def _codes(options, path, encoder, shards):
    """The codes of all images, uint8 [n, code_size], from `path` if it exists."""
    if not path.exists():
        betons = ",".join(map(str, shards.paths))
        write_arrays(path, encode(encoder, betons, Encoding(num_workers=options.num_workers, batch_size=500)))
    return np.load(path)["codes"]


def measure(codes, labels, split, encoder):
    """The figures of a protocol, by name.

    `top1_mhd` is the accuracy of MHD on the queries; the others are llc.evaluation.retrieval's.
    """
    queries, database = codes[split.queries], codes[split.database]
    classes = Decoder(pack_bits(encoder.codebook).numpy()).mhd(queries)[:, 0]
    return {
        "queries": len(split.queries),
        "train": len(split.train),
        "database": len(split.database),
        "top1_mhd": float((classes == labels[split.queries]).mean()),
        **retrieval.evaluate(
            queries, labels[split.queries], database, labels[split.database], k=K, shuffle=0
        ),
    }


def _dense_accuracy(run):
    """{"top1_dense": ...}, the accuracy of the dense classifier on the queries at its last epoch."""
    with open(run / "results.csv", newline="") as file:
        final = {row["metric"]: float(row["final"]) for row in csv.DictReader(file)}
    return {"top1_dense": final["dense/top1_class_flip"]}


def table(rows):
    """The rows of `main` as a Markdown table; every figure but the sizes in %."""
    # of the whole ranking, by our definition and by those of other programs, as the field reports CIFAR-10
    measured = [name for name in rows[0] if name.startswith("map") and "@" not in name] + [f"map@{K}"]
    columns = {name: name for name in ("protocol", "queries", "train", "database", "bits")}
    columns |= {name: name.replace("map", "mAP", 1) for name in measured}
    columns |= {"precision@1": "P@1", "top1_mhd": "MHD", "top1_dense": "dense"}

    def cell(row, name):
        value = row.get(name, math.nan)
        if isinstance(value, str):
            return value
        return f"{value:,}" if isinstance(value, int) else f"{100 * value:.2f}"

    lines = [columns.values(), ["---"] * len(columns)]
    lines += [[cell(row, name) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    edge.run(main)
