"""Names that an index records: which images they open, and which they must not."""

import base64
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from llc.data.image_errors import ImageError
from llc.data.sources import FolderTree
from llc.index.collection import collect, open_container, open_inside, open_recorded


@pytest.fixture
def place(tmp_path):
    """A folder with a red image, and one outside with a blue one."""
    for folder, colour in (("photos", (250, 0, 0)), ("outside", (0, 0, 250))):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (9, 8), colour).save(tmp_path / folder / "x.png")
    return tmp_path


def is_red(image):
    assert image.size == (9, 8)
    return image.getpixel((0, 0)) == (250, 0, 0)


def test_a_parquet_file_opens_no_other_file(place):
    """Whoever makes such a file may name any file of the machine."""
    data = (place / "photos/x.png").read_bytes()
    paths = ["../outside/x.png", str(place / "outside/x.png"), "x.png"]
    file = place / "photos/data.parquet"
    for images in (
        paths,
        [{"bytes": None, "path": path} for path in paths],
        [{"bytes": None, "path": path} for path in paths] + [{"bytes": data, "path": paths[0]}],
    ):
        pq.write_table(pa.table({"image": images, "label": [0] * len(images)}), file)
        found = collect(file)
        assert found.files == [f"{file}#{i}" for i in range(len(images))]
        for name in found.files[:3]:
            with pytest.raises(ImageError, match="is in another file, of which this one holds only the path"):
                open_recorded(name)
        for name in found.files[3:]:
            assert is_red(open_recorded(name))


def test_tables_and_folders_open_the_images_that_they_name(place):
    """They are paths and nothing else, and whoever names one means the images there."""
    table = place / "photos/list.csv"
    table.write_text("path,label\nx.png,a\n../outside/x.png,b\n")
    assert [is_red(open_recorded(f"{table}#{i}")) for i in range(2)] == [True, False]
    assert is_red(open_recorded(f"{place}/photos#0"))


@pytest.mark.parametrize("kind", ["table", "folder"])
def test_for_a_reader_of_one_file_they_open_none_either(place, kind):
    table = place / "photos/list.csv"
    table.write_text("path,label\nx.png,a\n../outside/x.png,b\n")
    path = str(table if kind == "table" else place / "photos")
    source = open_container(path, "")
    assert isinstance(source, FolderTree) == (kind == "folder")
    with pytest.raises(ImageError, match="is in another file"):
        open_inside(source, f"{path}#0")
    assert is_red(open_inside(source, f"{path}#0", paths=True))


def test_images_in_a_table_are_opened(place):
    table = place / "photos/list.csv"
    data = base64.b64encode((place / "photos/x.png").read_bytes()).decode()
    table.write_text(f"bytes,label\n{data},a\n")
    assert collect(table).files == [f"{table}#0"] and is_red(open_recorded(f"{table}#0"))
    assert is_red(open_inside(open_container(str(table), ""), f"{table}#0"))


def test_a_container_that_was_changed_is_opened_anew(place):
    file = place / "photos/data.parquet"
    for number, folder in enumerate(("photos", "outside")):
        data = (place / folder / "x.png").read_bytes()
        pq.write_table(pa.table({"image": [data], "label": [0]}), file)
        os.utime(file, ns=(number, number))
        assert is_red(open_recorded(f"{file}#0")) == (folder == "photos")
    with pytest.raises(ImageError, match="the file holds 1 images"):
        open_recorded(f"{file}#1")
    assert np.asarray(open_recorded(f"{file}#0")).dtype == np.uint8
