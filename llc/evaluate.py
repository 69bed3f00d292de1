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
from llc import runs
from llc.codebook import health
from llc.data.batches import open_images
from llc.data.preprocessing import RESIZES, Preprocessing
from llc.data.sources import printable
from llc.distributed import Processes
from llc.encoder import load
from llc.errors import UserError
from llc.evaluation.decoders import DECODERS
from llc.evaluation.metrics import FLIP, evaluate, name, stage_of
from llc.evaluation.predict import predict
from llc.network import IMAGENET_MEAN, IMAGENET_STD
from llc.options import option
from llc.precision import autocast_for
from llc.training import config as training_config

# % top-1 of the published ResNet50 with 20 bits on ImageNet-1K: LLC, Kusupati et al., NeurIPS 2021, arXiv 2106.01487
PUBLISHED = {"class": 75.5, "mhd": 74.5, "ed": 68.9}


@dataclasses.dataclass(frozen=True)
class Options:
    """What is evaluated, and what is written."""

    model: str = option("", positional=True, help="a run folder, or a file that llc.load takes")
    original: str = option("", help="a checkpoint of the original code, in place of MODEL")
    codebook: str = option("", help="of a file: its codebook, .npy of real values or a run folder")
    predictions: str = option("", help="write codes, labels and classes of every image to this .npz")


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
    path = next((word for word in argv if not word.startswith("--")), "")
    if Path(path).is_dir():
        _evaluate_run(path, argv)
    else:
        _evaluate_file(argv)


def _evaluate_run(path, argv):
    words = ["--config", str(Path(path) / "config.yaml"), *argv]
    config, options = training_config.read(words, description=__doc__, options=Options)
    stages = runs.finished_stages(path)
    if not stages:
        raise UserError(
            f"{path}: no stage of this run is finished (checkpoints/codebook.pth, instance.pth or joint.pth)"
        )
    encoders = {name: load(path, checkpoint=name) for name in stages}
    preprocessing = Preprocessing(
        config.validation.resolution, config.validation.crop_ratio, "area", IMAGENET_MEAN, IMAGENET_STD
    )
    for encoder in encoders.values():
        encoder.flip, encoder.precision = config.validation.lr_tta, config.training.precision
    _evaluate(encoders, path, preprocessing, config, options.predictions)


def _evaluate_file(argv):
    sections = {"": Options, "data": Data, "validation": Validation, "dist": Dist}
    config = SimpleNamespace(**edge.read(sections, argv, description=__doc__))
    options = vars(config)[""]
    path, original = options.original or options.model, bool(options.original)
    if not path:
        raise UserError("MODEL is missing: a run folder, a file, or --original=FILE")
    encoder = load(path, options.codebook or None)
    if not len(encoder.codebook):
        raise UserError(
            f"{path} holds no codebook (a model of instance codes has none): give one with --codebook=FILE.npy"
        )
    given = {name: getattr(config.validation, name) for name in ("resolution", "crop_ratio", "resize")}
    preprocessing = dataclasses.replace(
        encoder.preprocessing, **{name: value for name, value in given.items() if value}
    )
    _evaluate(
        {encoder.stage or "codebook": encoder},
        path,
        preprocessing,
        config,
        options.predictions,
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
        metrics = {stage: evaluate(predictions, num_classes) for stage, predictions in found.items()}
        _report(title, images.num_samples, metrics, last, published)
        if predictions_file:
            np.savez(predictions_file, **found[last.stage][FLIP if last.flip else ""].arrays())
    finally:
        processes.stop()


def _report(title, num_images, metrics, encoder, published):
    """metrics: {stage: its metrics}. Each decoder's are those of the stage that learns what it reads."""
    flipped = ", left-right flips averaged" if encoder.flip else ""
    print(f"{title}: {num_images} images, {encoder.num_bits} bits{flipped}")
    if published:
        print(
            f"  (the network of the {encoder.stage} stage; published: ResNet50, 20 bits, ImageNet-1K, class codes "
            "by the codebook stage's network, MHD and ED by the instance stage's)"
        )
    for decoder in DECODERS.values():
        of_stage = metrics[stage_of(decoder, metrics)]

        def percent(metric):
            value = of_stage.get(name(metric, decoder.name, encoder.flip))
            return None if value is None else 100 * value

        line = f"  {decoder.title:12s} top-1 {percent('top1'):6.2f} %"
        if published and decoder.name in published:
            line += f"   published {published[decoder.name]} %"
        if percent("top5") is not None:
            line += f"   top-5 {percent('top5'):6.2f} %"
        for metric, words in decoder.details.items():
            line += f"   {words} {percent(metric):.2f} %"
        print(line)
    print(f"  {health(encoder.codebook)}")


if __name__ == "__main__":
    edge.run(main)
