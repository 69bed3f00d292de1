"""Trains in two processes and compares with one that accumulates the same parts of a batch.

test_two_processes.py runs it:

    torchrun --nproc_per_node=2 tests/training/two_processes.py [CASE ...]

On a machine with a GPU both processes share it, over gloo. Prints a line for each case; an assertion ends it.
"""

import contextlib
import copy
import dataclasses
from unittest import mock

import torch
from torch import nn

from llc import config
from llc.distributed import Processes
from llc.network import Network
from llc.recipe import Dist, Training
from llc.stages import CodebookStage, JointStage
from llc.training.engine import Engine

NUM_STEPS, FROZEN_FROM, LR = 5, 3, 0.05
PART, RESOLUTION, NUM_CLASSES = 6, 24, 5


@dataclasses.dataclass(frozen=True)
class Case:
    """changes: of Training. tolerance: of parameters that training moves by 0.01 and more."""

    changes: dict
    stage: object = CodebookStage()
    dist: Dist = Dist()
    tolerance: float = 2e-5  # float32 sums in another order
    compiler_fails_on: tuple = ()


COMPILED = {"compile": "on"}
CASES = {
    "eager": Case({}),
    "compiled, codebook frozen, accumulation, average": Case(
        COMPILED | {"accumulation_steps": 2, "ema_decay": 0.8}, JointStage()
    ),
    # gradients travel with 8 significant bits
    "compiled, accumulation, bf16 gradients": Case(
        COMPILED | {"accumulation_steps": 2}, dist=Dist(grad_compression="bf16"), tolerance=1e-3
    ),
    "the compiler fails in one process": Case(COMPILED | {"ema_decay": 0.8}, compiler_fails_on=(1,)),
}


def make_network(device):
    torch.manual_seed(0)
    network = Network("resnet18", 7, NUM_CLASSES, width=8)
    # quick to compile
    network.backbone = nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    nn.init.normal_(network.codebook)
    return network.to(device, memory_format=torch.channels_last)


def part(step, number, device):
    generator = torch.Generator().manual_seed(100 * step + number)
    images = torch.randint(
        0, 256, (PART, RESOLUTION, RESOLUTION, 3), dtype=torch.uint8, generator=generator
    ).permute(0, 3, 1, 2)
    return images.to(device), torch.randint(0, NUM_CLASSES, (PART,), generator=generator).to(device)


def train(engine, parts, freezes):
    """Steps on the parts with these numbers; the codebook's values from each step on, if it freezes."""
    device, codebooks = engine.network.codebook.device, []
    for step in range(NUM_STEPS):
        engine.codebook_frozen = freezes and step >= FROZEN_FROM
        engine.step(*map(torch.cat, zip(*(part(step, number, device) for number in parts))), LR)
        codebooks.append(engine.network.codebook.detach().clone())
    return codebooks


def run(case, processes):
    training = dataclasses.replace(Training(precision="fp32", compile="off"), **case.changes)
    each, freezes = training.accumulation_steps, isinstance(case.stage, JointStage)
    start = make_network(processes.device)
    alone, together = copy.deepcopy(start), copy.deepcopy(start)
    reference = Engine(
        alone,
        case.stage,
        dataclasses.replace(training, accumulation_steps=2 * each, compile="off"),
        Dist(),
        Processes(device=processes.device),
    )
    train(reference, range(2 * each), freezes)
    engine = Engine(together, case.stage, training, case.dist, processes)
    fails = processes.rank in case.compiler_fails_on
    with (
        mock.patch("torch._inductor.compile_fx.compile_fx", side_effect=RuntimeError("planted"))
        if fails
        else contextlib.nullcontext()
    ):
        codebooks = train(engine, range(processes.rank * each, (processes.rank + 1) * each), freezes)
    assert engine.compiled == (training.compile == "on" and not fails) and engine.compiler_failed == fails
    tolerance = case.tolerance * (
        5 if processes.device.type == "cuda" else 1
    )  # cuDNN may add up in another order each time
    averages = [(engine.ema.module, reference.ema.module)] if training.ema_decay else []
    for found, expected in [(together, alone), *averages]:
        for (name, a), b in zip(found.named_parameters(), expected.parameters()):
            assert (a - b).abs().max() <= tolerance, (name, float((a - b).abs().max()))
        weights = torch.cat([parameter.detach().flatten() for parameter in found.parameters()])
        assert torch.equal(*processes.gather(weights)), "the processes' weights differ"
    assert (together.projection.weight - start.projection.weight).abs().max() > 0.01
    if freezes:
        assert torch.equal(codebooks[FROZEN_FROM - 1], codebooks[-1]) and not torch.equal(
            codebooks[0], codebooks[1]
        )


def main(argv):
    processes = Processes.start(2, backend="gloo")
    for name in argv or CASES:
        torch.compiler.reset()
        run(CASES[name], processes)
        if processes.is_main:
            print(f"{name}: equal on {processes.device.type}", flush=True)
    processes.stop()


if __name__ == "__main__":
    config.run(main)
