"""python -m llc.data.verify: samples that do not decode are named."""
import shutil

import pytest

from llc.data import verify
from llc.data.beton import read_tables
from tests.chaos import make_betons


@pytest.fixture(scope="module")
def beton(tmp_path_factory):
    return make_betons(tmp_path_factory.mktemp("verify"), write_mode="jpg")[0]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_damaged_samples_are_named_and_the_status_tells(num_workers, beton, tmp_path, capsys):
    copy = shutil.copy(beton, tmp_path / "x.beton")
    shutil.copy(f"{beton}.json", tmp_path / "x.beton.json")
    verify.main([str(copy), f"--num_workers={num_workers}"])
    assert "100 samples (100 JPEG), 0 damaged" in capsys.readouterr().out
    tables = read_tables(copy)
    # behind what is looked at when a beton is opened: no header, and an end of image before the image's end
    for sample, at, change in ((3, 4, bytes(40)), (77, int(tables.sizes[77]) - 60, b"\xff\xd9")):
        with open(copy, "r+b") as file:
            file.seek(int(tables.images["data_ptr"][sample]) + at)
            file.write(change)
    with pytest.raises(SystemExit) as ended:
        verify.main([str(copy), f"--num_workers={num_workers}"])
    said = capsys.readouterr().out
    assert ended.value.code == 1 and "2 damaged" in said
    assert f"sample 3 of {copy} (class class_0): " in said and f"sample 77 of {copy} (class class_3): " in said
