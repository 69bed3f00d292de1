"""The forms in which weights come and go, as plain tensors under names; nothing read here can run code.

==========  =====================================================================================================================
ours        `backbone.*` as torchvision names it, `projection.weight` [num_bits, features], `codebook` [num_classes, num_bits]; where chosen
            `normalization.*` (batch norm's statistics of z) and `log_logit_scale`
dense       a torchvision ResNet (timm's names agree): the backbone's names without a prefix, and its classifier `fc.*`
original    the form of the published LLC models (github.com/RAIVNLab/LLC): dense names, but `fc_lr.weight` [num_bits, features, 1, 1] is the
            projection, and `fc.weight` [num_classes, num_bits, 1, 1] the codebook, which models of instance codes do not have
==========  =====================================================================================================================

A file may wrap any of them: in a dict ("network", "state_dict" or "model"), in DataParallel's `module.` or torch.compile's `_orig_mod.`.
The original's network takes -1 for a codebook value of exactly 0, as we do; its codebook *files* are read by its code with +1.
"""

from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torchvision

from llc.codes import binarize
from llc.errors import UserError
from llc.network import RESNETS, Network
from llc.torch_files import read_torch_file

_MAX_LISTED = 20  # keys of each kind in an error


# ------------------------------------------------------------------------------------------------ files


