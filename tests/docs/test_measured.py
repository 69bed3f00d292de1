"""BENCHMARKS.md and EXPERIMENTS.md: each of their commands: small, only planned, or only parsed."""

import re
import shutil

import numpy as np
import pytest

from llc import write
from tests.conftest import ROOT
from tests.docs.conftest import noise, photographs
from tests.docs.pages import blocks, command_lines, run_page

BENCHMARKS, EXPERIMENTS = (ROOT / f"{name}.md" for name in ("BENCHMARKS", "EXPERIMENTS"))
PAGES = {BENCHMARKS, EXPERIMENTS}
# Later flags win over those of the page. The first ones are those of tests/benchmark.
FAST = {
    "llc.benchmark decoder": ("--images=6", "--rounds=1", "--resolutions=24"),
    "llc.benchmark hamming": ("--queries=20", "--repeats=1", "--seconds=0", "--scale=0.001"),
    "llc.benchmark index": ("--size=2000", "--rounds=1", "--singles=10", "--queries=10"),
    "llc.benchmark retrieval": ("--queries=50", "--database=500", "--rounds=1", "--numpy_queries=5"),
    "llc.compare": ("--dry_run",),
    "train_llc.py": ("--dry_run", "--training.batch_size=24"),
}
# What would take more than some seconds even with the smallest sizes, or needs more than one version of llc;
# test_documents.py looks for their flags in --help. {beginning of a command: why, and what runs it instead}.
PARSED = {
    "python -m llc.benchmark loader": "ffcv compiles as it is imported; tests/benchmark/test_loader.py",
    "python -m llc.benchmark writer": "ffcv compiles as it is imported; tests/benchmark/test_writer.py",
    "python -m llc.benchmark epoch": "ffcv compiles as it is imported; tests/benchmark/test_epoch.py",
    "python -m llc.benchmark hamming posterior_20": "fits codes; tests/benchmark/test_hamming_benchmark.py",
    "python -m llc.benchmark hamming first": "five processes of either version",
    "python -m llc.benchmark hamming pack table20 table24 pairwise": "a process of the other version",
    "python -m llc.benchmark hamming top1_64 top100_64 one_64 range_64": "a process of the other version",
    "python -m llc.benchmark hamming top100_20": "a process of the other version",
    "python -m llc.benchmark hamming top1_256": "a process of the other version",
    "python experiments/cifar10_protocols.py": "trains twice; tests/test_cifar10_protocols.py",
}


@pytest.fixture
def clone(workspace, image_tree):
    """The workspace, with what the commands name beside it: the recipes, and OLD, a checkout of llc."""
    for name in ("experiments", "rn50_configs"):
        (workspace / name).symlink_to(ROOT / name)
    (workspace / "OLD").symlink_to(ROOT)
    (workspace / "RUN").symlink_to(workspace / "runs" / "NAME")
    shutil.copytree(workspace / "photos", workspace / "PHOTOS")
    return workspace


def test_commands_of_the_benchmarks(clone, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for name in "ABCD":
        codes = rng.integers(0, 256, (100, 2), np.uint8)
        np.savez(clone / f"{name}.npz", codes=codes, num_bits=16, labels=rng.integers(0, 5, 100))
    run_page(BENCHMARKS, clone, monkeypatch, small=FAST, skip=tuple(PARSED))
    said = capsys.readouterr().out
    found = re.findall(r"llc Decoder, table, other version|clustered|restart blocks", said)
    assert {"llc Decoder, table, other version", "clustered", "restart blocks"} <= set(found)


def test_commands_of_the_experiments(clone, image_tree, monkeypatch, capsys):
    (clone / "data").mkdir()
    for split in ("train", "val"):
        for classes in ("50", "200"):
            for ending in ("", ".json"):
                shutil.copy(
                    clone / f"{split}.beton{ending}", clone / f"data/tiny{classes}_{split}.beton{ending}"
                )
    for name, seed in (("CIFAR/test", 1), ("DIGITS", 2), ("NOISE", 3)):
        noise(clone / name, np.random.default_rng(seed))
    photographs(image_tree, clone / "other", ("owl", "newt"), count=6)
    write.main(
        [
            f"--cfg.data_dir={clone}/other",
            f"--cfg.write_path={clone}/tiny150_val.beton",
            "--cfg.num_workers=1",
        ]
    )
    run_page(EXPERIMENTS, clone, monkeypatch, small=FAST, skip=tuple(PARSED))
    said = capsys.readouterr().out
    assert "dense-first" in said and "12 images of tiny150" in said
    assert sorted(path.name for path in (clone / "runs").iterdir()) == ["NAME"]  # nothing was trained


def test_what_is_only_parsed_is_in_the_pages():
    commands = [
        " ".join(words)
        for path in PAGES
        for block in blocks(path)
        if block.language == "bash"
        for words in command_lines(block)
    ]
    for beginning in PARSED:
        assert any(command.startswith(beginning) for command in commands), beginning
    for words in commands:  # one command a line: a lost backslash would cut it in two
        assert words.startswith("python "), words


@pytest.mark.parametrize("path", sorted(PAGES), ids=lambda path: path.name)
def test_a_summary_leads_to_every_section(path):
    """It comes first, with a line and a link for each section."""
    head, _, rest = path.read_text().partition("\n## ")
    rows = re.findall(r"^\| [^|]+\? \| [^|]+ \| \[[^]]+\]\(#([\w-]+)\) \|$", head, re.MULTILINE)
    assert len(rows) >= 10 and head.index("| question |") < head.index("\n\n", head.index("| question |"))
    titles = re.findall(r"^#{2,3} (.*)", f"## {rest}", re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-"): title for title in titles}
    assert not set(rows) - set(anchors)
    sections = re.findall(r"^## (.*)\n\n(.*)", f"## {rest}", re.MULTILINE)
    assert all(not first.startswith(("```", "|", "- ")) for _, first in sections)
