"""The forms in which weights come and go, as plain tensors under names; nothing read here can run code.

========  ====================================================================================================
ours      `backbone.*` as the backbone's library names it, `projection.weight` [num_bits, features],
          `codebook` [num_classes, num_bits]; where chosen, `hidden.*` (the layer before the projection),
          `normalization.*` (batch norm's statistics of z) and `log_logit_scale`
dense     a whole model of torchvision, timm or a plugin: the backbone's names without a prefix, and those
          of its classifier, such as `fc.*` (timm's names of ResNets are torchvision's)
original  the form of the published LLC models (github.com/RAIVNLab/LLC), ResNets only: dense names, but
          `fc_lr.weight` [num_bits, features, 1, 1] is the projection, and `fc.weight` [num_classes,
          num_bits, 1, 1] the codebook, which models of instance codes do not have
========  ====================================================================================================

A file may wrap any of them, in any order and depth: in dicts, such as "state_dict" or "model_ema"; in a
prefix of all names, such as DataParallel's `module.`, Lightning's `model.`, or the `module.` of a moving
average (torch.optim.swa_utils) with its `n_averaged`; in torch.compile's `_orig_mod.`. Weights must be
finite floating-point numbers. A codebook value of exactly 0 counts as -1 in the original's network, as it
does here; the original's code reads 0 in codebook *files* as +1.
"""

import hashlib

import safetensors
import safetensors.torch
import torch

from llc import backbones, hub
from llc.codes import binarize
from llc.errors import UserError
from llc.network import Network
from llc.torch_files import read_torch_file

FITTED = "fitted."  # in a saved encoder, before the names of what decoders learnt
_MAX_LISTED = 20  # keys of each kind that an error names


# ------------------------------------------------------------------------------------------------ files


def is_safetensors(path):
    """Whether the file begins as safetensors files do: 8 bytes of length, then JSON."""
    try:
        with open(path, "rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_safetensors(path):
    """(tensors by name, metadata texts by name) of a safetensors file. Raises UserError."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (safetensors.SafetensorError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: not a whole safetensors file: {error}") from error


def read_state(path):
    """{name: tensor} of a .pth or safetensors file in any of the forms, unwrapped. Raises UserError.

    What decoders learnt, which a saved encoder may hold, is left out.
    """
    if not is_safetensors(path):
        return _unwrapped(read_torch_file(path), path)
    tensors, _ = read_safetensors(path)
    return _unwrapped({name: t for name, t in tensors.items() if not name.startswith(FITTED)}, path)


def read_stage(path):
    """The name of the stage whose network a run's `model_best` holds, or None if it says none."""
    content = read_torch_file(path)
    name = content.get("stage") if isinstance(content, dict) else None
    return name if isinstance(name, str) else None


# Keys under which files hold a state dict. Where a file has several, the first in this order is taken: the
# weights themselves before their moving average.
_CONTAINERS = (
    "network", "state_dict", "model", "model_state_dict", "module", "weights",
    "model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "ema",
)  # fmt: skip
# Taken off where all names begin with it.
_PREFIXES = ("module.", "model.", "network.", "model_ema.", "ema_model.", "ema.")
# Parts that only wrappers put into names, at any place: torch.compile, FSDP, activation checkpoints.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_MAX_DEPTH = 16  # of dicts in each other; a file may hold one that holds itself


def _unwrapped(state, source):
    for _ in range(_MAX_DEPTH):
        if isinstance(state, dict):
            state = next((state[key] for key in _CONTAINERS if isinstance(state.get(key), dict)), state)
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(value, torch.Tensor) for value in state.values())
    ):
        raise UserError(f"{source}: holds no state dict of tensors")
    for name, value in state.items():
        if value.layout != torch.strided or value.is_quantized:
            kind = "quantised" if value.is_quantized else str(value.layout).removeprefix("torch.")
            raise UserError(
                f"{source}: {name} is a tensor of layout {kind}; expected plain floating-point numbers"
            )
    return _without_wrappers({str(name): value for name, value in state.items()})


