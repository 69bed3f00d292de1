"""The training step on a CUDA device.

It never waits for the device; precisions and memory format are right; compiled code equals eager code; two
processes on one GPU equal one process.
"""

import copy
import dataclasses
import os

import pytest
import torch

import llc
from llc import gpu
from llc.distributed import Processes
from llc.evaluation.predict import predict
from llc.network import Network
from llc.precision import autocast_for
from llc.recipe import Dist, Training
from llc.stages import CodebookStage, InstanceStage
from llc.training.engine import Engine
from tests.conftest import ROOT, SMALL
from tests.training.two_processes import CASES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LR = 0.05
CODEBOOK_STAGE = CodebookStage()


@pytest.fixture
def network():
    torch.manual_seed(3)
    # without this logit_scale, training diverges at LR
    network = Network("resnet18", 20, 10, width=32, use_blurpool=True, logit_scale=20**-0.5)
    torch.nn.init.normal_(network.codebook)
    return network.to("cuda", memory_format=torch.channels_last)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(4)
    images = torch.randint(0, 256, (32, 64, 64, 3), dtype=torch.uint8, generator=generator).permute(
        0, 3, 1, 2
    )
    return images.cuda(), (torch.arange(32) % 10).cuda()


def engine(network, stage=CODEBOOK_STAGE, num_resolutions=1, **changes):
    training = dataclasses.replace(Training(label_smoothing=0.1, compile="off"), **changes)
    return Engine(network, stage, training, Dist(), Processes(device="cuda:0"), num_resolutions)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"precision": "fp32"},
        {"precision": "bf16", "compile": "on"},
        {"precision": "bf16", "accumulation_steps": 4, "ema_decay": 0.99},
        {"precision": "fp16", "clip_grad_norm": 1.0},
        {"precision": "bf16", "compile": "on", "stage": InstanceStage(distillation=0.5)},
        {"precision": "bf16", "compile": "on", "accumulation_steps": 2, "ema_decay": 0.99},
    ],
    ids=str,
)
def test_a_step_never_waits_for_the_device(changes, network, batch):
    trained = engine(network, **changes)
    for _ in range(3):  # compilation, cuDNN's choice and the first allocations may wait
        trained.step(*batch, LR)
    assert trained.compiled == ("compile" in changes)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [trained.step(*batch, LR) for _ in range(5)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(losses).isfinite().all() and losses[-1] < losses[0]


def test_precisions_agree(network, batch):
    losses = {
        precision: engine(copy.deepcopy(network), precision=precision).step(*batch, LR).item()
        for precision in ("fp32", "tf32", "bf16", "fp16")
    }
    for precision, loss in losses.items():
        # bf16 has 8 significant bits; a loss is a mean over many roundings
        assert loss == pytest.approx(losses["fp32"], rel=0.02), precision
    on_cpu = Engine(
        copy.deepcopy(network).cpu(), CodebookStage(), Training(label_smoothing=0.1), Dist(), Processes()
    )
    assert losses["fp32"] == pytest.approx(on_cpu.step(*(t.cpu() for t in batch), LR).item(), rel=1e-3)


@pytest.mark.parametrize(
    "precision, dtype",
    [("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_convolutions_run_in_the_precision_and_channels_last(precision, dtype, network, batch):
    found, convolution = [], network.backbone.layer2[0].conv1
    convolution.register_forward_hook(
        lambda module, inputs, output: found.append((output, torch.backends.cudnn.allow_tf32))
    )
    convolution.weight.register_hook(
        lambda gradient: found.append((gradient, torch.backends.cudnn.allow_tf32))
    )
    engine(network, precision=precision).step(*batch, LR)
    (output, forward_tf32), (gradient, backward_tf32) = found
    assert output.dtype == dtype and forward_tf32 == backward_tf32 == (precision == "tf32")
    for tensor in (output, gradient, convolution.weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_compiled_equals_eager_over_resolutions_and_while_the_codebook_freezes(network, batch):
    eager = copy.deepcopy(network)
    start = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    losses = []
    for module, compile in ((eager, "off"), (network, "on")):
        trained = engine(module, precision="fp32", compile=compile, num_resolutions=3)
        losses.append([])
        for resolution in (32, 48, 64):
            images = (
                torch.nn.functional.interpolate(batch[0].float(), resolution)
                .byte()
                .contiguous(memory_format=torch.channels_last)
            )
            for frozen in (False, True):
                trained.codebook_frozen = frozen
                losses[-1].append(trained.step(images, batch[1], LR / 10).item())
        assert trained.compiled == (compile == "on")
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    # Rounding grows from step to step. A parameter without its gradient, as the codebook's could be lost in
    # our own autograd function, would differ by all that it should have moved.
    for (name, a), b in zip(eager.named_parameters(), network.parameters()):
        assert (a - b).norm() <= 0.2 * (a - start[name]).norm(), name
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 3 and not counters["graph_break"]


def test_two_processes_on_one_gpu_equal_one(run_llc, monkeypatch):
    """DDP over gloo: compilation, a frozen codebook, accumulation, compressed gradients, averaged weights."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0])
    done = run_llc("tests/training/two_processes.py", processes=2, timeout=400)
    assert done.stdout.splitlines() == [f"{name}: equal on cuda" for name in CASES]


def test_processes_that_share_a_gpu_are_refused_by_name(run_llc, betons, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0])
    done = run_llc(
        "train_llc.py",
        *SMALL,
        f"--data.train_dataset={betons[0]}",
        f"--data.val_dataset={betons[1]}",
        f"--logging.folder={tmp_path}",
        processes=2,
        check=False,
    )
    assert done.returncode and "processes 0 and 1 have the same GPU" in done.stderr


def test_validation_goes_through_in_parts_where_memory_is_short_and_training_says_so(network):
    """An allowance that the whole batch exceeds; other programs on the GPU leave as little."""
    images = torch.randint(0, 256, (64, 3, 224, 224), dtype=torch.uint8, device="cuda")
    autocast, _ = autocast_for("fp32", torch.device("cuda"))

    def codes(loader):
        return predict(
            network, loader, Processes(device="cuda:0"), flip=False, autocast=autocast, num_classes=10
        )[""].codes

    torch.cuda.reset_peak_memory_stats()
    expected = codes([(images, torch.zeros(64, dtype=torch.int64, device="cuda"))])
    whole = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(
        (torch.cuda.memory_allocated() + (whole - torch.cuda.memory_allocated()) * 0.7) / total
    )
    try:
        found = codes([(images, torch.zeros(64, dtype=torch.int64, device="cuda"))])
        with pytest.raises(RuntimeError) as raised:
            engine(network, precision="fp32").step(
                images, torch.zeros(64, dtype=torch.int64, device="cuda"), LR
            )
        assert gpu.is_out_of_memory(raised.value) and "this process holds" in str(
            gpu.memory_error(raised.value)
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    # a part's sums may be rounded otherwise than the whole's: a bit may differ where z is nearly 0
    assert (llc.unpack_bits(found, 20) != llc.unpack_bits(expected, 20)).float().mean() < 0.01
