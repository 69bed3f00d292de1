"""Writes a trained model in the forms that other programs load.

    python -m llc.export RUN --to=original                      for the code of github.com/RAIVNLab/LLC
    python -m llc.export RUN --to=backbone [--with_classifier]  a state dict for torchvision, timm or a plugin
    python -m llc.export RUN --to=encoder                       one file, for llc.load on another machine
    python -m llc.export RUN --to=encoder --num_bits=8          the same for the first 8 bits of the codes
    python -m llc.export RUN --to=onnx [--quantize=int8]        images to packed codes, in any runtime of ONNX
    python -m llc.export RUN --to=torch                         the same as a program of torch.export
    python -m llc.export RUN --to=timm                          a state dict for timm.create_model
    python -m llc.export RUN --to=hub --out=DIR                 a folder for the Hugging Face Hub

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
hub         A folder that llc.load takes, here or as hf://OWNER/NAME once `hf upload OWNER/NAME DIR` has put
            it on the Hugging Face Hub: model.safetensors, config.json, and README.md, a model card with the
            run's figures. Names of folders are left out. --repo, --license and --datasets go into the card.
onnx        A graph from images, uint8 [n, 3, resolution, resolution] as Encoder.preprocess returns them, to
            packed codes, uint8 [n, ceil(num_bits / 8)], for any n. Normalisation, and the mean over mirror
            images where the model has it, are in the graph. --outputs=codes,z,class,mhd,posterior chooses
            more outputs. Before the file gets its name, onnxruntime runs it beside the model on the images of
            --check. --quantize=int8 also writes a file of 8-bit weights and activations, and prints the
            accuracy of both.
torch       The same graph for torch.export.load, which needs torch alone.
timm        As backbone with --with_classifier, if timm has the model: names and shapes are compared with
            timm's own, and its outputs with the class logits.

A network with BlurPool has the same names as one without, but computes another function. It is refused,
unless --with_blurpool says that the reader calls llc.network.apply_blurpool(model). Batch norm on z
(codes.normalize) goes into the weight and the bias of --with_classifier; --to=original, which has no bias,
refuses it. Onnx and torch hold both as they are.
"""

import dataclasses
from pathlib import Path

from llc import config as edge
from llc import runs
from llc.data.reading import Reading
from llc.data.sources import SPLITS
from llc.encoder import load
from llc.errors import UserError
from llc.export import backbone, encoder_file, hub, onnx_model, original, timm_model, torch_program
from llc.export.graph import OUTPUTS
from llc.hub import is_address
from llc.options import option

# --to -> (its module, whose `write(encoder, path, options)` writes it; the ending of its default name)
FORMS = {
    "original": (original, ""),
    "backbone": (backbone, ".safetensors"),
    "encoder": (encoder_file, ".safetensors"),
    "onnx": (onnx_model, ".onnx"),
    "torch": (torch_program, ".pt2"),
    "timm": (timm_model, ".safetensors"),
    "hub": (hub, ""),
}
_STEMS = {"onnx": "model", "torch": "model"}  # of default names, where they are not called as the form
_GRAPHS, _CHECKED = ("onnx", "torch"), ("onnx", "torch", "timm")
# flags that only some forms have
_OWN = {
    "with_classifier": ("backbone",),
    "outputs": _GRAPHS,
    "check": _CHECKED,
    "check_images": _CHECKED,
    **{field.name: _CHECKED for field in dataclasses.fields(Reading)},
    "quantize": ("onnx",),
    "calibration": ("onnx",),
    "calibration_images": ("onnx",),
    "calibration_split": ("onnx",),
    "repo": ("hub",),
    "license": ("hub",),
    "datasets": ("hub",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Reading):
    """What is written, and where."""

    run: str = option(positional=True, help="a run folder, or another model that llc.load takes")
    to: str = option(choices=tuple(FORMS), help="the form")
    out: str = option(
        "",
        help="original, hub: a folder; backbone, timm: a .pth or .safetensors file; encoder: a .safetensors "
        "file; onnx: an .onnx file; torch: a .pt2 file; empty: RUN/original, RUN/backbone.safetensors, "
        "RUN/model.onnx and so on; with --num_bits=8 RUN/original_8bit and so on",
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
    outputs: tuple[str, ...] = option(
        ("codes",),
        choices=tuple(OUTPUTS),
        help="onnx, torch: what the graph gives: codes; z; class (class_labels, class_logits), by class "
        "codes; mhd (mhd_labels, mhd_distances); posterior (posterior_labels, posterior_probabilities)",
    )
    check: str = option(
        "",
        help="onnx, torch, timm: images on which the result is compared with the model, whatever llc.encode "
        "takes; none: on none; empty: a run's val set, if it is there",
    )
    check_images: int = option(
        512, minimum=0, help="how many of them, evenly spaced over all; 0: all of them"
    )
    quantize: str = option(
        "none", choices=("none", "int8"), help="onnx: int8: also write FILE_int8.onnx, quantised statically"
    )
    calibration: str = option(
        "",
        help="images that show the quantisation how large activations become; empty: a run's train set, if "
        "it is there",
    )
    calibration_images: int = option(
        256, minimum=1, help="how many of them, evenly spaced over all; more take more time"
    )
    calibration_split: str = option(
        "train", choices=SPLITS, help="which of them, where --calibration holds several splits"
    )
    repo: str = option("", help="hub: the repository's name, OWNER/NAME, for the model card")
    license: str = option("", help="hub: the licence's identifier, such as mit or apache-2.0")
    datasets: tuple[str, ...] = option(
        (), help="hub: the train images' data set on the Hub, such as OWNER/NAME; several: by commas"
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            forms = _OWN.get(field.name)
            if forms and self.to not in forms and getattr(self, field.name) != field.default:
                raise UserError(f"--{field.name} is for --to={', '.join(forms)}, not for --to={self.to}")
        if not self.outputs:
            raise UserError(f"--outputs= is empty: expected some of {', '.join(OUTPUTS)}")
        if len(set(self.outputs)) < len(self.outputs):
            raise UserError(f"--outputs={','.join(self.outputs)}: name each output once")
        if self.quantize == "none":
            for flag in ("calibration", "calibration_images", "calibration_split"):
                if getattr(self, flag) != getattr(type(self), flag):
                    raise UserError(f"--{flag} is for --quantize=int8")


def main(argv):
    options = edge.read_one(Options, argv, description=__doc__)
    if options.num_bits and options.to == "backbone" and not options.with_classifier:
        raise UserError(
            f"--num_bits={options.num_bits}: without --with_classifier, a backbone has no codes; leave "
            "--num_bits out"
        )
    if not options.out and not runs.is_folder(options.run):
        if not (is_address(options.run) or Path(options.run).exists()):
            raise UserError(f"{options.run} does not exist; name a run folder, or another model")
        raise UserError(
            f"{options.run}: only a run folder has a place for what is exported; name one with --out="
        )
    encoder = load(
        options.run,
        options.codebook or None,
        checkpoint=options.checkpoint or None,
        num_bits=options.num_bits or None,
    )
    if options.num_bits and "posterior" in options.outputs and "posterior" not in encoder.learnt:
        raise UserError(
            f"--outputs=posterior: the decoder is for whole codes, not for the first {options.num_bits} "
            "bits: leave out either"
        )
    bits = f"_{options.num_bits}bit" if options.num_bits else ""
    form, ending = FORMS[options.to]
    stem = _STEMS.get(options.to, options.to)
    path = Path(options.out or Path(options.run) / f"{stem}{bits}{ending}")
    form.write(encoder, path, options)


if __name__ == "__main__":
    edge.run(main)