def _without_wrappers(state):
    """The same tensors under the names that they have without wrappers."""
    for wrapper in _WRAPPERS:
        state = {name.replace(wrapper, ""): value for name, value in state.items()}
    while True:
        if len(state) > 1:
            state.pop("n_averaged", None)  # how many steps a moving average has seen
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None)
        if prefix is None:
            return state
        state = {name.removeprefix(prefix): value for name, value in state.items()}


# ------------------------------------------------------------------------------------------ into our network


def is_ours(state):
    return any(name.startswith("backbone.") for name in state)


def is_original(state):
    return "fc_lr.weight" in state


def from_original(state, source):
    """The original's form -> ours. Raises UserError.

    There is no `codebook` in the result if the model ends at its projection.
    """
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
    """Loads `state` into `module`. Names and shapes must agree exactly, except for the names in `without`.

    Raises UserError that lists the keys which do not agree, or whose values are no weights.
    """
    problems = _problems(module, state, without)
    if problems:
        raise UserError(f"{source} does not fit: {_listed(problems)}")
    problems = _bad_values(module, state, without)
    if problems:
        raise UserError(f"{source} holds no usable weights: {_listed(problems)}")
    module.load_state_dict(state, strict=False)


def _bad_values(module, state, without):
    """[(what is wrong, keys)] of tensors that are no weights: of another type, or NaN or infinite.

    Integers and complex numbers are not converted, because their scale or their imaginary part would be lost.
    """
    kind, finite = [], []
    for name, wanted in module.state_dict().items():
        if name in without or name not in state or not wanted.is_floating_point():
            continue
        value = state[name]
        if not value.is_floating_point():
            kind.append(f"{name} ({str(value.dtype).removeprefix('torch.')})")
        elif not torch.isfinite(value.to(wanted.dtype)).all():
            finite.append(name)
    problems = [
        ("of a type other than floating-point numbers", kind),
        ("with NaN or infinite values", finite),
    ]
    return [(what, names) for what, names in problems if names]


