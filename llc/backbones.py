"""Backbones by name: how each is built, its number of features, its classifier, and its published weights.

==========  ==================================================================================================
registered  what a plugin adds: `@register("mine", classifier="fc")` (docs/how-to/extending.md)
resnet      torchvision's ResNets, also narrower: the backbones of the method
torchvision its other classification models that end in a Linear layer: convnext_tiny, vit_b_16, ...
timm        `timm:NAME`, the models of an installed timm, with or without a tag: timm:vit_small_patch16_224
==========  ==================================================================================================

A backbone keeps all that comes before the last Linear layer, such as a LayerNorm or Dropout, and keeps the
names of its parameters.

    from llc import backbones

    @backbones.register("mine", classifier="fc")
    def mine():
        return MyNetwork()  # a torch.nn.Module; its `fc` is the Linear layer at its end
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import torch
from torch import nn

from llc.errors import UserError
from llc.options import did_you_mean
from llc.packages import needed

_REFUSED = dict.fromkeys(
    ("googlenet", "inception_v3"),
    "in training it returns several outputs, those of its auxiliary classifiers",
)
# Of the images that backbones get: the network normalises them.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_IMAGE_SIZES = {"maxvit_t": 224}  # of models that do not have it as an attribute

Weights = Mapping[str, Callable[[], dict[str, torch.Tensor]]]  # name -> function that returns a state dict


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A model without its classifier.

    module: float [B, 3, H, W], normalised -> features [B, num_features] (or [B, num_features, 1, 1]), with
    an nn.Identity in place of the classifier. classifier: the path of the Linear layer that was there, such
    as fc or classifier.3; has_bias: whether that layer had a bias. family: registered, resnet, torchvision
    or timm.
    """

    module: nn.Module
    num_features: int
    classifier: str
    has_bias: bool
    family: str


@dataclasses.dataclass(frozen=True)
class _Registered:
    make: Callable[[], nn.Module]
    classifier: str
    weights: Weights
    image_size: int | None


_registered: dict[str, _Registered] = {}


def _torchvision():
    """torchvision.models, imported when it is first used: that takes as long as importing torch."""
    import torchvision

    return torchvision.models


@functools.cache
def _of_torchvision() -> tuple[str, ...]:
    """The names of torchvision's classification models."""
    return tuple(_torchvision().list_models(_torchvision()))


def resnets() -> tuple[str, ...]:
    """The names of torchvision's ResNets, ResNeXts and wide ResNets."""
    return tuple(name for name in _of_torchvision() if name.startswith(("resnet", "resnext", "wide_resnet")))


def register(name: str, *, classifier: str, weights: Weights | None = None, image_size: int | None = None):
    """A decorator that adds a backbone: it takes a function without arguments that returns an nn.Module.

    classifier: the path of the module's last Linear layer, such as "fc" or "head.fc". weights: published
    weights by name, each a function that returns a state dict of the module; model.weights=NAME starts from
    one. image_size: height and width in pixels, if the module takes no others. The function is also called
    on torch's meta device. Raises ValueError where the name is taken.
    """
    if name in _registered or name in _of_torchvision() or ":" in name:
        raise ValueError(f"backbone {name!r}: the name is taken, or has a colon")

    def add(make):
        _registered[name] = _Registered(make, classifier, dict(weights or {}), image_size)
        return make

    return add


def build(name: str, width: int = 64) -> Backbone:
    """The backbone of that name, with random values from torch's global generator.

    width: channels of the first stage, for resnet18 and resnet34. Raises UserError for a name that is not
    known or cannot be used, and for a width that it does not have.
    """
    if name not in resnets():
        _check_known(name)
        if width != 64:
            raise UserError(
                f"model.width = {width}: {name} is not a ResNet, and only resnet18 and resnet34 come narrower"
            )
    if name in _registered:
        entry = _registered[name]
        module = _constructed(entry.make)
        if not isinstance(module, nn.Module):
            raise UserError(f"model.arch = {name}: its function returned {module!r}, not an nn.Module")
        return _without_classifier(name, module, entry.classifier, "registered", image_size=entry.image_size)
    if name.startswith("timm:"):
        return _build_timm(name)
    module = _constructed(lambda: _torchvision().get_model(name, weights=None))
    if width != 64:
        _set_width(module, name, width)
    if name in resnets():
        return _without_classifier(name, module, "fc", "resnet")
    image_size = getattr(module, "image_size", _IMAGE_SIZES.get(name))
    return _without_classifier(name, module, _last_linear(module), "torchvision", image_size=image_size)


