"""Loaders on a CUDA device: the same bytes as on the CPU, whatever streams the step uses."""

import pytest
import torch

from llc.data import loaders
from llc.data.loaders import TrainLoader, ValLoader
from llc.data.shards import open_shards
from llc.distributed import Processes
from llc.training.ffcv_loader import FFCVTrainLoader

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def epochs(betons, device, in_memory):
    processes = Processes(device=device)
    train = TrainLoader(
        open_shards(betons[0]),
        batch_size=24,
        num_workers=2,
        processes=processes,
        seed=3,
        min_scale=0.3,
        in_memory=in_memory,
    )
    val = ValLoader(
        open_shards(betons[1]),
        batch_size=16,
        num_workers=2,
        processes=processes,
        resolution=48,
        crop_ratio=0.875,
        in_memory=in_memory,
    )
    return [*train.epoch(0, 32), *train.epoch(1, 40, start_batch=3), *val]


@pytest.mark.parametrize("in_memory", [True, False])
def test_batches_are_those_of_the_cpu_and_stay_as_they_are(in_memory, betons):
    expected, found = (epochs(betons, device, in_memory) for device in ("cpu", "cuda:0"))
    for (images, labels), (expected_images, expected_labels) in zip(found, expected, strict=True):
        assert images.device.type == labels.device.type == "cuda" and images.is_contiguous(
            memory_format=torch.channels_last
        )
        assert torch.equal(images.cpu(), expected_images) and torch.equal(labels.cpu(), expected_labels)


def test_a_busy_stream_of_ones_own_sees_whole_batches(betons):
    """Batches are dropped while the work that reads them is still queued behind other work."""
    expected = [images.long().sum() for images, _ in epochs(betons, "cpu", True)]
    stream, sums = torch.cuda.Stream(), []
    with torch.cuda.stream(stream):
        for images, _ in one_epoch(betons):
            torch.cuda._sleep(20_000_000)  # cycles; the host goes on
            sums.append(images.long().sum())
            del images
    stream.synchronize()
    assert torch.equal(torch.stack(sums).cpu(), torch.stack(expected)[: len(sums)])


def test_a_batch_is_not_read_before_its_copy_is_done(betons, monkeypatch):
    """The copies start late: behind other work on the stream that they are made on."""
    expected = [images.long().sum() for images, _ in epochs(betons, "cpu", True)]
    send = loaders._PinnedMemory.send

    def send_late(self, images, labels):
        with torch.cuda.stream(loaders._copy_stream(self._device)):
            torch.cuda._sleep(50_000_000)
        return send(self, images, labels)

    monkeypatch.setattr(loaders._PinnedMemory, "send", send_late)
    torch.cuda.empty_cache()
    with torch.cuda.stream(loaders._copy_stream(torch.device("cuda:0"))):
        # fills the memory that batches will get with other bytes; small blocks, because PyTorch allocates
        # small and large ones from different pools
        blocks = [torch.full((1 << 19,), 255, dtype=torch.uint8, device="cuda") for _ in range(64)]
        del blocks
    sums = [images.long().sum() for images, _ in one_epoch(betons)]
    assert torch.equal(torch.stack(sums).cpu(), torch.stack(expected)[: len(sums)])


def test_epochs_leave_no_memory_behind(betons):
    kept = []
    for _ in range(40):
        for images, _ in one_epoch(betons, resolution=224):
            del images
        kept.append(torch.cuda.memory_reserved())
    # how many batches are alive at once depends on the threads; a new stream per epoch would make it 16 times
    assert kept[-1] <= 2 * kept[4], kept


def test_ffcvs_loader_with_our_decoder_gives_the_same_behind_slow_steps(betons):
    """The host gets far ahead of the device, and must not decode into memory that is not copied yet."""
    pytest.importorskip("ffcv")
    options = {"batch_size": 4, "num_workers": 2, "seed": 3, "min_scale": 0.3}
    ours = TrainLoader(open_shards(betons[0]), processes=Processes(), **options)
    ffcvs = FFCVTrainLoader(open_shards(betons[0]), processes=Processes(device="cuda:0"), **options)
    for epoch in (0, 1):
        expected, found = [images.long().sum() for images, _ in ours.epoch(epoch, 32)], []
        for images, _ in ffcvs.epoch(epoch, 32):
            torch.cuda._sleep(20_000_000)  # cycles
            found.append(images.long().sum())
        assert len(found) > 20 and torch.equal(torch.stack(found).cpu(), torch.stack(expected))


def one_epoch(betons, resolution=32):
    train = TrainLoader(
        open_shards(betons[0]),
        batch_size=24,
        num_workers=2,
        processes=Processes(device="cuda:0"),
        seed=3,
        min_scale=0.3,
    )
    yield from train.epoch(0, resolution)
