"""The metrics by name: a decoder's top-1 is `top1_DECODER`, followed by `_flip` and `_ema` where these apply.

`_flip`: z is averaged over each image and its mirror image. `_ema`: the network has the moving average of the
weights.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from llc import stages
from llc.evaluation.decoders import DECODERS, Decoder

if TYPE_CHECKING:
    from llc.evaluation.predict import Predictions

FLIP, EMA = "_flip", "_ema"


def name(metric: str, decoder: str, flip: bool = False, ema: bool = False) -> str:
    """The full name of a decoder's metric: ("top1", "mhd", flip=True) -> top1_mhd_flip."""
    return f"{metric}_{decoder}{FLIP if flip else ''}{EMA if ema else ''}"


def evaluate(
    predictions: "dict[str, Predictions]", num_classes: int, ema: bool = False, codes: bool = True
) -> dict[str, float]:
    """{full name: value} of every decoder in the result of llc.evaluation.predict.predict.

    codes: whether image codes mean something; else decoders that read them are left out. Raises ValueError if
    a decoder's metrics lack top1 or one that its `details` name.
    """
    values: dict[str, float] = {}
    for suffix, of_view in predictions.items():
        for decoder, (classes, scores) in of_view.answers.items():
            if DECODERS[decoder].of_image_codes and not codes:
                continue
            own = DECODERS[decoder].metrics(of_view.labels, classes, scores, num_classes)
            missing = [metric for metric in ("top1", *DECODERS[decoder].details) if metric not in own]
            if missing:
                raise ValueError(
                    f"decoder {decoder!r}: its metrics are {', '.join(own)}; missing: {', '.join(missing)}"
                )
            values |= {name(metric, decoder, suffix == FLIP, ema): value for metric, value in own.items()}
    return values


def headlines(stage: stages.Stage | type[stages.Stage], flip: bool) -> list[str]:
    """Names of a stage's headline metrics: the top-1 of each decoder that reads what the stage learns.

    A dense stage learns the class logits.

    In the order of DECODERS.
    """
    return [
        name("top1", decoder.name, flip)
        for decoder in DECODERS.values()
        if (stage.learns_codes if decoder.of_image_codes else stage.learns_codebook or stage.dense)
    ]


def stage_of(decoder: Decoder, names: Iterable[str]) -> str:
    """Which of the stages `names` a decoder's figures are from: the one that learns what it reads."""
    order = stages.by_image_codes if decoder.of_image_codes else stages.by_class_codes
    return order(names)[0]
