"""Reports made of random numbers, of any size: what pages and figures are tested on without a training.

Codes, health, tree and confusions of a report are those of its own class codes, so that figures agree.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from llc import recipe
from llc.codes import unpack_bits
from llc.evaluation.taxonomy import class_distances, tree
from llc.options import build
from llc.report.contents import (
    Bit,
    Confusion,
    Curve,
    Detection,
    Difference,
    Health,
    Measured,
    Neighbour,
    Query,
    Reliability,
    Report,
    Run,
)

GIVEN = {
    "codebook": {"epochs": 4, "lr": 0.1},
    "instance": {"epochs": 2, "lr": 0.1},
    "data": {"train_dataset": "train.beton", "val_dataset": "val.beton"},
}


def make_config(num_bits=10, **sections):
    values = {**GIVEN, "codes": {"num_bits": num_bits}, **sections}
    return recipe.Config.of(
        {name: build(kind, values.get(name, {}), f"{name}.") for name, kind in recipe.sections().items()}
    )


def make_report(name="a", num_classes=6, num_bits=10, *, seed=0, class_names=None, num_images=66, **others):
    """A report in which nothing is missing. others: fields of Report in place of those made here."""
    rng = np.random.default_rng(seed)
    if class_names is None:
        class_names = [f"class {label}" for label in range(num_classes)]
    run = make_run(name, class_names, num_bits, rng)
    everything = {
        "measured": make_measured(run, num_images, rng),
        "detections": [make_detection("digits", "density", rng), make_detection("digits", "mhd", rng)],
        "curves": make_curves(),
    }
    return Report(run, **{**everything, **others})


def make_run(name, class_names, num_bits, rng):
    num_classes = len(class_names)
    signs = rng.random((num_classes, num_bits)) < 0.5
    signs[1] = signs[0]  # so that there is a collision
    class_codes = np.packbits(signs, axis=1)
    distances = class_distances(class_codes)
    pairs = distances[np.triu_indices(num_classes, 1)]
    groups = {}
    for label, code in enumerate(class_codes):
        groups.setdefault(code.tobytes(), []).append(label)
    health = Health(
        np.bincount(pairs, minlength=num_bits + 1),
        [group for group in groups.values() if len(group) > 1],
        signs.mean(0),
        (distances + np.eye(num_classes, dtype=distances.dtype) * (num_bits + 1)).min(1),
    )
    return Run(
        path=Path("runs", name),
        config=make_config(num_bits),
        class_names=class_names,
        class_codes=class_codes,
        num_bits=num_bits,
        epochs=make_epochs(rng),
        results=make_results(rng),
        stages=("codebook", "instance"),
        base="rn50_configs/llc_20bit.yaml",
        differences=[Difference("codebook.epochs", "4", "40"), Difference("codes.num_bits", "10", "20")],
        health=health,
        tree=tree(class_codes),
        origin={"llc": "0.1.0", "torch": "2.14.1", "train images": "train.beton, 240 images"},
    )


def make_epochs(rng):
    lines, total = [], 0
    for stage, count in (("codebook", 4), ("instance", 2)):
        for epoch in range(1, count + 1):
            total += 1
            line = {
                "stage": stage,
                "epoch": epoch,
                "global_epoch": total,
                "loss": 3 / total,
                "lr": 0.1 / total,
                "resolution": 32 + 4 * total,
                "images_per_second": 1000 + 50 * float(rng.random()),
                "train_seconds": 20.0,
                "val_seconds": 1.0,
                "compiled": False,
            }
            for decoder in ("class", "mhd", "ed"):
                line[f"top1_{decoder}_flip"] = 0.1 * total + 0.02 * float(rng.random())
            lines.append(line)
    return lines


def make_results(rng):
    results = {}
    for stage in ("codebook", "instance"):
        for decoder in ("class", "mhd", "ed"):
            value = 0.4 + 0.4 * float(rng.random())
            results[f"{stage}/top1_{decoder}_flip"] = (value, value - 0.01)
    results["instance/top1_posterior_flip"] = (0.7 + 0.1 * float(rng.random()), float("nan"))
    results["instance/ece_posterior_flip"] = (0.05, float("nan"))
    results["instance/tied_mhd_flip"] = (0.12, 0.13)
    results["instance/none_ed_flip"] = (0.2, 0.25)
    return results


def make_measured(run, num_images, rng):
    num_classes = len(run.class_names)
    bits = unpack_bits(run.class_codes, run.num_bits)
    shown = list(range(min(num_images, 40)))

    def some(count):
        return [int(i) for i in rng.choice(shown, min(count, len(shown)), replace=False)]

    queries = []
    for wrong in (False, False, True):
        label = int(rng.integers(num_classes))
        decoded = (label + 1) % num_classes if wrong else label
        first, *others = some(6)
        near = [Neighbour(i, (label + i % 2) % num_classes, distance) for distance, i in enumerate(others)]
        queries.append(Query(first, label, decoded, near))
    distances = class_distances(run.class_codes)
    confusions = [
        Confusion(a, b, 5, 11, int(distances[a, b])) for a, b in ((0, 1), (2, 3), (num_classes - 1, 0))
    ]
    pairs = rng.random((run.num_bits + 1, 2))
    edges, counts = np.linspace(0, 1, 16), np.full(15, 4)
    counts[0] = 0
    middles = (edges[1:] + edges[:-1]) / 2
    empty = counts == 0
    reliability = Reliability(
        edges, counts, np.where(empty, np.nan, middles), np.where(empty, np.nan, middles**2), 0.08
    )
    return Measured(
        title="val.beton",
        stage="instance",
        decoder="posterior",
        num_images=num_images,
        accuracy={"top1_mhd_flip": 0.6, "top1_posterior_flip": 0.7},
        num_codes=20,
        confusions=confusions,
        reliability=reliability,
        queries=queries,
        bits=[
            Bit(np.flatnonzero(bits[:, bit]).tolist(), some(8), some(8), float(rng.random()))
            for bit in range(run.num_bits)
        ],
        pairs=pairs / pairs.sum(0),
        images={i: (picture(rng), "image/jpeg") for i in shown},
    )


def make_detection(dataset, score, rng):
    return Detection(dataset, score, rng.normal(1, 1, 80), rng.normal(-1, 1, 60), 0.92)


def make_curves():
    k = np.arange(1, 21)
    return [Curve("precision@k", k, 1 / k), Curve("recall@k", k, k / 20)]


def picture(rng, side=64):
    """A JPEG of random blocks: the bytes of a file."""
    pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST).save(data, "JPEG", quality=80)
    return data.getvalue()
