"""On a CUDA device: a resumed run ends with the same bits; watching the loss never waits for the device."""

import pytest
import torch

import train_llc
from llc.training.interruption import LossWatch
from tests.tools.chaos import differences, end_of, make_betons
from tests.training.test_survival import SHORT, stop_at

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])  # with fp16 the gradient scaler has a state too
def test_stopped_and_continued_a_run_is_the_same_to_the_bit(precision, tmp_path, monkeypatch):
    betons = make_betons(tmp_path)

    def train(name):
        train_llc.main(
            [
                *SHORT,
                f"--data.train_dataset={betons[0]}",
                f"--data.val_dataset={betons[1]}",
                f"--logging.folder={tmp_path}",
                f"--logging.name={name}",
                "--resume=auto",
                "--training.deterministic=1",
                f"--training.precision={precision}",
            ]
        )

    train("undisturbed")
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(SystemExit):
            train("run")
    train("run")
    assert differences(end_of(tmp_path / "run"), end_of(tmp_path / "undisturbed")) == []


def test_a_loss_is_looked_at_when_it_has_arrived():
    watch, one, nan = LossWatch(), torch.ones((), device="cuda"), torch.tensor(float("nan"), device="cuda")
    for batch in range(3):
        watch.add(batch, one)
    watch.look(wait=True)
    # allocating page-locked memory may wait for the device, so some is made available first
    blocks = [torch.empty((), pin_memory=True) for _ in range(4)]
    del blocks
    torch.cuda._sleep(1_000_000_000)
    watch.add(3, nan)
    watch.add(4, nan)
    assert watch.found is None  # it has not waited for the device
    watch.look(wait=True)
    assert watch.found[0] == 3
