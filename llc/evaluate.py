"""Evaluates a trained model from its packed codes (also under torchrun).

    python -m llc.evaluate RUN [--data.val_dataset=val.beton] [--predictions=FILE.npz]
    python -m llc.evaluate FILE --data.val_dataset=val.beton                                    (an encoder saved by llc)
    python -m llc.evaluate --original=model_best.pth [--codebook=codebook.npy] --data.val_dataset=val.beton

RUN is a run folder; each of its stages is evaluated, with its validation settings. A file is evaluated with its own preprocessing; that of
the original (github.com/RAIVNLab/LLC) is a shorter side of 256 pixels, then a centre crop of 224. --validation.KEY=VALUE changes either.
--data.val_dataset is a beton or a folder with one folder of images a class.
"""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from llc import config as edge
from llc.codebook import health
from llc.config import option
from llc.data.batches import open_images
from llc.data.preprocessing import RESIZES, Preprocessing
from llc.data.sources import printable
from llc.distributed import Processes
from llc.encoder import load
from llc.errors import UserError
from llc.evaluation.classification import evaluate
from llc.evaluation.predict import predict
from llc.network import IMAGENET_MEAN, IMAGENET_STD
from llc.precision import autocast_for
from llc.training import config as training_config
from llc.training.run_folder import RunFolder

# % top-1 of the published ResNet50 with 20 bits on ImageNet-1K: LLC, Kusupati et al., NeurIPS 2021, arXiv 2106.01487
PUBLISHED = {"class": 75.5, "mhd": 74.5, "ed": 68.9}
PREDICTIONS = {"predictions": "write codes, labels and classes of every image to this .npz"}


@dataclasses.dataclass(frozen=True)
class Data:
    """What a file is evaluated on."""

    val_dataset: str = option(help="a beton, or a folder with one folder of images a class")
    num_workers: int = option(-1, minimum=-1, help="threads of each process; -1: one a core")


@dataclasses.dataclass(frozen=True)
class Validation:
    """How a file is evaluated: with its own preprocessing, but for what is given here."""

    batch_size: int = option(256, minimum=1, help="images a step, of each process")
    resolution: int = option(0, minimum=0, help="pixels of the centre crop; 0: the model's own")
    crop_ratio: float = option(
        0.0, minimum=0, maximum=1, help="side of the crop, as a share of the shorter side; 0: the model's own"
    )
    resize: str = option(
        "",
        choices=("", *RESIZES),
        help="area: crop, then resize as the validation loader does, the fastest on a beton; "
        "bilinear: resize, then crop, as torchvision does; empty: the model's own",
    )


@dataclasses.dataclass(frozen=True)
class Dist:
    """Processes."""

    backend: str = option(
        "auto",
        choices=("auto", "nccl", "gloo"),
        help="auto: NCCL on GPUs; gloo lets processes share a GPU, slowly",
    )
    timeout_minutes: float = option(
        10.0, minimum=0.1, help="a process that waits longer for the others gives up"
    )


def main(argv):
    original = any(word.split("=")[0] == "--original" for word in argv)
    if "--help" in argv or "-h" in argv or not argv:
        print(__doc__)
        if argv:
            return
    if not original and (not argv or argv[0].startswith("--")):
        raise UserError("the run folder, or the file, comes first, then --key=value; or --original=FILE")
    if original or not Path(argv[0]).is_dir():
        _evaluate_file(argv, original)
    else:
        _evaluate_run(argv)


def _evaluate_run(argv):
    run = RunFolder.open(argv[0])
    config, options = training_config.read(
        ["--config", str(run.path / "config.yaml"), *argv[1:]], description=__doc__, options=PREDICTIONS
    )
    stages = [name for name in training_config.STAGES if run.checkpoint(name).exists()]
    if not stages:
        raise UserError(
            f"{run.path}: no stage of this run is finished (checkpoints/codebook.pth, instance.pth or joint.pth)"
        )
    encoders = {name: load(run.path, checkpoint=name) for name in stages}
    preprocessing = Preprocessing(
        config.validation.resolution, config.validation.crop_ratio, "area", IMAGENET_MEAN, IMAGENET_STD
    )
    for encoder in encoders.values():
        encoder.flip, encoder.precision = config.validation.lr_tta, config.training.precision
    _evaluate(encoders, str(run.path), preprocessing, config, options["predictions"])


