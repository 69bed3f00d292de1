"""One optimiser step against plain PyTorch: accumulation, clipping, averaged weights, compilation."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from llc.codes import binarize
from llc.distributed import Processes
from llc.network import Network, running_statistics
from llc.recipe import Dist, Training
from llc.stages import CodebookStage, InstanceStage, JointStage
from llc.training.ema import AveragedNetwork
from llc.training.engine import Engine
from llc.training.optimizer import make_sgd

TRAINING = Training(weight_decay=0.01, label_smoothing=0.1)
LR = 0.1
CODEBOOK = CodebookStage()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator), torch.arange(8) % 4


@pytest.fixture
def network():
    torch.manual_seed(6)
    network = Network("resnet18", 12, 4, width=8)
    torch.nn.init.normal_(network.codebook)
    return network


def one_convolution():
    """A backbone that is quick to trace and to compile, with the features of a resnet18 of width 8."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


@pytest.fixture
def tiny(network):
    network.backbone = one_convolution()
    return network


def engine(network, stage=CODEBOOK, num_resolutions=1, **changes):
    return Engine(
        network, stage, dataclasses.replace(TRAINING, **changes), Dist(), Processes(), num_resolutions
    )


def gradients_by_hand(network, images, labels):
    """Of the codebook stage's loss, by name."""
    network = copy.deepcopy(network).train()
    F.cross_entropy(network(images) @ binarize(network.codebook).T, labels, label_smoothing=0.1).backward()
    return {name: p.grad for name, p in network.named_parameters()}


def after_sgd(network, gradients):
    """Parameters after the first step of SGD; batch norm does not decay."""
    return {
        name: p.detach()
        - LR * (gradients[name] + (0.0 if "bn" in name or "downsample.1" in name else 0.01) * p.detach())
        for name, p in network.named_parameters()
    }


def assert_parameters(network, expected, atol=1e-6):
    for name, parameter in network.named_parameters():
        # float32; sums in another order
        assert torch.allclose(parameter, expected[name], rtol=1e-4, atol=atol), name


def test_a_step_is_sgd_on_the_stage_loss(network, batch):
    expected = after_sgd(network, gradients_by_hand(network, *batch))
    before = network.projection.weight.detach().clone()
    engine(network).step(*batch, LR)
    assert_parameters(network, expected)
    assert not torch.allclose(network.projection.weight, before, atol=1e-4)


@pytest.mark.parametrize("factor", [0.25, 0.0])
def test_the_backbone_may_learn_at_a_rate_of_its_own(network, batch, factor):
    images, labels = batch
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    trained = copy.deepcopy(network)
    ours, theirs = InstanceStage(backbone_lr=factor), InstanceStage()
    for of, stage in ((network, theirs), (trained, ours)):
        made = Engine(of, stage, Training(weight_decay=0.01, compile="off"), Dist(), Processes())
        made.step(images, labels, LR)
    again = dict(network.named_parameters())
    for name, parameter in trained.named_parameters():
        part = factor if name.startswith("backbone.") else 1.0
        expected = torch.lerp(before[name], again[name].detach(), part)
        assert torch.allclose(parameter, expected, rtol=1e-4, atol=1e-7), name
    assert not torch.equal(network.backbone.conv1.weight, before["backbone.conv1.weight"])
    state = made.state_dict()["optimizer"]
    assert [group.get("rate") for group in state["param_groups"]] == [None, factor, None, factor]


def test_accumulation_takes_the_mean_gradient_of_its_parts(network, batch):
    images, labels = batch
    halves = [gradients_by_hand(network, images[part], labels[part]) for part in (slice(0, 4), slice(4, 8))]
    expected = after_sgd(network, {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]})
    engine(network, accumulation_steps=2).step(images, labels, LR)
    assert_parameters(network, expected)


