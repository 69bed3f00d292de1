"""Writes a trained model in the forms that other programs load.

    python -m llc.export RUN --to=original                      for the code of github.com/RAIVNLab/LLC
    python -m llc.export RUN --to=backbone [--with_classifier]  a state dict for torchvision, timm or a plugin
    python -m llc.export RUN --to=encoder                       one file, for llc.load on another machine
    python -m llc.export RUN --to=encoder --num_bits=8          the same for the first 8 bits of the codes

RUN is a run folder, or another model that llc.load takes. Of a run folder, --checkpoint=codebook is the
network whose class codes classify, --checkpoint=instance (the default where it exists) the one whose codes
are compared by Hamming distance, and --checkpoint=joint is both.

original    model_best.pth and codebook.npy, to be loaded with --pretrained. A network of the codebook or
            joint stage has its codebook as `fc`; one of the instance stage ends at `fc_lr`, for
            --instance-code with --load-codebook=codebook.npy. ResNets only.
backbone    The model without its classifier (in torchvision's ResNets `fc`; replace it by
            torch.nn.Identity()). With --with_classifier, the projection and the class codes are that
            classifier, a single layer whose logits are the class-code logits. Images are normalised as for
            torchvision's own weights.

A network with BlurPool has the same names as one without, but computes another function. It is refused,
unless --with_blurpool says that the reader calls llc.network.apply_blurpool(model). Batch norm on z
(codes.normalize) goes into the weight and the bias of --with_classifier; --to=original, which has no bias,
refuses it.
"""

import dataclasses
from pathlib import Path

import safetensors.torch
import torch

from llc import checkpoints
from llc import config as edge
from llc.codebook import save_codebook
from llc.encoder import OF_ORIGINAL, load
from llc.errors import UserError
from llc.files import atomic_write
from llc.options import option
from llc.stages import STAGES

FORMS = {"original": "", "backbone": ".safetensors", "encoder": ".safetensors"}  # endings of default names


@dataclasses.dataclass(frozen=True)
class Options:
    """What is written, and where."""

    run: str = option(positional=True, help="a run folder, or another model that llc.load takes")
    to: str = option(choices=tuple(FORMS), help="the form")
    out: str = option(
        "",
        help="original: a folder; backbone: a .pth or .safetensors file; encoder: a .safetensors file; "
        "empty: RUN/original, RUN/backbone.safetensors or RUN/encoder.safetensors; with --num_bits=8 "
        "RUN/original_8bit and so on",
    )
    checkpoint: str = option(
        "", help="of a run folder: instance, joint, codebook, ...; empty: the last of them"
    )
    num_bits: int = option(0, minimum=0, help="use only this many bits of each code, the first ones; 0: all")
    codebook: str = option("", help="use this codebook, .npy of real values, instead of the model's own")
    with_classifier: bool = option(
        False, help="backbone: add the classifier, one layer that gives the class-code logits"
    )
    with_blurpool: bool = option(False, help="write a network with BlurPool all the same")


def main(argv):
    options = edge.read_one(Options, argv, description=__doc__)
    if options.with_classifier and options.to != "backbone":
        raise UserError(f"--with_classifier belongs to --to=backbone, not to --to={options.to}")
    if options.num_bits and options.to == "backbone" and not options.with_classifier:
        raise UserError(
            f"--num_bits={options.num_bits}: without --with_classifier, a backbone has no codes; leave "
            "--num_bits out"
        )
    if not options.out and not Path(options.run).is_dir():
        raise UserError(f"{options.run} is no folder to write into: say where, with --out=")
    encoder = load(
        options.run,
        options.codebook or None,
        checkpoint=options.checkpoint or None,
        num_bits=options.num_bits or None,
    )
    bits = f"_{options.num_bits}bit" if options.num_bits else ""
    path = Path(options.out or Path(options.run) / f"{options.to}{bits}{FORMS[options.to]}")
    write = {"original": _to_original, "backbone": _to_backbone, "encoder": _to_encoder}[options.to]
    write(encoder, path, options)


