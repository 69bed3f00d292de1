"""python -m llc.benchmark.writer: its tables and its JSON, on a few images."""

import json
import re
import statistics

import pytest

from llc.benchmark import writer
from llc.errors import UserError
from tests.pictures import texts_in


def test_both_writers_side_by_side(image_tree, tmp_path, run_llc):
    report = tmp_path / "report.json"
    done = run_llc(
        "-m",
        "llc.benchmark.writer",
        f"--folder={image_tree / 'val'}",
        "--write_modes=jpg",
        "--images=70",
        "--workers=1",
        "--rounds=1",
        "--quality_of=9",
        f"--scratch={tmp_path}",
        f"--json={report}",
        f"--plot={tmp_path / 'report.svg'}",
    )
    rows = re.findall(
        r"^jpg +(\w+) +(\d+) \(\d+-\d+\) +([\d.]+) +[\d.-]+ +[\d.-]+ +[\d.]+ s +[\d.]+$", done.stdout, re.M
    )
    assert [row[0] for row in rows] == ["llc", "ffcv"] and rows[1][2] == "1.00"
    found = json.loads(report.read_text())
    for row in rows:
        figure = found["figures"]["jpg"][row[0]]
        assert (
            float(row[1]) == pytest.approx(statistics.median(figure["images_per_second"]), abs=1)
            and figure["bytes"] > 70 * 300
        )
    assert found["quality"]["llc"]["psnr"] == pytest.approx(found["quality"]["ffcv"]["psnr"], abs=4)
    sizes = found["quality"]["bytes_by_restart_blocks"]
    assert sizes["0"] < sizes["24"] < sizes["12"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.svg"]
    assert {"write_mode jpg", "llc", "ffcv", "images per second, more is better"} <= texts_in(
        tmp_path / "report.svg"
    )


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "folder is required"),
        (["--folder=nowhere"], "--folder=nowhere is not a folder"),
        (
            ["--folder=.", "--write_modes=jpg,png"],
            "write_modes = 'jpg,png': it takes some of raw, jpg, proportion",
        ),
        (["--folder=.", "--rounds=0"], "rounds = '0': it takes a whole number, at least 1"),
    ],
)
def test_bad_arguments_are_named(words, message):
    with pytest.raises(UserError) as error:
        writer.main(words)
    assert message in str(error.value)
