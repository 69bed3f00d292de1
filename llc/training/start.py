"""What a network starts from: seeded random values, model.weights, codes.init_codebook, the dense stage."""

import dataclasses
from pathlib import Path

import torch

from llc.backbones import num_published_classes, published_weights
from llc.checkpoints import class_layer, load_backbone, load_weights, plain
from llc.codebook import load_codebook, random_codebook
from llc.errors import UserError
from llc.itq import itq_codebook, projection_onto
from llc.network import Network
from llc.progress import say
from llc.recipe import ITQ
from llc.runs import read_class_names
from llc.stages import STAGES
from llc.training import min_distance


@dataclasses.dataclass(frozen=True)
class Start:
    """What `start` found.

    codebook: the one that codes.init_codebook names, float32 [num_classes, num_bits]; None if it names none,
    if a dense stage will make it, or if the run resumes and it cannot be made again. classifier: with
    codes.init_codebook=itq and model.weights, (weight [num_classes, features], bias [num_classes]) of the
    dense layer, zeros where the run resumes; else None.
    """

    codebook: torch.Tensor | None
    classifier: tuple[torch.Tensor, torch.Tensor] | None


def build_network(config, num_classes, stage):
    """The network of a configuration in a stage, on the CPU, with seeded random values. stage: its name."""
    torch.manual_seed(config.training.seed)
    network = Network(**config.network_options(num_classes, stage))
    if STAGES[stage].dense:
        network.codebook.data.copy_(2 * torch.eye(num_classes) - 1)
    return network


def start(config, network, class_names, processes, resumes=False):
    """Gives `network`, that of the first stage, its first values; returns a Start. Raises UserError.

    It is on the CPU. resumes: the run's own checkpoint will replace the values, so that model.weights is not
    read.
    """
    dense = STAGES[config.stages[0]].dense
    if takes_classifier(config):
        return _from_classifier(config, network, class_names, processes, resumes)
    num_classes, given = len(class_names), None
    if not dense:
        given = given_codebook(config, num_classes, resumes)
        network.codebook.data.copy_(initial_codebook(config, num_classes) if given is None else given)
    if config.model.weights and not resumes:
        say(load_weights(network, config.model.weights, config.model.arch, dense), processes)
    return Start(given, None)


def after_dense(config, dense, processes):
    """The network of the stage after a dense one, on the same device, and its dense classifier.

    dense: the network at the end of the dense stage. Returns (network, (weight, bias)). Raises UserError if
    its weights are NaN or infinite.
    """
    stage = config.stages[0]
    if not all(torch.isfinite(value).all() for value in dense.state_dict().values()):
        raise UserError(
            f"the {stage} stage ended with NaN or infinite weights, from which no codes can be made; lower "
            f"{stage}.lr, or set training.clip_grad_norm"
        )
    network = build_network(config, len(dense.codebook), config.stages[1])
    network.backbone.load_state_dict(dense.backbone.state_dict())
    classifier = class_layer(plain(dense.state_dict()), f"the {stage} stage")
    _take_classifier(config, network, classifier, processes)
    say("codebook from the classifier of the dense stage", processes)
    return network.to(dense.codebook.device, memory_format=torch.channels_last), classifier


def initial_codebook(config, num_classes):
    """The random codebook of a configuration, seeded: real values float32 [num_classes, num_bits]."""
    codes = config.codes
    return random_codebook(
        num_classes, codes.num_bits, config.training.seed, codes.init_scale, codes.init_distance
    )


def given_codebook(config, num_classes, resumes=False):
    """The codebook that codes.init_codebook names, float32 [num_classes, num_bits], or None.

    None too if the run resumes and the file is gone: the checkpoint holds the codebook. Raises UserError.
    """
    source, num_bits = config.codes.init_codebook, config.codes.num_bits
    if not source or resumes and not Path(source).exists():
        return None
    codebook = load_codebook(source, num_bits)
    if codebook.shape != (num_classes, num_bits):
        raise UserError(
            f"codes.init_codebook = {source}: {list(codebook.shape)}, but the data has {num_classes} classes "
            f"and codes.num_bits = {num_bits}"
        )
    return codebook


def takes_classifier(config):
    """Whether the codebook is made from the classifier of model.weights, and not from a dense stage's."""
    return config.codes.init_codebook == ITQ and not STAGES[config.stages[0]].dense


def read_classifier(config, network, class_names):
    """Loads the backbone of model.weights; returns its dense classifier (weight, bias). Raises UserError.

    Its classes must be those of the data. A run folder's names are compared; of other weights only their
    number is known.
    """
    source = config.model.weights
    check_published(config, class_names)
    weight, bias = load_backbone(network, source, config.model.arch)
    _check_num_classes(source, len(weight), class_names)
    theirs = read_class_names(source) if Path(source).is_dir() else None
    if theirs is not None and list(theirs) != list(class_names):
        raise UserError(
            f"model.weights = {source}: its classes have other names than those of the data, or another order"
        )
    return weight, bias


def check_published(config, class_names):
    """Whether model.weights are published ones, which a run downloads unless it has them.

    Raises UserError if their classifier should make the codebook and has another number of classes. Without
    a download, so that a long run does not begin with one in vain.
    """
    source, arch = config.model.weights, config.model.arch
    if Path(source).exists() or source not in published_weights(arch):
        return False
    if takes_classifier(config):
        number = num_published_classes(arch, source)
        if number is not None:
            _check_num_classes(source, number, class_names)
    return True


def _check_num_classes(source, number, class_names):
    if number != len(class_names):
        raise UserError(
            f"model.weights = {source}: its classifier has {number:,} classes, but the data has "
            f"{len(class_names):,}; codes.init_codebook = itq needs a classifier of the same classes, in the "
            "same order. For other classes train a dense stage first, which learns their classifier: "
            "--training.stages=dense,instance, with --dense.epochs and --dense.lr"
        )


def _from_classifier(config, network, class_names, processes, resumes):
    if resumes:  # the teacher's values come from the checkpoint
        zeros = torch.zeros(len(class_names), network.num_features)
        return Start(None, (zeros, zeros[:, 0]))
    classifier = read_classifier(config, network, class_names)
    codebook = _take_classifier(config, network, classifier, processes)
    say(f"backbone and codebook from the dense classifier of {config.model.weights}", processes)
    return Start(codebook, classifier)


def _take_classifier(config, network, classifier, processes):
    """Makes codebook and, without a hidden layer, the head from a classifier; returns the codebook."""
    (weight, bias), codes, seed = classifier, config.codes, config.training.seed
    # By the main process, because another processor might round differently.
    codebook = processes.on_main(lambda: itq_codebook(weight, codes.num_bits, seed, codes.prefixes))
    network.codebook.data.copy_(codebook)
    if codes.head == "expected":
        min_distance.enforce(network, codes, processes)  # now, because the head holds the class codes
        network.expect(weight, bias, codes.temperature)
    elif not codes.hidden:
        projection = projection_onto(codebook, weight) / float(network.logit_scale)
        network.projection.weight.data.copy_(projection)
    return codebook