def published_weights(name: str) -> Weights:
    """The published weights of a backbone by name; a function downloads them, or reads them from a cache.

    Each function returns a state dict, with or without the classifier. Raises UserError for a name that is
    not known.
    """
    if name in _registered:
        return _registered[name].weights
    _check_known(name)
    if name.startswith("timm:"):
        from timm.models import get_arch_pretrained_cfgs

        arch = name.removeprefix("timm:").partition(".")[0]
        return {
            full.partition(".")[2] or arch: functools.partial(_timm_weights, full)
            for full, cfg in get_arch_pretrained_cfgs(arch).items()
            if cfg.has_weights
        }
    members = _torchvision().get_model_weights(name).__members__
    if name in resnets():
        return {key: member.get_state_dict for key, member in members.items()}
    # Some of torchvision's files have names of parameters from before; its own constructor translates them.
    return {key: functools.partial(_torchvision_weights, name, member) for key, member in members.items()}


def num_published_classes(name: str, weights: str) -> int | None:
    """How many classes published weights of a backbone have, without a download; None if nothing tells.

    weights: a name that `published_weights` gives.
    """
    if name in _registered:
        return None
    if name.startswith("timm:"):
        from timm.models import get_arch_pretrained_cfgs

        arch = name.removeprefix("timm:").partition(".")[0]
        found = get_arch_pretrained_cfgs(arch)
        cfg = found.get(f"{arch}.{weights}") or found.get(arch)
        return getattr(cfg, "num_classes", None)
    return len(_torchvision().get_model_weights(name)[weights].meta["categories"])


# ------------------------------------------------------------------------------------------------ names


def _check_known(name):
    """Raises UserError unless a backbone has this name."""
    if name in _REFUSED:
        raise UserError(f"model.arch = {name}: it cannot be a backbone: {_REFUSED[name]}")
    if name.startswith("timm:"):
        _check_timm(name)
    elif name not in _registered and name not in _of_torchvision():
        known = [*_registered, *(other for other in _of_torchvision() if other not in _REFUSED)]
        near = did_you_mean(name, known) or "."
        raise UserError(
            f"model.arch = {name}: not a known backbone{near} It takes a ResNet or another classification "
            "model of torchvision, timm:NAME, or a backbone from outside llc: name its file with "
            "--plugin=FILE.py"
        )


def _check_timm(name):
    timm = _import_timm(name)
    arch, _, tag = name.removeprefix("timm:").partition(".")
    # Nothing else is passed on: timm also takes places to download models from.
    if not timm.is_model(arch):
        near = did_you_mean(name, [f"timm:{other}" for other in timm.list_models()])
        raise UserError(f"model.arch = {name}: timm {timm.__version__} has no such model{near}")
    full = name.removeprefix("timm:")
    if tag and full not in timm.models.get_arch_pretrained_cfgs(arch):
        tags = [f"timm:{other}" for other in timm.models.get_arch_pretrained_cfgs(arch) if "." in other]
        raise UserError(f"model.arch = {name}: timm {timm.__version__} has {', '.join(tags)}")


def _import_timm(name):
    return needed("timm", f"model.arch = {name}", extra="timm")


# ------------------------------------------------------------------------------------------------ modules


def _constructed(make):
    """make(), also on the meta device.

    Some constructors, such as that of torchvision's RegNets, compute with values and fail there.
    """
    try:
        return make()
    except RuntimeError:
        if torch.empty(0).device.type != "meta":
            raise
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            return make().to("meta")


def _without_classifier(name, module, classifier, family, *, image_size=None, multiple=1):
    """The Backbone of a whole model, whose classifier is replaced in place."""
    try:
        linear = module.get_submodule(classifier) if classifier else None
    except AttributeError:
        linear = None
    if not isinstance(linear, nn.Linear):
        what = f"its {classifier} is {_kind(linear)}" if classifier else "it does not end in one"
        raise UserError(f"model.arch = {name}: a backbone's classifier must be a Linear layer; {what}")
    parent, _, last = classifier.rpartition(".")
    setattr(module.get_submodule(parent), last, nn.Identity())
    if image_size or multiple > 1:
        module.register_forward_pre_hook(_SizeCheck(name, image_size, multiple))
    return Backbone(module, linear.in_features, classifier, linear.bias is not None, family)


def _kind(module):
    return "missing" if module is None else f"a {type(module).__name__}"


def _last_linear(module):
    """The path of a torchvision model's last layer if it is Linear, else None."""
    path = ""
    while children := list(module.named_children()):
        name, module = children[-1]
        path = f"{path}.{name}".lstrip(".")
    return path if isinstance(module, nn.Linear) else None


