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

from llc import config as edge
from llc.encoder import load
from llc.errors import UserError
from llc.export import backbone, encoder_file, original
from llc.options import option

# --to -> (its module, whose `write(encoder, path, options)` writes it; the ending of its default name)
FORMS = {
    "original": (original, ""),
    "backbone": (backbone, ".safetensors"),
    "encoder": (encoder_file, ".safetensors"),
}


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
    form, ending = FORMS[options.to]
    path = Path(options.out or Path(options.run) / f"{options.to}{bits}{ending}")
    form.write(encoder, path, options)


if __name__ == "__main__":
    edge.run(main)
