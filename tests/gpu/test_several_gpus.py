"""What needs two CUDA devices: NCCL between them, and tensors on another device than the current one."""

import csv
import json

import pytest
import torch

import llc
from llc.data.loaders import TrainLoader
from llc.data.shards import open_shards
from llc.distributed import Processes
from llc.hamming import Decoder, pairwise, range_search, search
from tests.conftest import SMALL
from tests.hamming.helpers import random_codes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


def test_two_processes_train_over_nccl_as_over_gloo(run_llc, betons, tmp_path):
    for backend in ("nccl", "gloo"):
        run_llc(
            "train_llc.py",
            *SMALL,
            f"--data.train_dataset={betons[0]}",
            f"--data.val_dataset={betons[1]}",
            f"--dist.backend={backend}",
            f"--logging.folder={tmp_path}",
            f"--logging.name={backend}",
            processes=2,
        )
    losses, finals = {}, {}
    for backend in ("nccl", "gloo"):
        losses[backend] = [
            json.loads(line)["loss"] for line in (tmp_path / backend / "log.jsonl").read_text().splitlines()
        ]
        with open(tmp_path / backend / "results.csv") as file:
            finals[backend] = {row["metric"]: float(row["final"]) for row in csv.DictReader(file)}
    # the first epoch's losses; later ones drift apart as two runs on CUDA do
    assert losses["nccl"][0] == pytest.approx(losses["gloo"][0], rel=0.02)
    assert all(final["codebook/top1_class_flip"] > 1.5 / 6 for final in finals.values())


def test_batches_arrive_on_a_device_that_is_not_the_current_one(betons):
    def epoch(device):
        train = TrainLoader(
            open_shards(betons[0]),
            batch_size=24,
            num_workers=2,
            processes=Processes(device=device),
            seed=3,
            min_scale=0.3,
        )
        return list(train.epoch(0, 32))

    assert torch.cuda.current_device() == 0
    for (images, labels), (expected, expected_labels) in zip(epoch("cuda:1"), epoch("cpu"), strict=True):
        assert images.device == labels.device == torch.device("cuda:1")
        assert torch.equal(images.cpu(), expected) and torch.equal(labels.cpu(), expected_labels)


@pytest.mark.parametrize("method", ["popc", "dot"])
def test_kernels_run_on_the_device_of_their_tensors(method, monkeypatch):
    from llc.hamming import cuda  # imports Triton
    from llc.kernels.cuda_launch import check_launch

    def same(found, expected):
        for a, b in zip(found, expected, strict=True):
            assert a.device == torch.device("cuda:1") and torch.equal(a.cpu(), b)

    monkeypatch.setattr(cuda, "METHOD", method)
    values, database = torch.randn(300, 64), torch.from_numpy(random_codes(5000, 64, 1))
    queries = llc.pack_bits(values)
    packed, on_gpu = llc.pack_bits(values.to("cuda:1")), database.to("cuda:1")
    assert torch.cuda.current_device() == 0
    same([packed], [queries])
    for k in (1, 5):
        same(search(packed, on_gpu, k), search(queries, database, k))
    same(range_search(packed, on_gpu, 20), range_search(queries, database, 20))
    same(
        [pairwise(packed, on_gpu), Decoder(on_gpu).mhd(packed)],
        [pairwise(queries, database), Decoder(database).mhd(queries)],
    )
    check_launch(torch.device("cuda:1"))
