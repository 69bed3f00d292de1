"""A run whose compiler fails, here or in another process, finishes, and log.jsonl says what ran compiled."""

import json

import pytest

import train_llc
from llc.distributed import Agreement
from tests.tools.chaos import make_betons
from tests.training.test_survival import SHORT


@pytest.fixture
def train(tmp_path):
    """Trains; returns [(stage, whether compiled), ...] of the epochs."""
    betons = make_betons(tmp_path)

    def run():
        train_llc.main(
            [
                *SHORT,
                f"--data.train_dataset={betons[0]}",
                f"--data.val_dataset={betons[1]}",
                f"--logging.folder={tmp_path}",
                "--logging.name=run",
                "--training.compile=on",
                "--codebook.epochs=1",
                "--instance.epochs=1",
            ]
        )
        lines = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
        return [(line["stage"], line["compiled"]) for line in lines]

    return run


def test_every_stage_tries_to_compile_and_says_where_that_fails(train, quick_compiler, capsys):
    def fail_at_first(backward):
        if not attempts:
            attempts.append(backward)
            raise RuntimeError("planted")

    attempts = []
    quick_compiler(fail_at_first)
    assert train() == [("codebook", False), ("instance", True)]
    assert capsys.readouterr().err.count("torch.compile failed") == 1


def test_all_processes_run_eagerly_when_the_compiler_failed_in_one(
    train, quick_compiler, monkeypatch, capsys
):
    def exchange(agreement, *flags):
        asked.append(flags)
        return [*flags[:-1], int(len(asked) == 3)]  # another process raises the last flag, at the third step

    asked = []
    monkeypatch.setattr(Agreement, "exchange", exchange)
    quick_compiler()
    assert train() == [("codebook", False), ("instance", True)]
    assert "torch.compile failed in another process" in capsys.readouterr().err