def _problems(module, state, without):
    """[(what is wrong, keys)] between a module and a state.

    Batch norm's counters may be missing, because files from before PyTorch 0.4.1 have none and nothing here
    uses them.
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


def load_weights(network, source, arch, dense_first=False):
    """Starts `network` from `source`; the codebook is never taken from here.

    source: a run folder; a file in any form, also an encoder that llc saved; a folder of llc.export --to=hub,
    or its address (llc.hub); or the name of published weights of the backbone `arch`, which are downloaded
    (llc.backbones.published_weights). dense_first: the network is that of a dense stage; of a run with
    several stages its dense one is taken, and a projection for other classes, or for codes, is left out.

    Returns one line that says what was loaded and what was left out. Raises UserError that lists the keys
    if they do not fit.
    """
    title = _title(source)
    state, where, original = _read_weights(source, arch, dense_first)
    if not is_ours(state):
        backbone, classifier = _parted(network, state)
        left_out = [f"its dense classifier left out ({', '.join(classifier)})"] if classifier else []
        fit(network.backbone, backbone, f"{title}, into {arch}")
        return ", ".join([f"backbone weights from {source}", *left_out])
    projection = state.get("projection.weight")
    if dense_first and projection is not None and projection.shape != network.projection.weight.shape:
        # The dense stage learns a classifier of its own classes.
        fit(network.backbone, _backbone_of(state), f"{title}, into {arch}")
        return f"backbone weights from {where}, its projection left out ({len(projection):,} outputs)"
    left_out = (
        ["its codebook left out (codes.init_codebook takes one)"]
        if state.pop("codebook", None) is not None
        else []
    )
    _check_same_layers(network, state, title)
    # A learnable scale that the file does not have keeps its initial value.
    learnable = network.options["logit_scale"] == "learnable"
    if not learnable and state.pop("log_logit_scale", None) is not None:
        left_out.append("its logit scale left out (codes.logit_scale=learnable takes it)")
    fit(
        network,
        state,
        f"{title}, into {arch}",
        without=("codebook",) if "log_logit_scale" in state else ("codebook", "log_logit_scale"),
    )
    said = f"network weights from {where}" + (", a model of the original LLC code" if original else "")
    return ", ".join([said, *left_out])


def load_backbone(network, source, arch):
    """Starts the backbone of `network` from `source`, as `load_weights` takes it, and finds its classifier.

    Returns (weight float32 [classes, num_features], bias float32 [classes]) of the linear layer that gives
    its class logits from features. Of a whole model that is its last layer; of a network of ours it is
    sign(C) P, with batch norm on z in it, without the logit scale, which a file does not tell.

    Raises UserError if the weights do not fit, or if there is no such layer.
    """
    title = _title(source)
    state, _, _ = _read_weights(source, arch, dense_first=True)
    if is_ours(state):
        backbone = _backbone_of(state)
        weight, bias = class_layer(state, title)
    else:
        backbone, classifier = _parted(network, state)
        weight = classifier.get(f"{network.classifier}.weight")
        bias = classifier.get(f"{network.classifier}.bias")
    fit(network.backbone, backbone, f"{title}, into {arch}")
    if weight is None or weight.ndim != 2 or weight.shape[1] != network.num_features:
        found = f"is {list(weight.shape)}" if weight is not None else "is missing"
        raise UserError(
            f"{title}: {network.classifier}.weight {found}; a classifier [classes, {network.num_features}] "
            "is needed to make a codebook from it"
        )
    weight = weight.float()
    bias = weight.new_zeros(len(weight)) if bias is None else bias.float()
    if bias.shape != weight.shape[:1] or not torch.isfinite(weight).all() or not torch.isfinite(bias).all():
        raise UserError(f"{title}: its classifier has NaN or infinite values, or a bias of another length")
    return weight, bias


def class_layer(state, title):
    """The linear layer that gives the class logits of a state of our names from features, but their scale.

    (weight float32 [classes, num_features], bias float32 [classes]). Raises UserError, which begins with the
    title, where there is no such layer.
    """
    if "hidden.0.weight" in state:
        raise UserError(
            f"{title}: it has a layer before the projection (codes.hidden, codes.head), so its class "
            "logits are no linear function of the features, and no codebook can be made from them"
        )
    try:
        weight = binarize(state["codebook"].float())
        bias = weight.new_zeros(len(weight))
        if "normalization.running_mean" in state:
            mean, variance = (state[f"normalization.running_{name}"].float() for name in ("mean", "var"))
            weight = weight / (variance + torch.nn.BatchNorm1d(1).eps).sqrt()
            bias = -weight @ mean
        return weight @ state["projection.weight"].float(), bias
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{title}: it has no class codes and projection that fit: {error}") from error


def _title(source):
    return f"model.weights = {source}"


def _read_weights(source, arch, dense_first=False):
    """(state, where it was read, whether it is the original's form) of model.weights. Raises UserError.

    dense_first: of a run with several stages, that of its dense stage.
    """
    path, title = hub.find(source), _title(source)
    if hub.is_folder(path):
        path = hub.model_file(path)
    elif path.is_dir():
        names = ["codebook", "joint", "instance"]
        names.insert(0 if dense_first else len(names), "dense")
        candidates = [path / "checkpoints" / f"{name}.pth" for name in names]
        path = next((c for c in candidates if c.exists()), candidates[0])
    if path.exists():
        state = read_state(path)
    else:
        published = backbones.published_weights(arch)
        if source not in published:
            names = ", ".join(published) or "it has none"
            raise UserError(
                f"{title}: neither a file, nor a run folder, nor published weights of {arch} ({names})"
            )
        try:
            state = published[source]()
        except UserError:  # these weights do not fit
            raise
        except Exception as error:  # a download, or a plugin's function, may raise anything
            raise UserError(f"{title}: the download failed: {error}") from error
    original = is_original(state)
    return (from_original(state, title) if original else state), path, original


def _backbone_of(state):
    """The backbone of a state of our names, by its own names."""
    prefix = "backbone."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _parted(network, state):
    """(backbone, classifier), both {name: tensor}, of a whole model's state."""
    state = _as_named_in(network.backbone, state)
    names = [f"{network.classifier}.{name}" for name in ("weight", "bias")]
    classifier = {name: state.pop(name) for name in names if name in state}
    return state, classifier


def _check_same_layers(network, state, title):
    """Raises UserError if a state of our names has layers after the backbone that the network lacks."""
    if ("normalization.running_mean" in state) != (network.options["normalize"] == "batchnorm"):
        other = {"none": "batchnorm", "batchnorm": "none"}[network.options["normalize"]]
        raise UserError(
            f"{title} was trained with codes.normalize = {other}, but here it is "
            f"{network.options['normalize']}: give --codes.normalize={other}"
        )
    head = "expected" if "hidden.0.bias" in state else "linear"
    if head != network.options["head"]:
        raise UserError(
            f"{title} was trained with codes.head = {head}, but here it is {network.options['head']}: give "
            f"--codes.head={head}"
        )
    if head == "expected":
        return
    width = state["hidden.0.weight"].shape[:1].numel() if "hidden.0.weight" in state else 0
    if width != network.options["hidden"]:
        raise UserError(
            f"{title} was trained with codes.hidden = {width}, but here it is {network.options['hidden']}: "
            f"give --codes.hidden={width}"
        )


def _as_named_in(module, state):
    """A state whose names got back a prefix that _without_wrappers took off, if all of the module's have it.

    A plugin's backbone may hold everything under `model.`.
    """
    wanted = module.state_dict()
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in wanted) and not wanted.keys() & state.keys():
            return {prefix + name: value for name, value in state.items()}
    return state