def test_clipping_bounds_the_norm_of_the_whole_gradient(network, batch):
    gradients = gradients_by_hand(network, *batch)
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    assert norm > 0.2
    expected = after_sgd(network, {name: g * 0.1 / norm for name, g in gradients.items()})
    engine(network, clip_grad_norm=0.1).step(*batch, LR)
    assert_parameters(network, expected)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_fused_sgd_survives_a_first_gradient_that_overflows(momentum):
    """As fp16's scaler starts on CUDA. Uninitialised memory holds NaN, as with training.deterministic."""
    values = [torch.nn.Parameter(torch.arange(4.0)) for _ in range(2)]
    fused, plain = (
        make_sgd([{"params": [value], "weight_decay": 0.1}], momentum, fused)
        for value, fused in zip(values, (True, False))
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    torch.use_deterministic_algorithms(True)
    try:
        for gradient in (math.inf, 1.0, -3.0):
            for optimizer in (fused, plain):
                optimizer.param_groups[0]["lr"] = 0.1
            values[0].grad = torch.full((4,), gradient) * scaler.scale(torch.ones(()))
            scaler.step(fused)
            scaler.update()
            if math.isfinite(gradient):
                values[1].grad = torch.full((4,), gradient)
                plain.step()
            assert torch.equal(*values)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not torch.equal(values[0], torch.arange(4.0))


def test_averaged_weights_follow_at_their_decay(network, batch):
    trained = engine(network, ema_decay=0.75)
    average = None
    for _ in range(3):
        trained.step(*batch, LR)
        now = {k: v.clone() for k, v in network.state_dict().items() if v.is_floating_point()}
        average = now if average is None else {k: 0.75 * average[k] + 0.25 * v for k, v in now.items()}
    for name, value in trained.ema.module.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, average[name], rtol=1e-5, atol=1e-6), name
    assert not torch.allclose(trained.ema.module.projection.weight, network.projection.weight, atol=1e-4)


def test_averaged_weights_are_torchs_own_and_nothing_is_sent_to_the_device():
    torch.manual_seed(0)
    network = Network("resnet18", 12, 4, width=8)
    ours, torchs = (
        AveragedNetwork(network, 0.75),
        AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.75), use_buffers=True),
    )
    for _ in range(3):
        for tensor in (*network.parameters(), *running_statistics(network)):
            tensor.data.add_(torch.randn_like(tensor))
        ours.update()
        torchs.update_parameters(network)
    state, expected = ours.state_dict(), torchs.state_dict()
    assert list(state) == list(expected)
    assert all(
        torch.equal(value, expected[name]) for name, value in state.items() if "num_batches" not in name
    )

    class Devices(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            used.append(
                {
                    tensor.device.type
                    for tensor in pytree.tree_leaves((args, result))
                    if isinstance(tensor, torch.Tensor)
                }
            )
            return result

    on_meta, used = AveragedNetwork(network.to("meta"), 0.75), []
    with Devices():
        for _ in range(2):
            on_meta.update()
    assert {"meta"} in used and {"cpu"} in used and {"cpu", "meta"} not in used


def test_state_put_back_gives_the_same_next_steps(network, batch):
    trained = engine(network, ema_decay=0.9)
    trained.step(*batch, LR)
    weights, state = copy.deepcopy(network.state_dict()), copy.deepcopy(trained.state_dict())
    trained.step(*batch, LR)
    expected, average = copy.deepcopy(network.state_dict()), copy.deepcopy(trained.ema.module.state_dict())
    network.load_state_dict(weights)
    again = engine(network, ema_decay=0.9)
    again.load_state_dict(state)
    again.step(*batch, LR)
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(value, average[name]) for name, value in again.ema.module.state_dict().items())


def test_a_compiled_step_equals_an_eager_one(network, batch):
    # two of the four stages, because compiling takes seconds for each layer
    network.backbone.layer3, network.backbone.layer4 = nn.Identity(), nn.Identity()
    network.projection = nn.Linear(16, 12, bias=False)
    eager = copy.deepcopy(network)
    losses = [engine(eager).step(*batch, LR), engine(network, compile="on").step(*batch, LR)]
    assert torch.allclose(*losses, rtol=1e-4)
    # through nine layers, other kernels: steps of 0.01 and more differ by at most 1e-5
    assert_parameters(network, dict(eager.named_parameters()), atol=3e-5)


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_a_compiler_that_fails_is_left_out_with_a_warning(part, tiny, batch, capsys, quick_compiler):
    def fail(backward):
        if backward == (part == "backward"):
            raise RuntimeError(f"no compiler\nfor the {part} pass")

    quick_compiler(fail)
    eager = engine(copy.deepcopy(tiny))
    trained = engine(tiny, compile="on", ema_decay=0.9)
    assert trained.compiled
    for _ in range(2):
        assert torch.equal(trained.step(*batch, LR), eager.step(*batch, LR))
    assert_parameters(tiny, dict(eager.network.named_parameters()))
    warning = capsys.readouterr().err
    assert (
        warning.count("torch.compile failed") == 1
        and "RuntimeError: no compiler" in warning
        and "training.compile=off" in warning
    )
    assert trained.compiler_failed and not trained.compiled
    # the next stage tries again, and says so again
    following = engine(tiny, InstanceStage(), compile="on")
    following.step(*batch, LR)
    assert following.compiler_failed and "torch.compile failed" in capsys.readouterr().err


