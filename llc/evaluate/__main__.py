"""Evaluates a trained model from its packed codes (also under torchrun).

    python -m llc.evaluate RUN [--data.val_dataset=val.beton] [--predictions=FILE.npz]
    python -m llc.evaluate FILE --data.val_dataset=val.beton                         (an encoder saved by llc)
    python -m llc.evaluate --original=model_best.pth [--codebook=codebook.npy] --data.val_dataset=val.beton
    python -m llc.evaluate ... --fit_decoder=train.beton           (makes the posterior decoder where missing)
    python -m llc.evaluate ... --num_bits=8                                  (the first 8 bits of the codes)

RUN is a run folder. Each of its finished stages is evaluated, with the settings of its validation (a dense
stage only if it is the only one); all keys of its recipe can be given to change them, and `RUN --help` lists
them. FILE is evaluated with its own
preprocessing, which --validation.KEY=VALUE changes; that of the original code (github.com/RAIVNLab/LLC) is to
resize the shorter side to 256 pixels and to crop the central 224. --data.val_dataset is a beton, a folder
with one folder of images per class, or another source of labelled images, such as tars, Parquet files or a
table; --dataset, --split and --label_column say how it is read.

--fit_decoder=TRAIN encodes the train set and fits the decoders that learn from its codes: posterior. They are
written to RUN/decoder.npz, or to FILE.decoder.npz beside a file, where llc.load finds them; --decoder names
another file. A run fits them at its end, so only older runs and single files need this. Decoders fit codes
of one length alone: those of the first bits are in a file of their own, which --decoder names.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llc import config as edge
from llc import recipe, runs
from llc.codebook import health
from llc.data.batches import Images, open_images
from llc.data.preprocessing import RESIZES, Preprocessing
from llc.data.reading import Reading
from llc.data.sources import printable
from llc.distributed import Processes
from llc.encode import check_out, write_arrays
from llc.encoder import Encoder, decoder_path, describe_non_finite, load
from llc.errors import UserError
from llc.evaluation import fitting
from llc.evaluation.decoders import DECODERS, fraction
from llc.evaluation.metrics import FLIP, evaluate, name, stage_of
from llc.evaluation.predict import Predictions, encode_all, predict
from llc.network import IMAGENET_MEAN, IMAGENET_STD
from llc.options import BOOLEANS, item_type, option
from llc.precision import autocast_for
from llc.stages import STAGES

# % top-1 of the published ResNet50 with 20 bits on ImageNet-1K: LLC, Kusupati et al., NeurIPS 2021,
# arXiv 2106.01487
PUBLISHED = {"class": 75.5, "mhd": 74.5, "ed": 68.9}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Reading):
    """What is evaluated, how its images are read, and what is written."""

    model: str = option("", positional=True, help="a run folder, or a file that llc.load takes")
    original: str = option("", help="a checkpoint of the original code, in place of MODEL")
    codebook: str = option("", help="of a file: its codebook, .npy of real values or a run folder")
    num_bits: int = option(0, minimum=0, help="use only this many bits of each code, the first ones; 0: all")
    predictions: str = option("", help="write codes, labels and classes of every image to this .npz")
    fit_decoder: str = option("", help="train images, read as the others are, to fit decoders to: see above")
    decoder: str = option("", help="the .npz of fitted decoders to use, or with --fit_decoder to write")
    min_probability: float = option(
        0.0,
        minimum=0,
        maximum=1,
        help="also print the accuracy on images whose most probable class has this probability or more",
    )


@dataclasses.dataclass(frozen=True)
class Data:
    """What a file is evaluated on."""

    val_dataset: str = option(
        help="a beton, a folder with one folder of images per class, tars, a table, ..."
    )
    num_workers: int = option(-1, minimum=-1, help="threads of each process, not 0; -1: one per core")

    def __post_init__(self) -> None:
        if self.num_workers == 0:
            raise UserError("--data.num_workers=0: expected 1 or more, or -1 for one per core")


@dataclasses.dataclass(frozen=True)
class Validation:
    """How a file is evaluated: with its own preprocessing, but for what is given here."""

    batch_size: int = option(256, minimum=1, help="images per step of each process")
    resolution: int = option(0, minimum=0, help="pixels of the centre crop; 0: the model's own")
    crop_ratio: float = option(
        0.0,
        minimum=0,
        maximum=1,
        help="side of the crop, as a fraction of the shorter side; 0: the model's own",
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


def main(argv: list[str]) -> None:
    model = _model_in(argv)
    if model and Path(model).is_dir():
        _evaluate_run(model, argv)
    else:
        _evaluate_file(model, argv)


def _model_in(argv: list[str]) -> str:
    """MODEL in argv: the first word that is neither a flag nor a flag's value, or "" if there is none.

    It decides which keys there are, so it must be found before llc.config can read argv.
    """
    bools = {
        f"--{section}.{field.name}"
        for section, kind in recipe.sections().items()
        for field in dataclasses.fields(kind)
        if item_type(field)[0] is bool
    }
    words = [word for word in argv if word not in ("--help", "-h")]
    for before, word in zip(["", *words], words):
        takes_word = before.startswith("--") and "=" not in before
        if takes_word and before in bools:  # such a flag may stand alone
            takes_word = word.lower() in BOOLEANS
        if not takes_word and not word.startswith("--"):
            return word
    return ""


def _evaluate_run(path: str, argv: list[str]) -> None:
    asks_for_help = "--help" in argv or "-h" in argv
    if not asks_for_help:
        runs.read_config(path)  # its messages are about run folders, those of llc.config about flags
    argv = ["--config", str(Path(path) / "config.yaml"), *argv]
    values = edge.read({"": Options, **recipe.sections()}, argv, description=__doc__)
    options = values.pop("")
    config = recipe.Config.of(values)
    for flag in ("original", "codebook"):
        if getattr(options, flag):
            raise UserError(f"--{flag}={getattr(options, flag)}: not together with a run folder ({path})")
    stages = runs.finished_stages(path)
    if not stages:
        raise UserError(
            f"{path}: no stage of this run is finished (checkpoints/ has no "
            f"{', '.join(f'{name}.pth' for name in STAGES)})"
        )
    encoders = {stage: load(path, checkpoint=stage) for stage in stages}
    preprocessing = Preprocessing(
        config.validation.resolution, config.validation.crop_ratio, "area", IMAGENET_MEAN, IMAGENET_STD
    )
    for encoder in encoders.values():
        encoder.flip, encoder.precision = config.validation.lr_tta, config.training.precision
    _evaluate(encoders, path, preprocessing, config.data, config.validation, config.dist, options)


def _evaluate_file(model: str, argv: list[str]) -> None:
    asks_for_help = "--help" in argv or "-h" in argv
    original = any(word.split("=")[0] == "--original" for word in argv)
    if not model and not original and not asks_for_help:
        raise UserError("MODEL is missing: a run folder, a file, or --original=FILE (--help lists all keys)")
    sections = {"": Options, "data": Data, "validation": Validation, "dist": Dist}
    values = edge.read(sections, argv, description=__doc__)
    options, validation = values[""], values["validation"]
    if options.model and options.original:
        raise UserError(f"--original={options.original}: not together with MODEL ({options.model})")
    path = options.original or options.model
    encoder = load(path, options.codebook or None)
    if not len(encoder.codebook):
        raise UserError(
            f"{path} holds no codebook (a model of instance codes has none): give one with "
            "--codebook=FILE.npy"
        )
    given = {key: getattr(validation, key) for key in ("resolution", "crop_ratio", "resize")}
    preprocessing = dataclasses.replace(
        encoder.preprocessing, **{key: value for key, value in given.items() if value}
    )
    _evaluate(
        {encoder.stage or "codebook": encoder},
        path,
        preprocessing,
        values["data"],
        validation,
        values["dist"],
        options,
        PUBLISHED if options.original and not options.num_bits else {},
    )


def _open(
    path: str,
    key: str,
    title: str,
    preprocessing: Preprocessing,
    encoder: Encoder,
    data: Any,
    validation: Any,
    processes: Processes,
    options: Options,
) -> Images:
    """Opens the images at `path`, the value of the flag `key`, for the model `title`. Raises UserError."""
    images = open_images(
        path,
        preprocessing,
        batch_size=validation.batch_size,
        num_workers=data.num_workers or -1,  # recipes may say 0, which means the same
        processes=processes,
        class_names=encoder.class_names if encoder.named else None,
        reading=options,
    )
    where, num_classes = f"{key} = {printable(path)}", len(encoder.codebook)
    if images.num_unlabelled:
        raise UserError(
            f"{where}: {images.num_unlabelled:,} of {images.num_samples:,} images have no label, and each "
            "needs one: give one folder of images per class, a table with --label_column=NAME, or a beton; "
            "python -m llc.encode takes images without labels"
        )
    if len(images.class_names) != num_classes:
        raise UserError(
            f"{where} has {len(images.class_names)} classes, {printable(title)} has {num_classes}"
        )
    return images


def _fit_decoder(
    title: str, encoder: Encoder, train: Images, val: Images, processes: Processes, options: Options
) -> None:
    """Fits the decoders that learn to the train images, and writes them. Raises UserError."""
    given = f"--fit_decoder={printable(options.fit_decoder)}"
    path = Path(options.decoder or decoder_path(title))
    if train.identity == val.identity:
        raise UserError(
            f"{given}: these are the images of data.val_dataset; decoders learn from the train set, or their "
            "accuracy on val would mean nothing"
        )
    if train.split == "val":
        raise UserError(f"{given}: a val split, as its manifest says; decoders learn from the train set")

    def check() -> None:
        check_out(str(path), "--decoder")
        if path.exists():
            raise UserError(
                f"{printable(path)} exists already; use it, without --fit_decoder, or remove it first, or "
                "name another file to write with --decoder=FILE.npz"
            )

    def fit() -> fitting.Fitted:
        found = fitting.fit(encoder.network, codes, labels, source=options.fit_decoder, images=train.identity)
        found.save(path)
        print(f"{printable(path)}: fitted to {found.num_images:,} images of {printable(options.fit_decoder)}")
        return found

    processes.on_main(check)
    encoder.to(processes.device)
    autocast, _ = autocast_for(encoder.precision, processes.device)
    codes, labels = encode_all(encoder.network, train.loader, processes, flip=encoder.flip, autocast=autocast)
    encoder.fitted = processes.on_main(fit)


def _check_decoder(title: str, options: Options) -> None:
    """Raises UserError if decoders of the first bits would be written where those of whole codes belong."""
    own = decoder_path(title)
    if options.fit_decoder and Path(options.decoder or own).resolve() == own.resolve():
        raise UserError(
            f"--fit_decoder with --num_bits={options.num_bits}: {printable(own)} is for decoders of whole "
            "codes; name a file for decoders of so many bits, with --decoder=FILE.npz"
        )


def _evaluate(
    encoders: dict[str, Encoder],
    title: str,
    preprocessing: Preprocessing,
    data: Any,
    validation: Any,
    dist: Any,
    options: Options,
    published: Mapping[str, float] = {},
) -> None:
    """Runs the encoders over the data; the main process prints the report and writes the predictions.

    encoders: {stage: Encoder} of whole codes, all with the same codebook and flip, the one for image codes
    last; data, validation, dist: the sections of a recipe, or those of this module.
    """
    predictions_file = options.predictions
    whole = last = list(encoders.values())[-1]
    if options.num_bits:
        encoders = {stage: encoder.first_bits(options.num_bits) for stage, encoder in encoders.items()}
        last = list(encoders.values())[-1]
    if options.fit_decoder:
        last.check_codes()
    if last.num_bits < whole.num_bits:
        _check_decoder(title, options)
    if options.decoder and not options.fit_decoder:
        last.fitted = fitting.read(options.decoder, last.network)
    num_classes = len(last.codebook)
    processes = Processes.start(dist.timeout_minutes, backend=dist.backend)
    try:
        if predictions_file:
            processes.on_main(lambda: check_out(predictions_file, "--predictions"))

        def opened(path: str, key: str) -> Images:
            return _open(path, key, title, preprocessing, last, data, validation, processes, options)

        images = opened(data.val_dataset, "data.val_dataset")
        if options.fit_decoder:
            _fit_decoder(title, last, opened(options.fit_decoder, "fit_decoder"), images, processes, options)
        predictions = {}
        for stage, encoder in encoders.items():
            encoder.to(processes.device)
            autocast, _ = autocast_for(encoder.precision, processes.device)
            predictions[stage] = predict(
                encoder.network,
                images.loader,
                processes,
                flip=encoder.flip,
                autocast=autocast,
                num_classes=num_classes,
                learnt=_learnt(encoder, images),
            )
        for stage, of_stage in predictions.items():
            # The mean over an image and its mirror image is NaN or infinite where one of the two is.
            broken = max(int(of_view.num_non_finite) for of_view in of_stage.values())
            if broken:
                what = describe_non_finite(broken, images.num_samples)
                raise UserError(f"{printable(title)}, stage {stage}: z is {what}")
        if not processes.is_main:
            return
        if predictions_file:  # before anything is printed, because printing may fail
            of_last = list(predictions.values())[-1]
            write_arrays(predictions_file, of_last[FLIP if last.flip else ""].arrays())
        for note in images.notes:
            print(printable(note))
        metrics = {
            stage: evaluate(of_stage, num_classes, codes=not STAGES[stage].dense)
            for stage, of_stage in predictions.items()
        }
        _report(title, images.num_samples, metrics, last, published)
        if whole.learnt and not last.learnt:
            print(f"  {', '.join(whole.learnt)}: fitted to all {whole.num_bits} bits, so not used")
        if last.learnt and not _learnt(last, images):
            print(f"  {', '.join(last.learnt)}: fitted to these very images, so not measured on them")
        if options.min_probability:
            _report_accepted(predictions, last, options.min_probability)
    finally:
        processes.stop()


def _learnt(encoder: Encoder, images: Images) -> Mapping[str, Any]:
    """What decoders learnt, unless it was from these images."""
    known = encoder.fitted is not None and encoder.fitted.images
    return {} if known and known == images.identity else encoder.learnt


def _report(
    title: str,
    num_images: int,
    metrics: dict[str, dict[str, float]],
    encoder: Encoder,
    published: Mapping[str, float],
) -> None:
    """Prints a line per decoder.

    metrics: {stage: its metrics}; a decoder's line shows those of the stage that learns what it reads.
    """
    flipped = ", left-right flips averaged" if encoder.flip else ""
    print(f"{printable(title)}: {num_images} images, {encoder.num_bits} bits{flipped}")
    if published:
        print(
            f"  (the network of the {encoder.stage} stage; published: ResNet50, 20 bits, ImageNet-1K, class "
            "codes by the codebook stage's network, MHD and ED by the instance stage's)"
        )
    for decoder in DECODERS.values():
        top1 = name("top1", decoder.name, encoder.flip)
        measured = [stage for stage in metrics if top1 in metrics[stage]]
        if not measured:
            continue
        of_stage = metrics[stage_of(decoder, measured)]
        percent = {
            metric: 100 * of_stage[full_name]
            for metric in ("top1", "top5", *decoder.details)
            if (full_name := name(metric, decoder.name, encoder.flip)) in of_stage
        }
        line = f"  {decoder.title:12s} top-1 {percent['top1']:6.2f} %"
        if decoder.name in published:
            line += f"   published {published[decoder.name]} %"
        if "top5" in percent:
            line += f"   top-5 {percent['top5']:6.2f} %"
        for metric, words in decoder.details.items():
            line += f"   {words} {percent[metric]:.2f} %"
        print(line)
    print(f"  {health(encoder.codebook)}")


def _report_accepted(
    predictions: Mapping[str, Mapping[str, Predictions]], encoder: Encoder, min_probability: float
) -> None:
    """Prints how many images have a class of at least this probability, and the accuracy on them."""
    for name_, decoder in DECODERS.items():
        measured = [stage for stage, views in predictions.items() if name_ in views[""].answers]
        if not decoder.gives_probabilities or not measured:
            continue
        view = predictions[stage_of(decoder, measured)][FLIP if encoder.flip else ""]
        classes, probabilities = view.answers[name_]
        accepted = probabilities[:, 0] >= min_probability
        right = (classes[:, 0] == view.labels)[accepted]
        line = f"  {decoder.title:12s} probability {min_probability:g} or more: {len(right):,} images"
        print(f"{line}, top-1 {100 * fraction(right):.2f} % on them" if len(right) else line)


if __name__ == "__main__":
    edge.run(main)
