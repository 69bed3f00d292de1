"""python -m llc.benchmark decoder: both sides decode the same crops; its table agrees with its JSON."""

import json
import statistics
from pathlib import Path

import numpy as np
import pytest

from llc.benchmark import decoder
from llc.errors import UserError
from tests.pictures import texts_in


def test_both_sides_are_measured(image_tree, tmp_path, capsys):
    file = tmp_path / "report.json"
    decoder.main(
        [
            f"--folder={image_tree / 'val'}",
            "--images=12",
            "--resolutions=24",
            "--restart_blocks=0,6",
            "--rounds=2",
            f"--json={file}",
            f"--plot={tmp_path / 'report.svg'}",
        ]
    )
    figures = json.loads(file.read_text())["figures"]
    assert [(f["kind"], f["restart_blocks"]) for f in figures] == [("jpeg", 0), ("jpeg", 6), ("raw", 0)]
    assert figures[0]["bytes"] < figures[1]["bytes"] < figures[2]["bytes"]
    assert {
        "jpeg, 24 px",
        "jpeg, restart markers every 6 blocks, 24 px",
        "raw, 24 px",
        "FFCV's way",
    } <= texts_in(tmp_path / "report.svg")
    *lines, last = capsys.readouterr().out.splitlines()[-4:]
    assert last == f"{tmp_path / 'report.svg'}: the figures as bars"
    for line, figure in zip(lines, figures):
        sides = figure["seconds_per_image"]
        assert len(sides["llc"]) == len(sides["ffcv"]) == 2
        ratio = statistics.median(sides["ffcv"]) / statistics.median(sides["llc"])
        assert line.startswith(figure["kind"]) and line.endswith(f"{ratio:.2f}")


def test_both_sides_do_the_same_work(image_tree):
    """Crops that shrink are averaged by area on both sides; FFCV's JPEGs differ by the fast inverse DCT."""
    pictures = decoder._pictures(Path(image_tree / "val"), 9)
    crops, flips = decoder._random_crops(pictures, 0)
    assert flips.any() and not flips.all() and (crops[:, 2:] >= 1).all()
    for kind, tolerance in (("raw", 0.6), ("jpeg", 4.0)):
        stored = decoder._store(pictures, kind, 0)
        ours, theirs = (np.zeros((9, 4, 4, 3), np.uint8) for _ in range(2))
        decoder._ours(stored, pictures, crops, flips, ours)
        decoder._ffcv(stored, pictures, crops, flips, theirs)
        assert ours.std() > 10 and np.abs(ours.astype(int) - theirs).mean() < tolerance


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no image files"):
        decoder.main([f"--folder={tmp_path}"])