def check_image_size(module: nn.Module, size: int) -> None:
    """Raises UserError if a Backbone's module does not take images of size x size pixels."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, _SizeCheck):
            hook.check(size, size)


class _SizeCheck:
    """A forward pre-hook that raises UserError for images of a size that the model does not take."""

    def __init__(self, name, image_size, multiple):
        self.name, self.image_size, self.multiple = name, image_size, multiple

    def __call__(self, module, arguments):
        self.check(*arguments[0].shape[-2:])

    def check(self, height, width):
        if self.image_size:
            fits = height == width == self.image_size
            wanted, remedy = (
                f"images of {self.image_size} x {self.image_size} pixels",
                f"to {self.image_size}",
            )
        else:
            fits = height % self.multiple == 0 and width % self.multiple == 0
            wanted, remedy = f"images whose sides are multiples of {self.multiple} pixels", "to such numbers"
        if not fits:
            raise UserError(
                f"model.arch = {self.name} takes {wanted}, got {height} x {width}: set resolution.min_res, "
                f"resolution.max_res and validation.resolution {remedy}"
            )


def _build_timm(name):
    timm = _import_timm(name)
    create = functools.partial(timm.create_model, name.removeprefix("timm:"), pretrained=False, num_classes=1)
    try:
        module, any_size = _constructed(lambda: create(dynamic_img_size=True)), True
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        module, any_size = _constructed(create), False
    cfg = module.pretrained_cfg
    if not isinstance(cfg.get("classifier"), str):
        raise UserError(
            f"model.arch = {name}: it cannot be a backbone: it needs one classifier, and has "
            f"{', '.join(cfg.get('classifier') or ['none'])}"
        )
    fixed = not any_size and cfg.get("fixed_input_size")
    return _without_classifier(
        name,
        module,
        cfg["classifier"],
        "timm",
        image_size=cfg["input_size"][-1] if fixed else None,
        multiple=module.patch_embed.patch_size[0] if any_size else 1,
    )


def _timm_weights(full_name):
    """The state dict of timm's pretrained model, translated by timm, for images normalised as llc's are.

    With its classifier, where it has one. Raises UserError where the weights cannot be had for such images.
    """
    import timm

    cfg = timm.models.get_pretrained_cfg(full_name)
    converted = (tuple(cfg.mean), tuple(cfg.std)) != (IMAGENET_MEAN, IMAGENET_STD)
    if converted:  # before a download
        _first_convolution(full_name, timm.create_model(full_name, pretrained=False), cfg)
    model = timm.create_model(full_name, pretrained=True)
    if converted:
        _take_normalisation(_first_convolution(full_name, model, cfg), cfg.mean, cfg.std)
    return model.state_dict()


def _first_convolution(name, model, cfg):
    """The Conv2d that takes the images, if `_take_normalisation` can change it. Raises UserError if not."""
    conv = model.get_submodule(cfg.first_conv) if isinstance(cfg.first_conv, str) else None
    # the type itself: subclasses, such as one that standardises its weights, compute something else
    if type(conv) is not nn.Conv2d or conv.padding not in ((0, 0), "valid") or conv.bias is None:
        raise UserError(
            f"{name}: its weights are for images normalised with mean {tuple(cfg.mean)} and std "
            f"{tuple(cfg.std)}, not with ImageNet's, and its first layer cannot be changed to fit; take "
            "other weights"
        )
    return conv


@torch.no_grad()
def _take_normalisation(conv, mean, std):
    """Changes a model's first convolution, in place, so that it takes images normalised as llc's are.

    mean, std: of each channel, with which the model was trained. An image that is x when normalised with
    ours is (IMAGENET_STD x + IMAGENET_MEAN - mean) / std for the model: a factor and a summand for each
    channel, which weights and bias can hold unless the convolution pads its input with zeros.
    """
    ours, theirs = torch.tensor([IMAGENET_MEAN, IMAGENET_STD]), torch.tensor([mean, std])
    weight = conv.weight / theirs[1][:, None, None]
    conv.bias += (weight * (ours[0] - theirs[0])[:, None, None]).sum((1, 2, 3))
    conv.weight.copy_(weight * ours[1][:, None, None])


def _torchvision_weights(name, weights):
    return _torchvision().get_model(name, weights=weights).state_dict()


def _set_width(module, name, width):
    """Rebuilds a torchvision ResNet of basic blocks with `width` channels, not 64, in its first stage."""
    block = type(module.layer1[0])
    if block is not _torchvision().resnet.BasicBlock:
        raise UserError(
            f"model.width = {width}: only resnet18 and resnet34 come narrower, model.arch is {name}"
        )
    depths = [len(getattr(module, f"layer{i}")) for i in (1, 2, 3, 4)]
    module.inplanes = width
    module.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    module.bn1 = nn.BatchNorm2d(width)
    for i, depth in enumerate(depths):
        layer = module._make_layer(block, width << i, depth, stride=1 if i == 0 else 2)
        setattr(module, f"layer{i + 1}", layer)
    module.fc = nn.Linear(width << 3, 1)
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")
