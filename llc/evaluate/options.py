"""The flags of `python -m llc.evaluate`."""

import dataclasses

from llc.data.preprocessing import RESIZES
from llc.data.reading import Reading
from llc.errors import UserError
from llc.evaluation.retrieval import MAX_ITEMS
from llc.options import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Reading):
    """What is evaluated, how its images are read, and what is written."""

    model: str = option(
        "", positional=True, help="a run folder, a file that llc.load takes, or codes.npz: see above"
    )
    original: str = option("", help="a checkpoint of the original code, in place of MODEL")
    codebook: str = option("", help="of a file: its codebook, .npy of real values or a run folder")
    num_bits: int = option(0, minimum=0, help="use only this many bits of each code, the first ones; 0: all")
    predictions: str = option("", help="write codes, labels and classes of every image to this .npz")
    fit_decoder: str = option("", help="train images, read as the others are, to fit decoders to: see above")
    decoder: str = option("", help="the .npz of fitted decoders to use, or with --fit_decoder to write")
    json: str = option("", help="write all that is measured to this file: one JSON object, {name: number}")
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


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """How well the nearest codes of an image are those of its own class."""

    database: str = option(
        "", help="images, or a .npz of python -m llc.encode, to search; empty: no retrieval"
    )
    queries: str = option(
        "",
        help="images, or a .npz of codes, that are searched for; empty: the evaluated images. Where they are "
        "the database, each is compared with all others",
    )
    k: int = option(
        1000, minimum=1, maximum=MAX_ITEMS, help="the K of mAP@K, and of precision@K and recall@K"
    )
    neighbours: int = option(10, minimum=1, maximum=MAX_ITEMS, help="how many nearest codes vote for a class")
    csv: str = option(
        "",
        help="a CSV for precision and recall at many k (all up to 1,000) and within every distance, with the "
        "model's name",
    )

    def __post_init__(self) -> None:
        for key in ("queries", "csv"):
            if getattr(self, key) and not self.database:
                raise UserError(
                    f"--retrieval.{key}={getattr(self, key)}: there is nothing to search; name it with "
                    "--retrieval.database"
                )


@dataclasses.dataclass(frozen=True)
class Detection:
    """How well images of no known class are told from the images evaluated."""

    dataset: str = option(
        "", help="images of no known class, or a .npz of their codes: PATH or NAME=PATH, several with commas"
    )
    scores: str = option("", help="write the scores of every image, and the model's name, to this .npz")
    num_tuning: int = option(
        3000,
        minimum=2,
        help="images that tune the threshold of F1, half of them OOD; never more than half of either set",
    )
    seed: int = option(0, minimum=0, help="random seed of the choice of these images")

    def __post_init__(self) -> None:
        if self.scores and not self.dataset:
            raise UserError(
                f"--ood.scores={self.scores}: there are no other images; name them with --ood.dataset"
            )


# Sections that are no part of a recipe.
USES = {"retrieval": Retrieval, "ood": Detection}