def _evaluate_file(argv, original):
    options = PREDICTIONS | {
        "original": "a checkpoint of the original code",
        "codebook": "its codebook: .npy of real values, or a run folder",
    }
    arguments = edge.read(
        {"data": Data, "validation": Validation, "dist": Dist},
        argv,
        description=__doc__,
        options=options,
        positionals=() if original else ("file",),
    )
    path = arguments.options["original"] if original else arguments.positionals[0]
    encoder = load(path, arguments.options["codebook"])
    if not len(encoder.codebook):
        raise UserError(
            f"{path} holds no codebook (a model of instance codes has none): give one with --codebook=FILE.npy"
        )
    config = SimpleNamespace(**arguments.sections)
    given = {name: getattr(config.validation, name) for name in ("resolution", "crop_ratio", "resize")}
    preprocessing = dataclasses.replace(
        encoder.preprocessing, **{name: value for name, value in given.items() if value}
    )
    _evaluate(
        {encoder.stage: encoder},
        path,
        preprocessing,
        config,
        arguments.options["predictions"],
        PUBLISHED if original else None,
    )


def _evaluate(encoders, title, preprocessing, config, predictions_file, published=None):
    """encoders: {stage: Encoder}, of one codebook and one flip; config: with data, validation and dist."""
    first, last = list(encoders.values())[0], list(encoders.values())[-1]
    num_classes = len(last.codebook)
    processes = Processes.start(config.dist.timeout_minutes, backend=config.dist.backend)
    try:
        images = open_images(
            config.data.val_dataset,
            preprocessing,
            batch_size=config.validation.batch_size,
            num_workers=config.data.num_workers,
            processes=processes,
            class_names=first.class_names if first.named else None,
        )
        if len(images.class_names) != num_classes:
            raise UserError(
                f"data.val_dataset = {config.data.val_dataset} has {len(images.class_names)} classes, {title} has {num_classes}"
            )
        found = {}
        for stage, encoder in encoders.items():
            encoder.to(processes.device)
            autocast, _ = autocast_for(encoder.precision, processes.device)
            found[stage] = predict(
                encoder.network,
                images.loader,
                processes,
                flip=encoder.flip,
                autocast=autocast,
                num_classes=num_classes,
            )
        if not processes.is_main:
            return
        for note in images.notes:
            print(printable(note))
        suffix = "_flip" if last.flip else ""
        _report(
            title,
            images.num_samples,
            [evaluate(predictions, last.codebook) for predictions in found.values()],
            suffix,
            last,
            published,
        )
        if predictions_file:
            np.savez(
                predictions_file, **{k: v.cpu().numpy() for k, v in vars(found[last.stage][suffix]).items()}
            )
    finally:
        processes.stop()


def _report(title, num_images, metrics, suffix, encoder, published):
    """metrics: one dict a stage, in order. Class codes are the first stage's, the Hamming decoders the last's."""
    print(
        f"{title}: {num_images} images, {encoder.num_bits} bits"
        + (", left-right flips averaged" if suffix else "")
    )
    if published:
        print(
            f"  (the network of the {encoder.stage} stage; published: ResNet50, 20 bits, ImageNet-1K, class codes by the codebook stage's "
            "network, MHD and ED by the instance stage's)"
        )
    for name, decoder, m in (
        ("class codes", "class", metrics[0]),
        ("MHD", "mhd", metrics[-1]),
        ("ED", "ed", metrics[-1]),
    ):
        line = f"  {name:12s} top-1 {100 * m['top1_' + decoder + suffix]:6.2f} %"
        if published:
            line += f"   published {published[decoder]} %"
        if decoder != "ed":
            line += f"   top-5 {100 * m['top5_' + decoder + suffix]:6.2f} %"
        print(
            line
            + {
                "class": "",
                "mhd": f"   tied for nearest {100 * m['tied_mhd' + suffix]:.2f} %",
                "ed": f"   no class {100 * m['none_ed' + suffix]:.2f} %",
            }[decoder]
        )
    print(f"  {health(encoder.codebook)}")


if __name__ == "__main__":
    edge.run(main)
