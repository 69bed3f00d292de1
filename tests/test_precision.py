"""Products are computed in full float32 wherever a network runs, and PyTorch's settings are restored."""

import pytest
import torch

import llc
from llc.data.preprocessing import Preprocessing
from llc.distributed import Processes
from llc.evaluation.predict import predict
from llc.network import IMAGENET_MEAN, IMAGENET_STD, Network
from llc.precision import autocast_for, float32_precision
from llc.recipe import Dist, Training
from llc.stages import CodebookStage
from llc.training.engine import Engine

CPU = torch.device("cpu")


def settings():
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
    )


@pytest.fixture
def tf32_allowed():
    """TF32 is allowed everywhere, as many users of PyTorch set it for speed."""
    before = settings()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield settings()
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[2]


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = Network("resnet18", 12, 3, width=4)
    torch.nn.init.normal_(network.codebook)
    return network


@pytest.mark.parametrize(
    "precision, inside",
    [
        ("fp32", ("highest", False, False)),
        ("bf16", ("highest", False, False)),
        ("tf32", ("high", True, True)),
    ],
)
def test_settings_hold_inside_and_come_back(precision, inside, tf32_allowed):
    with pytest.raises(ZeroDivisionError), float32_precision(precision):
        assert settings() == inside
        with float32_precision("tf32"):
            assert settings() == ("high", True, True)
        assert settings() == inside
        raise ZeroDivisionError
    assert settings() == tf32_allowed


def test_settings_made_by_pytorchs_newer_names_come_back(tf32_allowed):
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    matmul.fp32_precision = convolution.fp32_precision = "ieee"  # the older names cannot be read now
    with float32_precision("tf32"):
        assert (matmul.fp32_precision, convolution.fp32_precision) == ("tf32", "tf32")
    assert (matmul.fp32_precision, convolution.fp32_precision) == ("ieee", "ieee")


def test_every_way_that_a_network_runs_is_exact(network, tf32_allowed):
    seen, images = set(), torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    network.backbone.register_forward_hook(lambda *_: seen.add((way, settings())))
    network.backbone.conv1.weight.register_hook(lambda _: seen.add((f"{way}, backward", settings())))
    way = "training"
    Engine(network, CodebookStage(), Training(precision="fp32"), Dist(), Processes()).step(
        images, torch.arange(4) % 3, 0.1
    )
    way = "validation"
    autocast, _ = autocast_for("fp32", CPU)
    predict(network, [(images, torch.arange(4))], Processes(), flip=True, autocast=autocast, num_classes=3)
    way = "encoder"
    encoder = llc.Encoder(
        network, Preprocessing(32, 1.0, "area", IMAGENET_MEAN, IMAGENET_STD), precision="fp32"
    )
    encoder.encode(images)
    ways = "training", "training, backward", "validation", "encoder"
    assert seen == {(name, ("highest", False, False)) for name in ways}
    assert settings() == tf32_allowed


def test_autocast_computes_in_its_dtype():
    autocast, scaler = autocast_for("bf16", CPU)
    with autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with autocast_for("fp32", CPU)[0]():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert not scaler.is_enabled()