def options_of(state, source):
    """The arguments of Network that fit a state of our names, found from its shapes. Raises UserError.

    Only ResNets are found. What shapes cannot tell is as in the original: no BlurPool, and no factor of the
    class logits.
    """
    try:
        width, num_bits = len(state["backbone.conv1.weight"]), len(state["projection.weight"])
        num_classes = len(state["codebook"]) if "codebook" in state else 0
    except (KeyError, TypeError):
        keys = _some(list(state))
        raise UserError(f"{source}: not a ResNet with a projection; its keys: {keys}") from None
    nearest = None
    for arch in ("resnet50", *backbones.resnets()) if width == 64 else ("resnet18", "resnet34"):
        options = {"arch": arch, "num_bits": num_bits, "num_classes": num_classes, "width": width}
        with torch.device("meta"):  # allocates nothing, however large the file claims to be
            problems = _problems(Network(**options), state, without=() if num_classes else ("codebook",))
        if not problems:
            return options
        if nearest is None or _count(problems) < _count(nearest[1]):
            nearest = arch, problems
    raise UserError(
        f"{source} is none of the ResNets of torchvision; the nearest, {nearest[0]}, has other keys: "
        f"{_listed(nearest[1])}"
    )


def build(options, state, source):
    """Network(**options) with the values of a state of our names. Raises UserError.

    Both may come from a file, and are checked before memory of their size is allocated.
    """
    without = () if "codebook" in state else ("codebook",)
    try:
        with torch.device("meta"):  # allocates nothing for a size that is only claimed
            problems = _problems(Network(**options), state, without)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    except (TypeError, ValueError, RuntimeError, ArithmeticError, AttributeError) as error:
        raise UserError(f"{source}: no network can be built as it says, {options}: {error}") from error
    if problems:
        raise UserError(
            f"{source} does not fit the network that it describes, {options}: {_listed(problems)}"
        )
    with torch.random.fork_rng(devices=[]):  # its first values are drawn at random, only to be replaced
        network = Network(**options)
    fit(network, state, source, without=without)
    return network


