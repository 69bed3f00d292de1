"""A trained model in the forms that other programs load.

    python -m llc.export RUN --to=original                     model_best.pth and codebook.npy, for the code of github.com/RAIVNLab/LLC
    python -m llc.export RUN --to=backbone [--with_classifier] a state dict of torchvision's ResNet (timm's names agree)
    python -m llc.export RUN --to=encoder                      one file for llc.load on another machine

RUN is what llc.load takes; of a run folder, --checkpoint=codebook is the network whose class codes classify, --checkpoint=instance (the
default, once it is there) the one whose codes are compared by Hamming distance; --checkpoint=joint is both.

original    of the codebook or joint stage with its codebook as `fc`; of the instance stage ending at `fc_lr`, for --instance-code with
            --load-codebook=codebook.npy. To be loaded with --pretrained.
backbone    without `fc` (set model.fc = torch.nn.Identity()), or --with_classifier with projection and class codes as one dense `fc`, whose
            logits are the class-code logits. Images are normalised as for torchvision's own weights.

A network with BlurPool has the same names, but not the same function, as one without: it is refused, unless --with_blurpool says that the
reader puts BlurPool in, by llc.network.apply_blurpool(model). Batch norm on z (codes.normalize) goes into the weights and biases of a
--with_classifier; --to=original has no biases, and is refused.
"""

import argparse
from pathlib import Path

import safetensors.torch
import torch

from llc import checkpoints
from llc import config as edge
from llc.codebook import save_codebook
from llc.encoder import load
from llc.errors import UserError
from llc.files import atomic_write
from llc.stages import STAGES

FORMS = ("original", "backbone", "encoder")


def main(argv):
    parser = argparse.ArgumentParser(
        prog="python -m llc.export",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="a run folder, or another model that llc.load takes")
    parser.add_argument("--to", required=True, choices=FORMS)
    parser.add_argument(
        "--out",
        help="original: a folder; else a file, .pth or .safetensors (default: RUN/original, RUN/backbone.safetensors, "
        "RUN/encoder.safetensors)",
    )
    parser.add_argument("--checkpoint", help="of a run folder: instance (default), joint, codebook, ...")
    parser.add_argument("--codebook", help=".npy of real values, in place of the model's own")
    parser.add_argument(
        "--with_classifier",
        action="store_true",
        help="backbone: with a dense fc that gives the class-code logits",
    )
    parser.add_argument(
        "--with_blurpool", action="store_true", help="write a network with BlurPool all the same"
    )
    arguments = parser.parse_args(argv)
    if arguments.with_classifier and arguments.to != "backbone":
        raise UserError(f"--with_classifier belongs to --to=backbone, not to --to={arguments.to}")
    if not arguments.out and not Path(arguments.run).is_dir():
        raise UserError(f"{arguments.run} is no folder to write into: say where, with --out=")
    encoder = load(arguments.run, arguments.codebook, checkpoint=arguments.checkpoint)
    write = {"original": _to_original, "backbone": _to_backbone, "encoder": _to_encoder}[arguments.to]
    write(encoder, arguments)


def _to_original(encoder, arguments):
    network = encoder.network
    _check_blurpool(network, arguments)
    of_codebook = encoder.stage is not None and STAGES[encoder.stage].learns_codebook
    state = checkpoints.to_original(network, with_codebook=of_codebook)
    folder = Path(arguments.out or Path(arguments.run) / "original")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from error
    checkpoint = {"arch": network.options["arch"].replace("resnet", "ResNet"), "state_dict": state}
    atomic_write(folder / "model_best.pth", lambda file: torch.save(checkpoint, file))
    print(
        f"{folder / 'model_best.pth'}: "
        + (
            "class codes: projection fc_lr and codebook fc"
            if of_codebook
            else "instance codes: projection fc_lr, no fc"
        )
    )
    if of_codebook and network.logit_scale != 1:
        print(f"  fc_lr holds the logit scale {network.logit_scale:.4g}: its logits are this model's")
    if network.options["arch"] != "resnet50" or network.options["width"] != 64:
        print(f"  the original code builds ResNet50 alone; this is {_name(network)}")
    if len(encoder.codebook):
        save_codebook(folder / "codebook.npy", encoder.codebook)
        print(f"{folder / 'codebook.npy'}: float32 {list(encoder.codebook.shape)}")


def _to_backbone(encoder, arguments):
    network = encoder.network
    _check_blurpool(network, arguments)
    if network.options["width"] != 64:
        raise UserError(
            f"{arguments.run} is {_name(network)}: torchvision has no such network (--to=encoder or --to=original keep it)"
        )
    if arguments.with_classifier and not len(encoder.codebook):
        raise UserError(
            f"--with_classifier: {arguments.run} holds no codebook; give one with --codebook=FILE.npy"
        )
    state = checkpoints.to_backbone(network, with_classifier=arguments.with_classifier)
    path = Path(arguments.out or Path(arguments.run) / "backbone.safetensors")
    if path.suffix not in (".safetensors", ".pth"):
        raise UserError(f"--out={path}: expected a name that ends in .safetensors or .pth")
    data = safetensors.torch.save(state) if path.suffix == ".safetensors" else None
    atomic_write(path, lambda file: file.write(data) if data is not None else torch.save(state, file))
    print(
        f"{path}: {len(state)} tensors for torchvision.models.{network.options['arch']}"
        + (f"(num_classes={len(encoder.codebook)})" if arguments.with_classifier else ", without fc")
        + (", after llc.network.apply_blurpool" if network.options["use_blurpool"] else "")
    )


def _to_encoder(encoder, arguments):
    path = Path(arguments.out or Path(arguments.run) / "encoder.safetensors")
    encoder.save(path)
    print(f"{path}: {encoder.num_bits} bits, {len(encoder.codebook)} classes, for llc.load")


def _check_blurpool(network, arguments):
    if network.options["use_blurpool"] and not arguments.with_blurpool:
        raise UserError(
            f"{arguments.run} was trained with BlurPool (training.use_blurpool), which a plain {network.options['arch']} does not compute: "
            "its outputs would be others. Add --with_blurpool where the reader calls llc.network.apply_blurpool(model), or go on training "
            f"a plain network from it: model.weights={arguments.run}, training.use_blurpool=false"
        )


def _name(network):
    narrow = f" of width {network.options['width']}" if network.options["width"] != 64 else ""
    return network.options["arch"] + narrow


if __name__ == "__main__":
    edge.run(main)