def is_safetensors(path):
    """Whether the file begins as safetensors do: 8 bytes of length, then JSON."""
    try:
        with open(path, "rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_safetensors(path):
    """(tensors by name, metadata: text by name) of a safetensors file. Raises UserError naming the file."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (safetensors.SafetensorError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: not a whole safetensors file: {error}") from error


def read_state(path):
    """{name: tensor} of a .pth or safetensors file in any of the forms, without its wrappings. Raises UserError."""
    return _unwrapped(read_safetensors(path)[0] if is_safetensors(path) else read_torch_file(path), path)


def _unwrapped(state, source):
    for key in ("network", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(value, torch.Tensor) for value in state.values())
    ):
        raise UserError(f"{source}: holds no state dict of tensors")
    return {
        str(name).removeprefix("module.").removeprefix("_orig_mod."): value for name, value in state.items()
    }


# ------------------------------------------------------------------------------------------------ into our network


def is_ours(state):
    return any(name.startswith("backbone.") for name in state)


def is_original(state):
    return "fc_lr.weight" in state


def from_original(state, source):
    """The original's form -> ours; without `codebook` where the model ends at its projection. Raises UserError."""
    state = dict(state)
    converted = {"projection.weight": _as_matrix(state, "fc_lr.weight", source)}
    if "fc.weight" in state:
        converted["codebook"] = _as_matrix(state, "fc.weight", source)
    return converted | {f"backbone.{name}": value for name, value in state.items()}


def _as_matrix(state, name, source):
    weight = state.pop(name)
    if weight.ndim not in (2, 4) or weight.shape[2:].numel() != 1:
        raise UserError(
            f"{source}: {name} is {list(weight.shape)}; expected a 1x1 convolution [out, in, 1, 1]"
        )
    return weight.flatten(1)


def fit(module, state, source, *, without=()):
    """Loads `state` into `module`, whose names and shapes it must have exactly, but for those `without`.

    Raises UserError that lists the keys.
    """
    problems = _problems(module, state, without)
    if problems:
        raise UserError(f"{source} does not fit: {_listed(problems)}")
    module.load_state_dict(state, strict=False)


def _problems(module, state, without):
    """[(what is wrong, keys)] between a module and a state.

    Batch norm's counters may be missing: files from before PyTorch 0.4.1 have none, and nothing here uses them.
    """
    wanted = {name: value.shape for name, value in module.state_dict().items() if name not in without}
    problems = [
        (
            "missing",
            [name for name in wanted if name not in state and not name.endswith(".num_batches_tracked")],
        ),
        ("unknown", [name for name in state if name not in wanted]),
        (
            "of another shape",
            [
                f"{name} ({list(state[name].shape)} in the file, {list(shape)} here)"
                for name, shape in wanted.items()
                if name in state and state[name].shape != shape
            ],
        ),
    ]
    return [(what, names) for what, names in problems if names]


def _listed(problems):
    return "; ".join(f"{len(names)} keys {what}: {_some(names)}" for what, names in problems)


def _some(names):
    return ", ".join(names[:_MAX_LISTED]) + (
        f", and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    )


def load_weights(network, source, arch):
    """Starts `network` from `source`: a run folder, a file in any form (an encoder saved by llc too), or the name of weights of
    torchvision's `arch` (IMAGENET1K_V1, downloaded). The codebook is never taken from here.

    Returns one line that says what was loaded and what was left out. Raises UserError, listing the keys, when they do not fit.
    """
    path, title = Path(source), f"model.weights = {source}"
    if path.is_dir():
        candidates = [path / "checkpoints" / f"{name}.pth" for name in ("codebook", "joint", "instance")]
        path = next((c for c in candidates if c.exists()), candidates[0])
    if path.exists():
        state = read_state(path)
    else:
        names = torchvision.models.get_model_weights(arch).__members__
        if source not in names:
            raise UserError(
                f"{title}: neither a file, nor a run folder, nor weights of torchvision's {arch} ({', '.join(names)})"
            )
        try:
            state = names[source].get_state_dict()
        except Exception as error:
            raise UserError(f"{title}: the download failed: {error}") from error
    original = is_original(state)
    if original:
        state = from_original(state, title)
    if is_ours(state):
        left_out = (
            ["its codebook left out (codes.init_codebook takes one)"]
            if state.pop("codebook", None) is not None
            else []
        )
        if ("normalization.running_mean" in state) != (network.options["normalize"] == "batchnorm"):
            other = {"none": "batchnorm", "batchnorm": "none"}[network.options["normalize"]]
            raise UserError(
                f"{title} was trained with codes.normalize = {other}, here it is {network.options['normalize']}: "
                f"give --codes.normalize={other}"
            )
        learnable = (
            network.options["logit_scale"] == "learnable"
        )  # one that the file has not starts as in any run
        if not learnable and state.pop("log_logit_scale", None) is not None:
            left_out.append("its logit scale left out (codes.logit_scale=learnable takes it)")
        fit(
            network,
            state,
            f"{title}, into {arch}",
            without=("codebook",) if "log_logit_scale" in state else ("codebook", "log_logit_scale"),
        )
        said = [f"network weights from {path}" + (", a model of the original LLC code" if original else "")]
    else:
        classifier = [name for name in ("fc.weight", "fc.bias") if state.pop(name, None) is not None]
        left_out = [f"its dense classifier left out ({', '.join(classifier)})"] if classifier else []
        fit(network.backbone, state, f"{title}, into {arch}")
        said = [f"backbone weights from {source}"]
    return ", ".join(said + left_out)


def options_of(state, source):
    """The arguments of Network that fit a state of our names, found by its shapes. Raises UserError where no ResNet has them.

    What shapes cannot tell is as in the original: no BlurPool, class logits not scaled.
    """
    try:
        width, num_bits = len(state["backbone.conv1.weight"]), len(state["projection.weight"])
        num_classes = len(state["codebook"]) if "codebook" in state else 0
    except (KeyError, TypeError):
        raise UserError(f"{source}: not a ResNet with a projection; its keys: {_some(list(state))}") from None
    nearest = None
    for arch in ("resnet50", *RESNETS) if width == 64 else ("resnet18", "resnet34"):
        options = {"arch": arch, "num_bits": num_bits, "num_classes": num_classes, "width": width}
        with torch.device("meta"):  # shapes alone: however large the file claims to be, nothing is allocated
            problems = _problems(Network(**options), state, without=() if num_classes else ("codebook",))
        if not problems:
            return options
        if nearest is None or _count(problems) < _count(nearest[1]):
            nearest = arch, problems
    raise UserError(
        f"{source} is none of the ResNets of torchvision; the nearest, {nearest[0]}, has other keys: {_listed(nearest[1])}"
    )


def build(options, state, source):
    """Network(**options) with the values of a state of our names. Both may come from a file. Raises UserError."""
    without = () if "codebook" in state else ("codebook",)
    try:
        with torch.device("meta"):  # shapes alone: nothing is allocated for a size that is only claimed
            problems = _problems(Network(**options), state, without)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise UserError(f"{source}: no network can be built as it says, {options}: {error}") from error
    if problems:
        raise UserError(f"{source} does not fit the network it describes, {options}: {_listed(problems)}")
    network = Network(**options)
    fit(network, state, source, without=without)
    return network


def _count(problems):
    return sum(len(names) for _, names in problems)


# ------------------------------------------------------------------------------------------------ out of our network


def to_original(network, *, with_codebook):
    """Our network -> the original's state dict, for its ResNet within DataParallel.

    with_codebook: for a network of class codes, whose forward gives class logits. There the logit scale, which the original does not
    have, goes into the projection, so that its logits are ours. Without, it gives our z. Raises UserError for batch norm on z: there is
    no place for the mean that it takes away.
    """
    if network.options["normalize"] != "none":
        raise UserError(
            "codes.normalize = batchnorm: the original's projection has no bias, which batch norm on z would need there; --to=encoder "
            "keeps it, and --to=backbone --with_classifier has the bias"
        )
    scale = network.logit_scale if with_codebook else 1.0
    state = {f"module.{name}": value for name, value in network.backbone.state_dict().items()}
    state["module.fc_lr.weight"] = (scale * network.projection.weight.detach())[:, :, None, None]
    if with_codebook:
        state["module.fc.weight"] = network.codebook.detach()[:, :, None, None]
    return plain(state)


def to_backbone(network, *, with_classifier):
    """Our network -> the state dict of torchvision's model of that name.

    Without its `fc`, or with_classifier with one that is our class logits in a single layer: logit_scale sign(C) P, and a bias only where
    z goes through batch norm: then P is (P - mean) / sqrt(variance + eps).
    """
    state = dict(network.backbone.state_dict())
    if with_classifier:
        weight = network.logit_scale * binarize(network.codebook.detach())
        bias = weight.new_zeros(len(weight))
        if network.options["normalize"] == "batchnorm":
            norm = network.normalization
            weight = weight / (norm.running_var + norm.eps).sqrt()
            bias = -weight @ norm.running_mean
        state["fc.weight"], state["fc.bias"] = weight @ network.projection.weight.detach(), bias
    return plain(state)


def plain(state):
    """On the CPU, each tensor with its own memory in the usual order: what any program can read."""
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
    }
