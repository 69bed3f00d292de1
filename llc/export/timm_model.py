"""--to=timm: a state dict that timm.create_model takes, the class codes as timm's own classifier."""

import io

import safetensors.torch
import torch

from llc import checkpoints
from llc.encode import check_out
from llc.errors import UserError
from llc.export import check
from llc.export.names import check_blurpool, name_of
from llc.files import atomic_write
from llc.inference import evaluating
from llc.network import apply_blurpool
from llc.packages import needed


def write(encoder, path, options):
    if path.suffix not in (".safetensors", ".pth"):
        raise UserError(f"--out={path}: expected a name that ends in .safetensors or .pth")
    check_out(path, "--out")
    encoder.check_codes()
    network = encoder.network
    check_blurpool(network, options)
    timm = needed("timm", "--to=timm", extra="timm")
    if not len(encoder.codebook):
        raise UserError(f"{options.run} holds no codebook; give one with --codebook=FILE.npy")
    name, arguments = _constructor(encoder, timm)
    state = checkpoints.to_backbone(network, with_classifier=True)
    _check_fit(timm, name, arguments, state, network)
    model = timm.create_model(name, **arguments).eval()
    if network.options["use_blurpool"]:
        apply_blurpool(model)
    model.load_state_dict(state, strict=True)
    sample = check.for_check(encoder, options)
    said = _compare(model, encoder, sample, timm) if sample is not None else None
    data = io.BytesIO()
    if path.suffix == ".pth":
        torch.save(state, data)
    else:
        data.write(safetensors.torch.save(state))
    replaced = path.exists()
    atomic_write(path, lambda file: file.write(data.getbuffer()))
    words = ", ".join([repr(name), *(f"{key}={value}" for key, value in arguments.items())])
    print(f"{path}: {len(state)} tensors" + (", replaced" if replaced else ""))
    after = "; llc.network.apply_blurpool(model)" if network.options["use_blurpool"] else ""
    print(f"  model = timm.create_model({words}){after}; model.load_state_dict(state)")
    preprocessing = encoder.preprocessing
    print(
        f"  images of {preprocessing.resolution} pixels, normalised by mean={preprocessing.mean} and "
        f"std={preprocessing.std} of values from 0 to 1"
    )
    if encoder.flip:
        print(
            "  this model's own logits are the mean over an image and its mirror image; timm's are those of "
            "the image"
        )
    if said:
        print(f"  {said}")


def _constructor(encoder, timm):
    """(name, keyword arguments) for timm.create_model. Raises UserError where timm has no such model."""
    network = encoder.network
    name = network.options["arch"].removeprefix("timm:")
    if (
        network.family == "registered"
        or network.options["width"] != 64
        or not timm.is_model(name.split(".")[0])
    ):
        raise UserError(
            f"{name_of(network)}: timm {timm.__version__} has no such model; --to=encoder and --to=hub "
            "can hold it"
        )
    arguments = {"num_classes": len(encoder.codebook)}
    if network.family == "timm":
        # as llc.backbones builds it; without it, the model takes images of one size alone
        patches = getattr(network.backbone, "patch_embed", None)
        if not getattr(patches, "strict_img_size", True):
            arguments["dynamic_img_size"] = True
    return name, arguments


def _check_fit(timm, name, arguments, state, network):
    """Raises UserError unless names and shapes of the state are those of timm's model."""
    try:
        with torch.device("meta"):
            own = timm.create_model(name, **arguments).state_dict()
    except (RuntimeError, NotImplementedError):  # some constructors compute with values
        own = timm.create_model(name, **arguments).state_dict()
    problems = [f"{key} is missing" for key in own if key not in state]
    problems += [f"{key} is unknown there" for key in state if key not in own]
    problems += [
        f"{key} is {list(state[key].shape)}, there {list(own[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"timm's {name} is not the {network.options['arch']} of {_library(network)}: "
            f"{'; '.join(problems[:3])}{more}; --to=backbone writes it for its own library"
        )


def _library(network):
    return "timm" if network.family == "timm" else "torchvision"


@torch.inference_mode()
def _compare(model, encoder, sample, timm):
    """What to say of timm's outputs beside our class logits. Raises UserError where they differ.

    Models of one name and the same tensors may still compute something else.
    """
    network = encoder.network
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (encoder.preprocessing.mean, encoder.preprocessing.std)
    )
    largest, squares, count, same = 0.0, 0.0, 0, 0
    with evaluating(network):
        for images, _ in sample:
            expected = network.class_logits(network(images))
            found = model((images / 255 - mean) / std)
            largest = max(largest, float((found - expected).abs().max()))
            squares += float(expected.double().square().sum())
            count += expected.numel()
            same += int((found.argmax(1) == expected.argmax(1)).sum())
    # The classifier is one product here and two there, so their rounding differs more than that of z.
    bound = 10 * check.TOLERANCE * (squares / count) ** 0.5
    where = f"timm {timm.__version__} on {sample.num_images:,} images of {sample.title}"
    if not largest <= bound:
        raise UserError(
            f"{where}: its outputs differ from the class logits by up to {largest:.1e}, and rounding "
            f"explains {bound:.1e}; no file is written, because timm's model of this name computes "
            "something else"
        )
    return (
        f"{where}: outputs and class logits differ by at most {largest:.1e}; the class is the same for "
        f"{same:,} of them"
    )
