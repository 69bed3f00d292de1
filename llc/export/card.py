"""The model card of --to=hub: README.md with the metadata that the Hugging Face Hub reads."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import llc
from llc import codebook, hub, stages
from llc.codes import code_size
from llc.data.sources import printable
from llc.encoder import Encoder
from llc.evaluation.decoders import DECODERS, usable
from llc.packages import needed
from llc.text import counted

_PLACEHOLDER = "OWNER/NAME"
_TAGS = ("binary-codes", "hashing", "image-retrieval", "image-classification")
_MAX_NAMED = 20  # classes that the card names
_OWN_STAGES = ("codebook", "instance", "joint")  # of llc, not of a plugin
# What each built-in decoder answers; one from a plugin speaks for itself.
_ANSWERS = {
    "class": "the class with the highest scalar product of `z` and its class code",
    "mhd": "the class whose code is nearest by Hamming distance (MHD), the first of several",
    "ed": "the class whose code is equal (exact decoding), or no class",
    "posterior": "the most probable class given the code, learnt from the codes of train images",
}


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a run measured on its val images. Metrics are fractions from 0 to 1.

    decoders: {decoder: {metric: value}}, with the metrics' names in llc.evaluation.decoders; epoch: of the
    stage, the last one; data: the file name of the val images; num_images: how many, 0 if unknown; ema: of
    the moving average of the weights.
    """

    decoders: Mapping[str, Mapping[str, float]]
    stage: str
    epoch: int
    data: str
    num_images: int
    ema: bool


@dataclasses.dataclass(frozen=True)
class Model:
    """What a card is about. figures: or why there are none; address: OWNER/NAME on the Hub, "" if unknown.

    The encoder's recipe and decoders name no folders.
    """

    title: str
    address: str
    encoder: Encoder
    figures: Figures | str
    license: str
    datasets: Sequence[str]


