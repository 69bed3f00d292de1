"""docs/start.md: its commands, one after the other as they stand, on a small folder of images."""

import shutil
import subprocess
import sys

from tests.conftest import ROOT
from tests.test_docs import commands

# What a tiny folder needs besides what the page says, and no command that serves until it is stopped.
FOR_FEW_IMAGES = ["--training.batch_size=32", "--codebook.epochs=2", "--instance.epochs=1"]


def test_the_page_from_a_folder_to_a_report(image_tree, tmp_path):
    for label, name in enumerate(("cat", "dog", "eel")):
        shutil.copytree(image_tree / "train" / f"class_{label}", tmp_path / "photos" / name)
    (tmp_path / "photos" / "cat" / "000.jpg").rename(tmp_path / "photos" / "cat" / "1.jpg")
    lines = [words for words in commands(ROOT / "docs" / "start.md") if "llc.serve" not in words]
    assert len(lines) == 7
    for words in lines:
        if words[0].endswith(".py"):
            words = [str(ROOT / words[0]), *words[1:]]
        if words[0].endswith("train_llc.py"):
            words = [*words, *FOR_FEW_IMAGES]
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr)
    assert "<html" in (tmp_path / "runs" / "first" / "report.html").read_text()
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("val.jpg", "near.jpg"))
