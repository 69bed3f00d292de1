"""Measures what a trained model's packed codes are good for (also under torchrun).

    python -m llc.evaluate RUN [--data.val_dataset=val.beton] [--predictions=FILE.npz]
    python -m llc.evaluate FILE --data.val_dataset=val.beton     (a saved encoder, or a hub folder or address)
    python -m llc.evaluate --original=model_best.pth [--codebook=codebook.npy] --data.val_dataset=val.beton
    python -m llc.evaluate codes.npz [--fit_decoder=train.npz] ...                     (codes without a model)
    python -m llc.evaluate ... --fit_decoder=train.beton           (makes the posterior decoder where missing)
    python -m llc.evaluate ... --num_bits=8                                  (the first 8 bits of the codes)
    python -m llc.evaluate ... --retrieval.database=train.beton                                    (retrieval)
    python -m llc.evaluate ... --ood.dataset=other.beton                       (out-of-distribution detection)

RUN is a run folder. Each of its finished stages is evaluated, with the settings of its validation (a dense
stage only if it is the only one); all keys of its recipe can be given to change them, and `RUN --help` lists
them. FILE is evaluated with its own preprocessing, which --validation.KEY=VALUE changes; that of the original
code (github.com/RAIVNLab/LLC) is to resize the shorter side to 256 pixels and to crop the central 224.
--data.val_dataset is a beton, a folder with one folder of images per class, or another source of labelled
images, such as tars, Parquet files or a table; --dataset, --split and --label_column say how it is read.

--fit_decoder=TRAIN encodes the train set and fits the decoders that learn from its codes: posterior. They are
written to RUN/decoder.npz, or to FILE.decoder.npz beside a file, where llc.load finds them; --decoder names
another file. A run fits them at its end, so only older runs and single files need this. Decoders fit codes
of one length alone: those of the first bits are in a file of their own, which --decoder names.

codes.npz is a file of `python -m llc.encode`, or one with the same arrays from any other encoder. With
--fit_decoder=train.npz, the codes of its train set, decoders are measured too: a class's code is then the
bitwise majority of its train codes. No file of decoders is written then.

--retrieval.database is searched with the images that are evaluated, or with --retrieval.queries: betons,
other images, or .npz files of codes. --ood.dataset names images of no known class, which should be told from
those evaluated. docs/how-to/retrieval.md and docs/how-to/ood.md explain the figures; --json=FILE writes all
of them.
"""

import dataclasses
from pathlib import Path

from llc import config as edge
from llc import recipe, runs
from llc.data.preprocessing import Preprocessing
from llc.encoder import load
from llc.errors import UserError
from llc.evaluate import codes, models
from llc.evaluate.options import USES, Data, Dist, Options, Validation
from llc.network import IMAGENET_MEAN, IMAGENET_STD
from llc.options import BOOLEANS, item_type
from llc.stages import STAGES

# % top-1 of the published ResNet50 with 20 bits on ImageNet-1K: LLC, Kusupati et al., NeurIPS 2021,
# arXiv 2106.01487
PUBLISHED = {"class": 75.5, "mhd": 74.5, "ed": 68.9}


def main(argv: list[str]) -> None:
    model = _model_in(argv)
    if model.endswith(".npz"):
        values = edge.read({"": Options, **USES}, argv, description=__doc__)
        codes.evaluate(values.pop(""), values)
    elif model and runs.is_folder(model):
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
    values = edge.read({"": Options, **USES, **recipe.sections()}, argv, description=__doc__)
    options, uses = values.pop(""), {name: values.pop(name) for name in USES}
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
    models.evaluate(encoders, path, preprocessing, config.data, config.validation, config.dist, options, uses)


def _evaluate_file(model: str, argv: list[str]) -> None:
    asks_for_help = "--help" in argv or "-h" in argv
    original = any(word.split("=")[0] == "--original" for word in argv)
    if not model and not original and not asks_for_help:
        raise UserError("MODEL is missing: a run folder, a file, or --original=FILE (--help lists all keys)")
    sections = {"": Options, "data": Data, "validation": Validation, "dist": Dist, **USES}
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
    models.evaluate(
        {encoder.stage or "codebook": encoder},
        path,
        preprocessing,
        values["data"],
        validation,
        values["dist"],
        options,
        {name: values[name] for name in USES},
        PUBLISHED if options.original and not options.num_bits else {},
    )


if __name__ == "__main__":
    edge.run(main)
