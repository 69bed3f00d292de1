"""The metrics by name: DECODER's top-1 is `top1_DECODER`, followed by `_flip` and `_ema` where these apply.

`_flip`: z is averaged over each image and its mirror image. `_ema`: of the moving average of the weights.
"""

from llc import stages
from llc.evaluation.decoders import DECODERS

FLIP, EMA = "_flip", "_ema"


def name(metric, decoder, flip=False, ema=False):
    """The full name of a decoder's metric: ("top1", "mhd", flip=True) -> top1_mhd_flip."""
    return f"{metric}_{decoder}{FLIP if flip else ''}{EMA if ema else ''}"


def evaluate(predictions, num_classes, ema=False):
    """{full name: value} of every decoder over the result of llc.evaluation.predict.predict."""
    found = {}
    for suffix, of_view in predictions.items():
        for decoder in DECODERS.values():
            values = decoder.metrics(of_view.labels, *of_view.answers[decoder.name], num_classes)
            for metric, value in values.items():
                found[name(metric, decoder.name, suffix == FLIP, ema)] = value
    return found


def headlines(stage, flip):
    """Names of a stage's headline metrics: the top-1 of each decoder that reads what the stage learns.

    stage: llc.stages.Stage, or the class. The order is that of DECODERS.
    """
    return [
        name("top1", decoder.name, flip)
        for decoder in DECODERS.values()
        if (stage.learns_codes if decoder.of_image_codes else stage.learns_codebook)
    ]


def stage_of(decoder, names):
    """Which of the stages `names` a decoder's figures are from: the one that learns what it reads."""
    order = stages.by_image_codes if decoder.of_image_codes else stages.by_class_codes
    return order(names)[0]
