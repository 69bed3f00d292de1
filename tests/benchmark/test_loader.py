"""python -m llc.benchmark.loader: its table and its JSON, on a small beton and folder."""

import json
import re
import statistics

import pytest

from llc.benchmark import loader
from llc.data.manifest import verify
from llc.errors import UserError
from tests.pictures import texts_in


def test_peers_side_by_side(betons, tmp_path, run_llc):
    report = tmp_path / "report.json"
    done = run_llc(
        "-m",
        "llc.benchmark.loader",
        f"--beton={betons[0]}",
        "--peers=llc,llc.ffcv,ffcv,llc_paged",
        "--resolutions=24",
        "--workers=1",
        "--batch_size=16",
        "--rounds=2",
        "--seconds=0.3",
        f"--json={report}",
        f"--plot={tmp_path / 'report.svg'}",
    )
    rows = re.findall(
        r"^ +24  ([\w.]+) +(\d+) +\(\d+-\d+\) +([\d.]+) +(\d+) +([\d.]+) +(\d+) MB +([\d.]+) s$",
        done.stdout,
        re.M,
    )
    assert [row[0] for row in rows] == ["llc", "llc.ffcv", "ffcv", "llc_paged"]
    assert rows[2][2] == rows[2][4] == "1.00"
    assert "240 images, " in done.stdout and verify(betons[0]).num_samples == 240
    figures = json.loads(report.read_text())["figures"]
    drawn = texts_in(tmp_path / "report.svg")
    for figure in figures:
        rate = f"{statistics.median(figure['images_per_second']):,.0f}"
        assert {f"{figure['resolution']} px", figure["peer"], rate} <= drawn
    for row, figure in zip(rows, figures, strict=True):
        assert len(figure["images_per_second"]) == len(figure["images_per_cpu_second"]) == 2
        assert float(row[1]) == pytest.approx(sum(figure["images_per_second"]) / 2, abs=1)
        assert figure["images_per_second"][0] > 0 and figure["peak_rss_bytes"] > 50 << 20


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "beton is required"),
        (
            ["--beton=a.beton", "--peers=llc,webdataset"],
            "some of llc, llc.ffcv, ffcv, torchvision, dali, llc_paged, separated by commas",
        ),
        (
            ["--beton=a.beton", "--peers=torchvision"],
            "torchvision reads a folder of images per class; give it as --folder=DIR",
        ),
        (["--beton=a.beton", "--rounds=many"], "rounds = 'many': it takes a whole number, at least 1"),
        (
            ["--beton=a.beton", "--resolutions=160,0"],
            "resolutions = '160,0': it takes whole numbers, separated by commas, at least 1",
        ),
        (["--beton=nowhere.beton"], "nowhere.beton does not exist"),
    ],
)
def test_bad_arguments_are_named(words, message):
    with pytest.raises(UserError) as error:
        loader.main(words)
    assert message in str(error.value)


def test_a_peer_that_fails_is_named(betons, tmp_path):
    with pytest.raises(UserError, match="torchvision cannot be measured: FileNotFoundError"):
        loader.main(
            [
                f"--beton={betons[0]}",
                "--peers=llc,torchvision",
                f"--folder={tmp_path}",
                "--resolutions=16",
                "--batch_size=16",
            ]
        )