def test_another_process_can_have_this_one_run_eagerly(tiny, batch, capsys, quick_compiler):
    graphs = quick_compiler()
    trained = engine(tiny, compile="on")
    trained.run_eagerly()
    trained.step(*batch, LR)
    assert not graphs and trained.compiler_failed and "in another process" in capsys.readouterr().err


def test_both_stages_over_three_resolutions_are_four_graphs_without_a_break(tiny, quick_compiler):
    graphs = quick_compiler()
    torch._dynamo.utils.counters.clear()
    for stage, resolutions in (
        (CodebookStage(freeze_epoch=1.0), (32, 48, 64)),
        (InstanceStage(distillation=0.5), (64,)),
    ):
        trained = engine(tiny, stage, compile="on", num_resolutions=len(resolutions))
        for resolution in resolutions:
            images, labels = (
                torch.randint(0, 256, (8, 3, resolution, resolution), dtype=torch.uint8),
                torch.arange(8) % 4,
            )
            for frozen in (False, True):  # freezing compiles nothing anew
                trained.codebook_frozen = frozen or stage.is_frozen(0)
                trained.step(images, labels, LR)
        assert trained.compiled
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 4 and len(graphs) == 8  # forward and backward


def test_as_many_graphs_as_there_are_resolutions_are_compiled(tiny, quick_compiler):
    """Dynamo's own limit is 8, beyond which it would run eagerly without a word."""
    graphs = quick_compiler()
    resolutions = range(16, 176, 16)
    trained = engine(tiny, compile="on", num_resolutions=len(resolutions))
    for resolution in resolutions:
        trained.step(torch.zeros(4, 3, resolution, resolution, dtype=torch.uint8), torch.arange(4), 0.0)
    assert trained.compiled and len(graphs) == 2 * len(resolutions)


def test_graphs_beyond_the_limit_are_said_to_run_eagerly(tiny, quick_compiler, capsys):
    quick_compiler()
    trained = engine(tiny, compile="on")
    with torch._dynamo.config.patch(recompile_limit=2):
        for resolution in (16, 32, 48):
            trained.step(torch.zeros(4, 3, resolution, resolution, dtype=torch.uint8), torch.arange(4), 0.0)
    assert trained.compiler_failed and "recompile_limit" in capsys.readouterr().err


def test_a_frozen_codebook_does_not_move_by_a_bit_and_the_rest_trains_on(network, batch):
    """Against momentum and weight decay; afterwards it goes on where it was."""
    trained = engine(network, JointStage(), clip_grad_norm=1.0)
    trained.step(*batch, LR)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    momentum = trained.optimizer.state[network.codebook]["momentum_buffer"].clone()
    trained.codebook_frozen = True
    for _ in range(2):
        trained.step(*batch, LR)
    assert torch.equal(network.codebook, before["codebook"])
    assert torch.equal(trained.optimizer.state[network.codebook]["momentum_buffer"], momentum)
    assert all(
        not torch.equal(p, before[name]) for name, p in network.named_parameters() if name != "codebook"
    )
    trained.codebook_frozen = False
    trained.step(*batch, LR)
    assert not torch.equal(network.codebook, before["codebook"])


def test_a_frozen_codebooks_gradient_does_not_count_for_clipping(network, batch):
    gradients = gradients_by_hand(network, *batch)
    gradients["codebook"] = torch.zeros(())
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    expected = after_sgd(network, {name: g * 0.1 / norm for name, g in gradients.items()})
    expected["codebook"] = network.codebook.detach().clone()
    engine(network, CodebookStage(freeze_epoch=0.0), clip_grad_norm=0.1).step(*batch, LR)
    assert_parameters(network, expected)


@pytest.mark.parametrize("options", [{}, {"logit_scale": "learnable", "normalize": "batchnorm"}])
def test_a_compiled_step_of_the_joint_stage_equals_an_eager_one(options, batch):
    torch.manual_seed(6)
    eager = Network("resnet18", 12, 4, width=8, **options)
    eager.backbone = one_convolution()
    torch.nn.init.normal_(eager.codebook)
    compiled = copy.deepcopy(eager)
    losses = [
        engine(eager, JointStage()).step(*batch, LR),
        engine(compiled, JointStage(), compile="on").step(*batch, LR),
    ]
    assert torch.allclose(*losses, rtol=1e-4)
    assert_parameters(
        compiled, dict(eager.named_parameters()), atol=1e-4
    )  # batch norm of 8 images amplifies rounding