def _to_original(encoder, folder, options):
    encoder.check_codes()
    network = encoder.network
    _check_blurpool(network, options)
    of_codebook = encoder.stage is not None and STAGES[encoder.stage].learns_codebook
    state = checkpoints.to_original(network, with_codebook=of_codebook)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from error
    checkpoint = {"arch": network.options["arch"].replace("resnet", "ResNet"), "state_dict": state}
    atomic_write(folder / "model_best.pth", lambda file: torch.save(checkpoint, file))
    what = "class codes: projection fc_lr and codebook fc" if of_codebook else None
    print(f"{folder / 'model_best.pth'}: {what or 'instance codes: projection fc_lr, no fc'}")
    if of_codebook and network.logit_scale != 1:
        print(f"  fc_lr includes the logit scale {network.logit_scale:.4g}, so the logits are this model's")
    if network.options["arch"] != "resnet50" or network.options["width"] != 64:
        print(f"  the original code builds ResNet50 alone; this is {_name(network)}")
    if encoder.preprocessing.resolution != OF_ORIGINAL.resolution:
        side, ratio = encoder.preprocessing.resolution, encoder.preprocessing.crop_ratio
        print(
            f"  this network was evaluated at {side} pixels, but the file cannot say so, and readers take "
            f"{OF_ORIGINAL.resolution}; for llc.evaluate --original add --validation.resolution={side} "
            f"--validation.crop_ratio={ratio:g} --validation.resize={encoder.preprocessing.resize}"
        )
    if len(encoder.codebook):
        save_codebook(folder / "codebook.npy", encoder.codebook)
        print(f"{folder / 'codebook.npy'}: float32 {list(encoder.codebook.shape)}")


def _to_backbone(encoder, path, options):
    network = encoder.network
    _check_blurpool(network, options)
    if network.options["width"] != 64:
        raise UserError(
            f"{options.run} is {_name(network)}: torchvision has no such network "
            "(--to=encoder and --to=original can hold it)"
        )
    if options.with_classifier and not len(encoder.codebook):
        raise UserError(
            f"--with_classifier: {options.run} holds no codebook; give one with --codebook=FILE.npy"
        )
    state = checkpoints.to_backbone(network, with_classifier=options.with_classifier)
    if path.suffix not in (".safetensors", ".pth"):
        raise UserError(f"--out={path}: expected a name that ends in .safetensors or .pth")
    data = safetensors.torch.save(state) if path.suffix == ".safetensors" else None
    atomic_write(path, lambda file: file.write(data) if data is not None else torch.save(state, file))
    num_classes = len(encoder.codebook) if options.with_classifier else None
    print(
        f"{path}: {len(state)} tensors for {_constructor(network, num_classes)}"
        + ("" if options.with_classifier else f", without {network.classifier}")
        + (", after llc.network.apply_blurpool" if network.options["use_blurpool"] else "")
    )


def _to_encoder(encoder, path, options):
    encoder.save(path)
    print(f"{path}: {encoder.num_bits} bits, {len(encoder.codebook)} classes, for llc.load")


def _check_blurpool(network, options):
    if network.options["use_blurpool"] and not options.with_blurpool:
        raise UserError(
            f"{options.run} was trained with BlurPool (training.use_blurpool). A plain "
            f"{network.options['arch']} has none, and its outputs would differ. Add --with_blurpool if the "
            "reader calls llc.network.apply_blurpool(model), or train a plain network further from it: "
            f"model.weights={options.run}, training.use_blurpool=false"
        )


def _constructor(network, num_classes):
    """How the reader builds the model, in words; num_classes: None for a model without its classifier."""
    arch = network.options["arch"]
    given = "" if num_classes is None else f"num_classes={num_classes}"
    if network.family == "registered":
        return f"the plugin's {arch}" + (f" with {given}" if given else "")
    if network.family == "timm":
        return f"timm.create_model({', '.join(filter(None, (repr(arch.removeprefix('timm:')), given)))})"
    return f"torchvision.models.{arch}" + (f"({given})" if given else "")


def _name(network):
    narrow = f" of width {network.options['width']}" if network.options["width"] != 64 else ""
    return network.options["arch"] + narrow


if __name__ == "__main__":
    edge.run(main)