def text(model: Model) -> str:
    """README.md. Raises UserError without huggingface_hub."""
    parts = [
        _metadata(model),
        f"# {_plain(model.title)}",
        *_introduction(model),
        *_use(model),
        *_preprocessing(model.encoder),
        *_codes(model.encoder),
        *_accuracy(model),
        *_training(model.encoder),
        *_limits(model),
        *_files(model),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(model: Model) -> str:
    """The block of YAML, as huggingface_hub writes it."""
    library = needed("huggingface_hub", "--to=hub", extra="hub")
    figures, results = model.figures, []
    if isinstance(figures, Figures):
        # Only where one data set is named it is known to be that of the val images.
        dataset = model.datasets[0] if len(model.datasets) == 1 else "unknown"
        results = [
            library.EvalResult(
                task_type="image-classification",
                dataset_type=dataset,
                dataset_name=figures.data,
                metric_type="accuracy",
                metric_name=f"top-{metric[3:]} accuracy, {DECODERS[decoder].title}",
                metric_value=round(metrics[metric], 6),
            )
            for decoder, metrics in figures.decoders.items()
            for metric in ("top1", "top5")
            if metric in metrics
        ]
    data = library.ModelCardData(
        library_name=hub.LIBRARY,
        license=model.license or None,
        datasets=list(model.datasets) or None,
        tags=list(_TAGS),
        pipeline_tag="image-feature-extraction",
        metrics=["accuracy"] if results else None,
        model_name=model.title if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"


# -------------------------------------------------------------------------------------------------- sections


def _introduction(model: Model) -> Iterator[str]:
    encoder = model.encoder
    size, num_classes = code_size(encoder.num_bits), len(encoder.codebook)
    classes = (
        f" and tells {counted(num_classes, 'class', 'classes')} apart by these codes" if num_classes else ""
    )
    yield (
        f"This model turns an image into a binary code of {counted(encoder.num_bits, 'bit')} "
        f"({counted(size, 'byte')}){classes}.{_purpose(encoder)}"
    )
    method = (
        ' The method is LLC, "Learnt Low-dimensional binary Codes" (Kusupati et al., NeurIPS 2021, '
        "[arXiv 2106.01487](https://arxiv.org/abs/2106.01487))."
        if encoder.stage in (None, *_OWN_STAGES)
        else ""
    )
    program = f"llc {llc.__version__} (the Python package llcodes)"
    yield f"It was written by {program}, which also loads it.{method}"


def _purpose(encoder: Encoder) -> str:
    if encoder.stage not in _OWN_STAGES:
        return ""
    if encoder.stage != "codebook":
        return (
            " It was trained to give images of one class codes that differ in few bits, so that images can "
            "be searched by the Hamming distance of their codes."
        )
    return (
        " It is the network of the codebook stage, trained to classify by the class codes; codes of images "
        "are better compared with those of the instance stage."
    )


def _use(model: Model) -> Iterator[str]:
    encoder, size = model.encoder, code_size(model.encoder.num_bits)
    yield "## How to use it"
    lines = [
        "import llc",
        "",
        f'encoder = llc.load("hf://{model.address or _PLACEHOLDER}")',
        f'codes = encoder.encode(["cat.jpg", "dog.jpg"])  # uint8 [2, {size}]',
        "distances, indices = llc.hamming.search(codes, codes, k=2)  # the nearest codes of each",
    ]
    if len(encoder.codebook):
        k = min(3, len(encoder.codebook))
        lines += [
            f'classes = encoder.classify("cat.jpg", decode="{_best(encoder)}", k={k})',
            "print(classes.names[0], classes.scores[0])",
        ]
    yield "```python\n" + "\n".join(lines) + "\n```"
    placeholder = "" if model.address else f" `{_PLACEHOLDER}` stands for this repository's name."
    yield (
        "`hf://` needs huggingface_hub (`pip install 'llcodes[hub]'`). A copy of this repository in a folder "
        f'loads without it: `llc.load("FOLDER")`.{placeholder}'
    )
    family, arch = encoder.network.family, encoder.network.options["arch"]
    if family == "timm":
        yield "The backbone is built by timm, which must be installed (`pip install 'llcodes[timm]'`)."
    elif family == "registered":
        yield (
            f"The backbone `{arch}` is no part of llc. The plugin that registers it must be imported before "
            "the model is loaded."
        )
    if encoder.stage is not None and encoder.stage not in _OWN_STAGES:
        yield (
            f"The stage `{encoder.stage}`, at whose end the network was saved, is no part of llc. The plugin "
            "that registers it must be imported before the model is loaded."
        )


def _preprocessing(encoder: Encoder) -> Iterator[str]:
    own = encoder.preprocessing
    yield "## What happens to an image"
    yield "llc does all of this itself, for image files, PIL images and tensors of any size:"
    side = f"{own.resolution} x {own.resolution} pixels"
    share = "" if own.crop_ratio == 1 else f"{100 * own.crop_ratio:g} % of "
    if own.resize == "area":
        first = (
            f"The central square, whose side is {share}the shorter side, is resized to {side} by pixel area."
        )
    else:
        short = max(own.resolution, round(own.resolution / own.crop_ratio))
        first = (
            f"The shorter side is resized to {short} pixels by Pillow's bilinear filter, and the central "
            f"{side} are cropped."
        )
    values = ", ".join(f"{value:g}" for value in own.mean), ", ".join(f"{value:g}" for value in own.std)
    steps = [
        f"1. {first}",
        f"2. RGB values, from 0 to 1, are normalised with mean ({values[0]}) and standard deviation "
        f"({values[1]}).",
    ]
    if encoder.flip:
        steps.append("3. The network's outputs are averaged over the image and its mirror image.")
    yield "\n".join(steps)


def _codes(encoder: Encoder) -> Iterator[str]:
    num_bits, size = encoder.num_bits, code_size(encoder.num_bits)
    yield "## What the codes are"
    padding = (
        f" The last {counted(8 * size - num_bits, 'bit')} of a code are always 0." if num_bits % 8 else ""
    )
    yield (
        f"The network gives {num_bits} real numbers `z`. A bit is 1 if and only if its number is above 0. "
        f"Bits are packed as `numpy.packbits` does: the first is the highest of the first byte.{padding}"
    )
    prefixes = _prefixes(encoder)
    if prefixes:
        yield (
            f"The first {_listed(prefixes)} bits were trained to be codes by themselves; "
            f"`llc.load(..., num_bits={prefixes[0]})` uses {prefixes[0]} alone."
        )
    if not len(encoder.codebook):
        yield "The model has no codebook, so it can encode images, but cannot classify them."
        return
    health = codebook.health(encoder.codebook)
    yield (
        f"Each class has a code too, a row of `encoder.class_codes`, uint8 [{health.num_classes}, {size}]. "
        + (
            f"The codes of two classes differ in {counted(health.min_distance, 'bit')} or more, and in "
            f"{health.mean_distance:.1f} on average."
            if health.num_classes > 1 and health.min_distance
            else ""
        )
        + (
            f"{counted(health.num_collisions, 'class has', 'classes have')} the code of an earlier class, "
            "which all decoders but the posterior one return in its place."
            if health.num_collisions
            else ""
        )
    ).rstrip()
    if encoder.named:
        shown = ", ".join(f"`{_plain(name)}`" for name in encoder.class_names[:_MAX_NAMED])
        left = health.num_classes - _MAX_NAMED
        yield f"The classes, in label order: {shown}" + (
            f", and {left:,} more in `{hub.CONFIG}`." if left > 0 else "."
        )
    else:
        yield "The names of the classes are not known; they are called by their numbers."


def _accuracy(model: Model) -> Iterator[str]:
    if not len(model.encoder.codebook):
        return
    figures = model.figures
    yield "## How images are classified"
    measured = figures.decoders if isinstance(figures, Figures) else {}
    head = ["`decode=`", "the answer", *(("top-1", "top-5", "also") if measured else ())]
    rows = [head, ["---"] * len(head)]
    for name in usable(model.encoder.learnt):
        row = [f'`"{name}"`', _ANSWERS.get(name, _plain(DECODERS[name].title))]
        if measured:
            own = measured.get(name, {})
            also = [
                f"{words}: {_percent(own[key])}"
                for key, words in DECODERS[name].details.items()
                if key in own
            ]
            top = [_percent(own[key]) if key in own else "" for key in ("top1", "top5")]
            row += [top[0] or "not measured", top[1], "; ".join(also)]
        rows.append(row)
    yield "\n".join(f"| {' | '.join(row)} |" for row in rows)
    if isinstance(figures, Figures):
        images = f"{counted(figures.num_images, 'image')} of " if figures.num_images else ""
        flip = ", averaged over each image and its mirror image" if model.encoder.flip else ""
        ema = " with the moving average of the weights" if figures.ema else ""
        when = f"at the end of the {figures.stage} stage{ema}{flip}"
        if figures.epoch:
            when = (
                f"after epoch {figures.epoch} of the {figures.stage} stage, its last{ema}{flip}. The epoch "
                "was not chosen by its accuracy"
            )
        yield (
            f"Measured by the training run on its val images, {images}`{_plain(figures.data)}`, {when}. One "
            "run was measured, with one seed. Whether its recipe was tuned on these images is not recorded."
        )
    else:
        yield f"There are no figures here, because {figures}. `python -m llc.evaluate` measures them."
    fitted = model.encoder.fitted
    if fitted is not None and fitted.learnt:
        names = " and ".join(_plain(DECODERS[name].title) for name in fitted.learnt)
        yield (
            f"The {names} {'decoder' if len(fitted.learnt) == 1 else 'decoders'} learnt from the codes of "
            f"{counted(fitted.num_images, 'image')} of `{_plain(fitted.source)}`."
        )


def _training(encoder: Encoder) -> Iterator[str]:
    yield "## How it was trained"
    try:
        lines = list(_recipe(encoder))
    except (KeyError, TypeError, ValueError, AttributeError):  # a file may hold any recipe
        lines = []
    num_parameters = sum(
        parameter.numel() for name, parameter in encoder.network.named_parameters() if name != "codebook"
    )
    width = encoder.network.options["width"]
    about = f"- backbone: `{_plain(encoder.network.options['arch'])}`" + (
        f" of width {width}" if width != 64 else ""
    )
    about += ", with BlurPool" if encoder.network.options["use_blurpool"] else ""
    hidden = encoder.network.options["hidden"]
    about += f", then a hidden layer of {hidden:,} features" if hidden else ""
    if encoder.network.options["head"] == "expected":
        about += ", then a classifier, whose probabilities weigh the class codes"
    lines = [f"{about}; with the projection to codes {num_parameters:,} parameters", *lines]
    is_known = len(lines) > 1
    if not is_known:
        lines.append("- the rest is not recorded in the model")
    yield "\n".join(lines)
    if is_known:
        yield f"The whole recipe is in `{hub.CONFIG}`."


def _recipe(encoder: Encoder) -> Iterator[str]:
    recipe = encoder.recipe
    if not recipe:
        return
    training, data, resolution = recipe["training"], recipe["data"], recipe["resolution"]
    if recipe["model"]["weights"]:
        yield f"- started from the weights `{_plain(recipe['model']['weights'])}`"
    else:
        yield "- started from random weights"
    if recipe["codes"]["init_codebook"]:
        yield f"- codebook started from `{_plain(recipe['codes']['init_codebook'])}`"
    yield (
        f"- train images: `{_plain(data['train_dataset'])}`; random crops of {100 * data['min_scale']:g} % "
        "or more of an image's area"
    )
    names = stages.named(training["stages"])
    for number, name in enumerate(names[: names.index(encoder.stage) + 1], 1):
        own = recipe[name]
        if not own["epochs"]:
            yield f"- stage {number}, {name}: no epochs; the image codes are made from the classifier"
            continue
        yield (
            f"- stage {number}, {name}, {_learns(stages.STAGES[name])}: {counted(own['epochs'], 'epoch')}, "
            f"learning rate {own['lr']:g}, schedule {own['lr_schedule_type']}"
        )
    low, high = resolution["min_res"], resolution["max_res"]
    side = low if low == high else f"{low} to {high}"
    yield f"- images of {side} pixels, {training['batch_size']:,} per step"
    smoothing = training["label_smoothing"]
    yield (
        f"- SGD with momentum {training['momentum']:g}, weight decay {training['weight_decay']:g}"
        + (f", label smoothing {smoothing:g}" if smoothing else "")
        + f", seed {training['seed']}"
    )


def _learns(stage: type[stages.Stage]) -> str:
    """What a stage learns, in words."""
    if stage.dense:
        return "which learns a classifier, from which the class codes are made"
    learnt = [
        what for what, is_so in (("class", stage.learns_codebook), ("image", stage.learns_codes)) if is_so
    ]
    return f"which learns the {' and '.join(learnt)} codes"


def _limits(model: Model) -> Iterator[str]:
    encoder, figures = model.encoder, model.figures
    yield "## Limits"
    lines = ["- Its codes can be compared with each other alone, not with those of any other model."]
    if len(encoder.codebook):
        lines.append(
            f"- It knows {counted(len(encoder.codebook), 'class', 'classes')} alone. An image of anything "
            'else gets one of them too, except that `"ed"` may answer no class.'
        )
    if encoder.num_bits <= 32:
        lines.append(
            f"- There are {2**encoder.num_bits:,} different codes, so different images may share one."
        )
    side = encoder.preprocessing.resolution
    lines.append(
        f"- It sees {side} x {side} pixels of an image's centre. What is outside, or smaller than one of "
        "them, is lost."
    )
    if isinstance(figures, Figures):
        lines.append(
            "- The figures hold for images like those that were measured. Other images were not, nor how "
            "accuracy differs between groups of people or places."
        )
    lines.append(
        "- A bit whose `z` is within rounding of 0 may differ between devices, batch sizes and precisions."
    )
    if not model.license:
        lines.append("- No licence is stated here.")
    yield "\n".join(lines)


def _files(model: Model) -> Iterator[str]:
    yield "## Files"
    yield "\n".join(
        [
            f"- `{hub.WEIGHTS}`: the weights"
            + (", what decoders learnt" if model.encoder.learnt else "")
            + " and all that llc needs to load the model. It is data and cannot run code.",
            f"- `{hub.CONFIG}`: how the network is built, its preprocessing, class names and recipe, for "
            "reading.",
        ]
    )


# --------------------------------------------------------------------------------------------------- wording


def _best(encoder: Encoder) -> str:
    """The decoder that the example uses."""
    learns_codes = encoder.stage is None or stages.STAGES[encoder.stage].learns_codes
    return "class" if not learns_codes else "posterior" if "posterior" in encoder.learnt else "mhd"


def _prefixes(encoder: Encoder) -> list[int]:
    """The numbers of bits, below the whole, that were trained to be codes by themselves."""
    codes = encoder.recipe.get("codes")
    nested = codes.get("nested") if isinstance(codes, Mapping) else None
    if not isinstance(nested, (list, tuple)):
        return []
    return sorted({bits for bits in nested if isinstance(bits, int) and 0 < bits < encoder.num_bits})


def _plain(name: Any) -> str:
    """A name as text that means nothing to Markdown within backticks or a heading."""
    return printable(str(name)).replace("`", "'")


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def _listed(numbers: Sequence[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}" if first else last
