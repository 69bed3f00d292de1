"""The step on a CUDA device: no wait for the device, the precisions, memory format; compiled equals eager."""
import copy
import dataclasses

import pytest
import torch

from llc.distributed import Processes
from llc.network import Network
from llc.training.config import CodebookStage, Dist, InstanceStage, Training
from llc.training.engine import Engine

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
LR = 0.05


@pytest.fixture
def network():
    torch.manual_seed(3)
    network = Network("resnet18", 20, 10, width=32, use_blurpool=True)
    torch.nn.init.normal_(network.codebook)
    return network.to("cuda", memory_format=torch.channels_last)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(4)
    images = torch.randint(0, 256, (32, 64, 64, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    return images.cuda(), (torch.arange(32) % 10).cuda()


def engine(network, stage=CodebookStage(), **changes):
    training = dataclasses.replace(Training(label_smoothing=0.1, compile="off"), **changes)
    return Engine(network, stage, training, Dist(), Processes(device="cuda:0"))


@pytest.mark.parametrize("changes", [
    {"precision": "bf16"}, {"precision": "fp16"}, {"precision": "fp32"}, {"precision": "bf16", "compile": "on"},
    {"precision": "bf16", "accumulation_steps": 4, "ema_decay": 0.99}, {"precision": "fp16", "clip_grad_norm": 1.0},
    {"precision": "bf16", "compile": "on", "stage": InstanceStage(distillation=0.5)},
], ids=str)
def test_a_step_never_waits_for_the_device(changes, network, batch):
    trained = engine(network, **changes)
    for _ in range(3):  # compilation, cuDNN's choice and the first allocations may wait
        trained.step(*batch, LR)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [trained.step(*batch, LR) for _ in range(5)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(losses).isfinite().all() and losses[-1] < losses[0]


def test_precisions_agree(network, batch):
    losses = {precision: engine(copy.deepcopy(network), precision=precision).step(*batch, LR).item()
              for precision in ("fp32", "tf32", "bf16", "fp16")}
    for precision, loss in losses.items():
        # bf16 has 8 significant bits; a loss is a mean over many roundings
        assert loss == pytest.approx(losses["fp32"], rel=0.02), precision
    on_cpu = Engine(copy.deepcopy(network).cpu(), CodebookStage(), Training(label_smoothing=0.1), Dist(), Processes())
    assert losses["fp32"] == pytest.approx(on_cpu.step(*(t.cpu() for t in batch), LR).item(), rel=1e-3)


def test_compiled_equals_eager(network, batch):
    eager = copy.deepcopy(network)
    losses = [[trained.step(*batch, LR).item() for _ in range(3)]
              for trained in (engine(eager, precision="fp32"), engine(network, precision="fp32", compile="on"))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