def _count(problems):
    return sum(len(names) for _, names in problems)


# ------------------------------------------------------------------------------------- out of our network


def to_original(network, *, with_codebook):
    """Our network -> the original's state dict, for its ResNet within DataParallel.

    with_codebook: for a network of class codes, whose forward gives class logits. The original has no logit
    scale, so it goes into the projection, and the logits are ours. Without a codebook the result gives our z.

    Raises UserError for a backbone that is not a ResNet, and for batch norm on z, because there is no place
    for the mean that it subtracts.
    """
    if network.family != "resnet":
        raise UserError(
            f"{network.options['arch']} has no form in the original code, which builds ResNets only; "
            "--to=encoder and --to=backbone can hold it"
        )
    _check_no_hidden_layer(network)
    if network.options["normalize"] != "none":
        raise UserError(
            "codes.normalize = batchnorm: the original's projection has no bias, which batch norm on z would "
            "need there; --to=encoder keeps it, and --to=backbone --with_classifier has the bias"
        )
    scale = network.logit_scale if with_codebook else 1.0
    state = {f"module.{name}": value for name, value in network.backbone.state_dict().items()}
    state["module.fc_lr.weight"] = (scale * network.projection.weight.detach())[:, :, None, None]
    if with_codebook:
        state["module.fc.weight"] = network.codebook.detach()[:, :, None, None]
    return plain(state)


def to_backbone(network, *, with_classifier):
    """Our network -> the state dict of the whole model, with the names of the backbone's own library.

    It lacks the classifier. with_classifier adds one under its own name, a single layer that gives our
    class logits: its weight is logit_scale sign(C) P [num_classes, features]. Batch norm on z goes into it
    too: there P becomes P / sqrt(variance + eps), and the bias takes away the mean; otherwise the bias is
    0. Raises UserError if the bias would be needed but the model's classifier has none.
    """
    state = dict(network.backbone.state_dict())
    if with_classifier:
        _check_no_hidden_layer(network)
        weight = network.logit_scale * binarize(network.codebook.detach())
        bias = weight.new_zeros(len(weight))
        if network.options["normalize"] == "batchnorm":
            if not network.classifier_has_bias:
                raise UserError(
                    f"codes.normalize = batchnorm: the classifier of {network.options['arch']} has no bias, "
                    "which batch norm on z would need there; --to=encoder keeps it"
                )
            norm = network.normalization
            weight = weight / (norm.running_var + norm.eps).sqrt()
            bias = -weight @ norm.running_mean
        state[f"{network.classifier}.weight"] = weight @ network.projection.weight.detach()
        if network.classifier_has_bias:
            state[f"{network.classifier}.bias"] = bias
    return plain(state)


def _check_no_hidden_layer(network):
    options = network.options
    if options["hidden"] or options["head"] == "expected":
        key = "hidden" if options["hidden"] else "head"
        raise UserError(
            f"codes.{key} = {options[key]}: this form has no place for a layer between "
            "backbone and projection; --to=encoder keeps it, and --to=backbone without --with_classifier "
            "leaves it out"
        )


def plain(state):
    """A copy of a state on the CPU, each tensor contiguous and with memory of its own."""
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
    }


def digest(network):
    """64 hexadecimal digits that are equal for two networks that make the same codes of the same images.

    The codebook and the factor of the class logits do not change codes, and do not count.
    """
    state = plain(network.state_dict())
    hashed = hashlib.blake2b(digest_size=32)
    for name in sorted(state):
        if name not in ("codebook", "log_logit_scale") and state[name].is_floating_point():
            hashed.update(f"{name} {state[name].dtype} {list(state[name].shape)}".encode())
            hashed.update(state[name].numpy())
    return hashed.hexdigest()
