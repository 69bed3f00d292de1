"""Image files to betons and back, read by hand and by FFCV, and everything that can go wrong."""

import dataclasses
import hashlib
import io
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llc.data import beton as layout
from llc.data import writer
from llc.data.encoding import shrink, uniform
from llc.data.images import load_rgb
from llc.data.manifest import load_manifest, verify
from llc.data.sources import IndexedDataset
from llc.data.writer import WriterConfig, write_beton
from llc.errors import UserError
from llc.native.codec import decode
from tests.data.betons import stored_samples
from tests.data.helpers import (
    REPOSITORY,
    FailingSource,
    ThreadsSource,
    children_of,
    picture,
    wait_until,
    write_tree,
)
from tests.waiting import seconds

# Mean difference of a JPEG of quality 90 and 95 from these small coloured pictures: 4 to 6 levels; two
# pictures differ by 60.
NEAR = 10


def convert(tree, path, **settings):
    return write_beton(
        WriterConfig(write_path=str(path), data_dir=str(tree), **settings), show_progress=False
    )


def samples(path, mode=None):
    """[(mode, pixels, label)] in order, by nothing of llc's.

    mode: Pillow's mode, to which JPEGs are converted.
    """
    return [(sample.mode, sample.pixels(mode), sample.label) for sample in stored_samples(path)]


def stored_bytes(path):
    """The data of each sample, in order."""
    return [sample.data for sample in stored_samples(path)]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# ----------------------------------------------------------------------------------------- what is in a beton


def test_layout_is_ffcvs(tree, tmp_path):
    pytest.importorskip("ffcv")
    from ffcv.fields import IntField, RGBImageField
    from ffcv.reader import Reader
    from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, FieldDescType, HeaderType, get_metadata_type

    assert (layout.HEADER_TYPE, layout.FIELD_TYPE) == (HeaderType, FieldDescType)
    assert layout.ALLOC_TYPE == ALLOC_TABLE_TYPE
    assert layout.METADATA_TYPE == get_metadata_type([RGBImageField(), IntField()])
    assert layout.VERSION == CURRENT_VERSION

    convert(tree, tmp_path / "out.beton")
    reader = Reader(str(tmp_path / "out.beton"))
    sizes = dict(zip(reader.alloc_table["ptr"].tolist(), reader.alloc_table["size"].tolist()))
    rows = [(*row["f0"].item(), int(row["f1"])) for row in reader.metadata]
    found = stored_samples(tmp_path / "out.beton")
    assert [(s.mode, s.width, s.height, s.start, s.label) for s in found] == rows
    assert [len(s.data) for s in found] == [sizes[s.start] for s in found]


def test_stock_ffcv_loads_the_right_pixels_and_labels_in_order(tmp_path):
    pytest.importorskip("ffcv")
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    pictures = [picture(i, 24, 24) for i in range(23)]
    dataset = [(Image.fromarray(pixels), i * 7 % 5) for i, pixels in enumerate(pictures)]
    source = IndexedDataset(tuple("abcde"), np.array([label for _, label in dataset]), "pictures", dataset)
    path = tmp_path / "out.beton"
    write_beton(WriterConfig(write_path=str(path), num_workers=2, chunk_size=4), source, show_progress=False)
    modes = [mode for mode, _, _ in samples(path)]
    assert 5 < sum(modes) < 18  # both kinds
    loader = Loader(
        str(path),
        batch_size=5,
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        drop_last=False,
        pipelines={"image": [CenterCropRGBImageDecoder((24, 24), 1.0)], "label": [IntDecoder()]},
    )
    position = 0
    for images, labels in loader:
        for image, label in zip(images, labels.reshape(-1)):
            difference = np.abs(image.astype(int) - pictures[position]).mean()
            assert difference == 0 if modes[position] else 0 < difference < NEAR  # raw; JPEG at quality 90
            assert label == position * 7 % 5
            position += 1
    assert position == 23


@pytest.mark.parametrize("keep_jpeg", [False, True])
def test_stock_ffcv_and_ours_read_jpegs_of_every_kind(keep_jpeg, tmp_path):
    pytest.importorskip("ffcv")
    from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    folder = tmp_path / "images/a"
    folder.mkdir(parents=True)
    kinds = [
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2},
        {"progressive": True},
        {"optimize": True},
        {"mode": "L"},
    ]
    for i, options in enumerate(kinds):
        image = Image.fromarray(picture(i, 64, 64)).convert(options.get("mode", "RGB"))
        image.save(folder / f"{i}.jpg", quality=98, **options)
    convert(
        tmp_path / "images", tmp_path / "out.beton", write_mode="jpg", keep_jpeg=keep_jpeg, jpeg_quality=95
    )
    expected = [load_rgb(path) for path in sorted(folder.iterdir())]
    stored = samples(tmp_path / "out.beton", mode="RGB")
    loader = Loader(
        str(tmp_path / "out.beton"),
        batch_size=6,
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        drop_last=False,
        pipelines={"image": [CenterCropRGBImageDecoder((64, 64), 1.0)], "label": None},
    )
    (by_ffcv,) = next(iter(loader))
    for (mode, pixels, _), data, ffcv_pixels, right in zip(
        stored, stored_bytes(tmp_path / "out.beton"), by_ffcv, expected, strict=True
    ):
        assert mode == 0 and b"\xff\xd0" in data and np.array_equal(decode(data), pixels)
        assert np.array_equal(pixels, right) if keep_jpeg else np.abs(pixels.astype(int) - right).mean() < 4
        assert (
            np.abs(ffcv_pixels.astype(int) - pixels).mean() < NEAR / 2
        )  # FFCV asks libjpeg for fast, less exact pixels


def test_keep_jpeg_encodes_what_does_not_fit(tmp_path):
    (tmp_path / "images/a").mkdir(parents=True)
    for i, size in enumerate((40, 41)):
        Image.fromarray(picture(i, size, size)).save(
            tmp_path / f"images/a/{i}.jpg", quality=60, subsampling=0
        )
    convert(tmp_path / "images", tmp_path / "out.beton", write_mode="jpg", keep_jpeg=True, max_resolution=40)
    layers = [
        [layer[1:3] for layer in Image.open(io.BytesIO(data)).layer]
        for data in stored_bytes(tmp_path / "out.beton")
    ]
    assert layers == [[(1, 1)] * 3, [(2, 2), (1, 1), (1, 1)]]


def test_smart_mode_looks_at_the_size_that_is_stored(tmp_path):
    (tmp_path / "images/a").mkdir(parents=True)
    for i, size in enumerate((40, 80, 30)):
        Image.fromarray(picture(i, size, size)).save(tmp_path / f"images/a/{i}.jpg")
    (tmp_path / "images/a/3.png").write_bytes((tmp_path / "images/a/0.jpg").read_bytes()[:40] * 9)
    settings = {
        "write_mode": "smart",
        "smart_threshold": 3 * 40 * 40 - 1,
        "max_resolution": 40,
        "on_error": "skip",
    }
    convert(tmp_path / "images", tmp_path / "out.beton", **settings)
    assert [mode for mode, _, _ in samples(tmp_path / "out.beton")] == [0, 0, 1]


def test_raw_is_exact_and_manifest_says_what_is_there(tree, tmp_path):
    manifest = convert(tree, tmp_path / "out.beton", write_mode="raw")
    found = samples(tmp_path / "out.beton")
    assert [mode for mode, _, _ in found] == [1] * 26
    for (_, pixels, _), expected in zip(found, tree.pixels.values()):
        assert np.array_equal(pixels, expected)
    assert [label for _, _, label in found] == [0] * 5 + [1] * 12 + [2] * 9
    assert manifest == verify(tmp_path / "out.beton") == load_manifest(tmp_path / "out.beton.json")
    assert manifest.class_names == ("ant", "bee", "cow") and manifest.class_counts == (5, 12, 9)
    assert manifest.num_samples == 26 and manifest.file_size == (tmp_path / "out.beton").stat().st_size
    assert (
        manifest.writer["write_mode"] == "raw"
        and manifest.writer["data_dir"] == str(tree)
        and manifest.skipped == ()
    )
    assert set(manifest.writer) == {field.name for field in dataclasses.fields(WriterConfig)}
    assert names_in(tmp_path) == ["images", "out.beton", "out.beton.json"]
    for name in ("out.beton", "out.beton.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o644


def test_jpg_is_near_and_quality_counts(tree, tmp_path):
    sizes = []
    for quality, tolerance in ((95, NEAR), (40, 2 * NEAR)):
        path = tmp_path / f"{quality}.beton"
        convert(tree, path, write_mode="jpg", jpeg_quality=quality)
        for (mode, pixels, _), expected in zip(samples(path), tree.pixels.values(), strict=True):
            assert mode == 0 and 0 < np.abs(pixels.astype(int) - expected).mean() < tolerance
        sizes.append(int(layout.read_tables(path).sizes.sum()))
    assert sizes[0] > 1.25 * sizes[1]  # of which the headers take as much in both


def test_any_number_of_workers_writes_the_same_bytes(tree, tmp_path):
    digests = set()
    for num_workers, chunk_size in ((1, 100), (2, 3), (3, 1), (5, 2)):
        path = tmp_path / f"{num_workers}.beton"
        convert(tree, path, num_workers=num_workers, chunk_size=chunk_size)
        digests.add(sha256(path))
    assert len(digests) == 1
    modes = [mode for mode, _, _ in samples(path)]
    assert 0 < sum(modes) < 26


def test_pages_hold_whole_samples(tmp_path):
    # 40 noisy raw pictures of 1.1 MB: 7 to a page of 8 MiB
    (tmp_path / "images/a").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (600, 610, 3), np.uint8)
    for i in range(40):
        cv2.imwrite(str(tmp_path / f"images/a/{i:02}.bmp"), np.roll(noise, i, axis=0)[:, :, ::-1])
    for num_workers in (1, 3):
        path = tmp_path / f"{num_workers}.beton"
        convert(
            tmp_path / "images",
            path,
            write_mode="raw",
            max_resolution=0,
            num_workers=num_workers,
            chunk_size=4,
        )
    assert sha256(tmp_path / "1.beton") == sha256(tmp_path / "3.beton")
    for i, (_, pixels, _) in enumerate(samples(path)):
        assert np.array_equal(pixels, np.roll(noise, i, axis=0))
    found = stored_samples(path)
    first = [sample.start // layout.PAGE_SIZE for sample in found]
    last = [(sample.start + len(sample.data) - 1) // layout.PAGE_SIZE for sample in found]
    assert first == last and len(set(first)) == 6
    verify(path)


def test_settings_select_raw_or_jpeg(tree, tmp_path):
    def modes(**settings):
        convert(tree, tmp_path / "out.beton", **settings)
        return [mode for mode, _, _ in samples(tmp_path / "out.beton")]

    sizes = [pixels.nbytes for pixels in tree.pixels.values()]
    threshold = sorted(sizes)[13]
    assert modes(write_mode="smart") == [1] * 26
    assert modes(write_mode="smart", smart_threshold=threshold) == [int(size <= threshold) for size in sizes]
    assert modes(compress_probability=0) == [1] * 26
    assert modes(compress_probability=1) == [0] * 26
    some, more = modes(compress_probability=0.3), modes(compress_probability=0.7)
    assert some == [int(uniform(i) >= 0.3) for i in range(26)]
    assert all(a >= b for a, b in zip(some, more)) and some != more


def test_uniform_is_splitmix64():
    # the generator's published first outputs for seed 0
    for index, value in enumerate((0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)):
        assert uniform(index) == (value >> 11) / 2**53
    values = np.array([uniform(i) for i in range(20_000)])
    counts, _ = np.histogram(values, bins=20, range=(0, 1))
    # 1000 expected in each, standard deviation 31
    assert counts.sum() == 20_000 and np.abs(counts - 1000).max() < 150
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 0.03


@given(start=st.integers(0, 3), sizes=st.lists(st.integers(0, layout.PAGE_SIZE), max_size=30))
def test_place(start, sizes):
    begin = start * 1_234_567
    places, end = layout.place(begin, sizes)
    position = begin
    for where, size in zip(places.tolist(), sizes):
        assert where >= position and where % layout.PAGE_SIZE + size <= layout.PAGE_SIZE
        # space is left free only where the sample does not fit into the page
        assert where == position or (
            where % layout.PAGE_SIZE == 0 and position % layout.PAGE_SIZE + size > layout.PAGE_SIZE
        )
        position = where + size
    assert end == position


@pytest.mark.parametrize(
    "height, width, max_resolution, expected",
    [
        (300, 400, 500, (300, 400)),  # never enlarged
        (500, 500, 500, (500, 500)),
        (375, 501, 500, (374, 500)),
        (1000, 750, 500, (500, 375)),
        (3, 3000, 500, (1, 500)),  # 0.5 rows: a side never becomes 0
        (3000, 1, 500, (500, 1)),
        (733, 367, 500, (500, 250)),  # 500 / 733 * 733 is 499.99... in floating point
        (900, 800, 0, (900, 800)),
        (50, 40, 1, (1, 1)),
    ],
)
def test_shrink(height, width, max_resolution, expected):
    pixels = picture(1, height, width)
    small = shrink(pixels, max_resolution)
    assert small.shape == (*expected, 3)
    if small.shape != pixels.shape:
        assert abs(small.mean() - pixels.mean()) < 8  # an average, not a crop


def test_shrinking_by_two_averages_four_pixels(tmp_path):
    pixels = picture(3, 60, 80)
    (tmp_path / "images/a").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "images/a/1.png")
    convert(tmp_path / "images", tmp_path / "out.beton", write_mode="raw", max_resolution=40)
    expected = pixels.reshape(30, 2, 40, 2, 3).mean(axis=(1, 3))
    assert np.abs(samples(tmp_path / "out.beton")[0][1] - expected).max() <= 0.5


def test_slivers_and_single_pixels_are_written(tmp_path):
    (tmp_path / "images/a").mkdir(parents=True)
    for i, size in enumerate(((1, 1), (3000, 3), (1, 2000))):
        Image.new("RGB", size, (200, 100, 50)).save(tmp_path / f"images/a/{i}.png")
    convert(tmp_path / "images", tmp_path / "out.beton")
    assert [pixels.shape for _, pixels, _ in samples(tmp_path / "out.beton")] == [
        (1, 1, 3),
        (1, 500, 3),
        (500, 1, 3),
    ]
    verify(tmp_path / "out.beton")


def test_odd_files_are_stored_as_load_rgb_reads_them(tmp_path):
    folder = tmp_path / "images/a"
    folder.mkdir(parents=True)
    pixels = Image.fromarray(picture(5, 20, 31))
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels.convert("CMYK").save(folder / "0.jpg")
    pixels.save(folder / "1.jpeg", exif=exif)
    pixels.quantize(8).save(folder / "2.GIF")
    Image.fromarray(np.asarray(pixels.convert("L")).astype(np.uint16) * 257).save(folder / "3.png")
    pixels.convert("LA").save(folder / "4.png")
    convert(tmp_path / "images", tmp_path / "out.beton", write_mode="raw")
    found = [pixels for _, pixels, _ in samples(tmp_path / "out.beton")]
    assert [pixels.shape for pixels in found] == [
        (20, 31, 3),
        (31, 20, 3),
        (20, 31, 3),
        (20, 31, 3),
        (20, 31, 3),
    ]
    for path, pixels in zip(sorted(folder.iterdir()), found):
        assert np.array_equal(pixels, load_rgb(path))


def test_splits_classes_and_subset(tree, tmp_path):
    train = convert(tree, tmp_path / "train.beton", write_mode="raw", val_fraction=0.3)
    val = convert(tree, tmp_path / "val.beton", write_mode="raw", val_fraction=0.3, split="val")
    parts = [
        [pixels.tobytes() for _, pixels, _ in samples(tmp_path / name)]
        for name in ("train.beton", "val.beton")
    ]
    assert sorted(parts[0] + parts[1]) == sorted(pixels.tobytes() for pixels in tree.pixels.values())
    assert train.class_counts == (3, 8, 6) and val.class_counts == (2, 4, 3)

    shutil.rmtree(tree / "bee")
    forced = convert(tree, tmp_path / "forced.beton", class_names_from=str(tmp_path / "train.beton.json"))
    assert forced.class_names == train.class_names and forced.class_counts == (5, 0, 9)
    assert {label for _, _, label in samples(tmp_path / "forced.beton")} == {0, 2}
    assert convert(tree, tmp_path / "few.beton", subset=4).num_samples == 4


def test_config_of_the_worker_count_is_all_cores(tree, tmp_path, monkeypatch):
    used = []
    workers = writer.Workers
    monkeypatch.setattr(writer, "Workers", lambda count, *rest: used.append(count) or workers(count, *rest))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    convert(tree, tmp_path / "out.beton")
    convert(tree, tmp_path / "out.beton", num_workers=100, subset=4)
    assert used == [3, 4]


def test_from_a_thread(tree, tmp_path):
    # signal handlers can only be set in the main thread
    thread = threading.Thread(target=convert, args=(tree, tmp_path / "out.beton"))
    thread.start()
    thread.join(seconds(60))
    assert verify(tmp_path / "out.beton").num_samples == 26


@pytest.fixture
def run_script():
    """Runs Python text in an interpreter of its own, which is given up when it hangs."""

    def run(text):
        head = (
            "import cv2, numpy as np\nfrom llc.data.sources import IndexedDataset\n"
            "from llc.data.writer import WriterConfig, write_beton\n"
        )
        command = [sys.executable, "-c", head + textwrap.dedent(text)]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=seconds(60))

    return run


def test_beside_threads_of_opencv(tree, tmp_path, run_script):
    # a worker forked here would wait for OpenCV's other threads, which a fork does not have
    done = run_script(f"""
        cv2.setNumThreads(4)
        cv2.resize(np.zeros((2000, 2000, 3), np.uint8), (900, 900), interpolation=cv2.INTER_AREA)
        path = {str(tmp_path / "out.beton")!r}
        config = WriterConfig(write_path=path, data_dir={str(tree)!r}, max_resolution=15)
        write_beton(config)
    """)
    assert done.returncode == 0, done.stderr
    assert verify(tmp_path / "out.beton").num_samples == 26


def test_a_worker_computes_in_one_thread(tmp_path):
    # there are as many workers as cores
    write_beton(
        WriterConfig(write_path=str(tmp_path / "out.beton"), num_workers=1, write_mode="raw"),
        ThreadsSource(),
        show_progress=False,
    )
    [(_, pixels, _)] = samples(tmp_path / "out.beton")
    assert (pixels == 1).all()


def test_importing_the_workers_loads_no_pillow():
    # a worker seldom needs it, and its start would become a third longer
    script = (
        "import sys, llc.data.workers, llc.data.sources;"
        ' print({"cv2", "PIL.Image", "torch", "yaml"} & set(sys.modules))'
    )
    assert (
        subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True).stdout
        == "set()\n"
    )


def test_importing_the_writer_loads_no_torch(run_script):
    # every worker would spend a second and half a gigabyte on it
    assert run_script('import sys; print("torch" in sys.modules)').stdout == "False\n"


# --------------------------------------------------------------------------------- images that cannot be read


@pytest.fixture
def spoilt(tree):
    """The tree with three files that cannot be read."""
    (tree / "ant/001.png").write_bytes((tree / "ant/001.png").read_bytes()[:200])
    (tree / "bee/empty.jpg").write_bytes(b"")
    os.symlink("gone.png", tree / "cow/link.png")
    return tree


def test_fail_lists_every_bad_file_and_writes_nothing(spoilt, tmp_path):
    (tmp_path / "out").mkdir()
    for name in ("out.beton", "out.beton.json"):
        (tmp_path / "out" / name).write_text("before")
    with pytest.raises(UserError) as caught:
        convert(spoilt, tmp_path / "out/out.beton", num_workers=2, chunk_size=2)
    message = str(caught.value)
    assert (
        message.startswith("3 of 28 images cannot be read; nothing was written.")
        and "on_error=skip" in message
    )
    assert [line.split(":")[0].strip() for line in message.splitlines()[1:]] == [
        "ant/001.png",
        "bee/empty.jpg",
        "cow/link.png",
    ]
    assert names_in(tmp_path / "out") == ["out.beton", "out.beton.json"]
    assert (
        (tmp_path / "out/out.beton").read_text() == (tmp_path / "out/out.beton.json").read_text() == "before"
    )


def test_skip_leaves_them_out_and_lists_them(spoilt, tmp_path, capsys):
    digests = set()
    for num_workers in (1, 3):
        path = tmp_path / f"{num_workers}.beton"
        manifest = convert(spoilt, path, on_error="skip", num_workers=num_workers, chunk_size=2)
        digests.add(sha256(path))
    assert len(digests) == 1
    assert [skipped.name for skipped in manifest.skipped] == ["ant/001.png", "bee/empty.jpg", "cow/link.png"]
    assert manifest.skipped[1].reason == "is an empty file" and manifest.num_samples == 25
    assert manifest.class_counts == (4, 12, 9) and verify(path) == manifest
    assert str(tmp_path) not in "".join(skipped.reason for skipped in manifest.skipped)
    good = [pixels for name, pixels in spoilt.pixels.items() if name != "ant/001.png"]
    assert [label for _, _, label in samples(path)] == [0] * 4 + [1] * 12 + [2] * 9
    for (mode, pixels, _), expected in zip(samples(path), good, strict=True):
        assert np.abs(pixels.astype(int) - expected).mean() <= (0 if mode else NEAR)
    printed = capsys.readouterr().out
    assert "3 images cannot be read and were left out:\n  ant/001.png: " in printed


def test_nothing_readable_is_an_error_even_with_skip(tmp_path):
    (tmp_path / "images/a").mkdir(parents=True)
    for i in range(3):
        (tmp_path / f"images/a/{i}.jpg").write_text("text")
    with pytest.raises(
        UserError, match="none of the 3 images can be read; nothing was written:\n  a/0.jpg: "
    ):
        convert(tmp_path / "images", tmp_path / "out.beton", on_error="skip")
    assert names_in(tmp_path) == ["images"]


def test_a_picture_larger_than_a_page_is_named(tmp_path):
    (tmp_path / "images/a").mkdir(parents=True)
    Image.new("RGB", (1700, 1700)).save(tmp_path / "images/a/large.png")
    with pytest.raises(
        UserError, match=r"a/large.png: takes 8,670,000 bytes .* page holds 8,388,608 \(set max_resolution"
    ):
        convert(tmp_path / "images", tmp_path / "out.beton", write_mode="raw", max_resolution=0)
    convert(tmp_path / "images", tmp_path / "out.beton", write_mode="jpg", max_resolution=0)


def test_names_that_are_not_utf8(tree, tmp_path):
    with open(os.fsencode(tree) + b"/ant/\xff.png", "wb"):
        pass
    os.mkdir(os.fsencode(tree) + b"/d\xe9")
    Image.new("RGB", (5, 5)).save(os.fsencode(tree) + b"/d\xe9/1.png")
    manifest = convert(tree, tmp_path / "out.beton", on_error="skip")
    assert manifest.skipped[0].name == "ant/\\xff.png"
    assert os.fsencode(manifest.class_names[3]) == b"d\xe9"
    assert verify(tmp_path / "out.beton") == manifest
    again = convert(
        tree, tmp_path / "again.beton", on_error="skip", class_names_from=str(tmp_path / "out.beton")
    )
    assert again.class_names == manifest.class_names


# ---------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    "write_path, message",
    [
        ("", "write_path is empty"),
        ("nowhere/out.beton", "the folder .*nowhere does not exist"),
        ("images", "is a folder; give a file"),
        ("out.json", "would look like a manifest"),
        ("pipe", "is not a regular file"),
    ],
)
def test_targets_that_cannot_be_written(write_path, message, tree, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=message):
        convert(tree, tmp_path / write_path if write_path else "")
    assert names_in(tmp_path) == ["images", "pipe"]


def test_an_existing_beton_is_replaced(tree, tmp_path):
    first = convert(tree, tmp_path / "out.beton")
    second = convert(tree, tmp_path / "out.beton", write_mode="jpg")
    assert first != second == verify(tmp_path / "out.beton")


def test_what_a_killed_conversion_left_is_removed_unless_in_use(tree, tmp_path):
    out = tmp_path / "o[u]t.beton"
    stale, used, other = (
        tmp_path / name for name in (".o[u]t.beton.abc.tmp", ".o[u]t.beton.def.tmp", ".o[u]t.beton2.abc.tmp")
    )
    for path in (stale, used, other):
        path.write_bytes(b"half")
        os.utime(path, (1, 1))
    with open(used) as file:
        assert writer._lock(file.fileno())
        convert(tree, out)
    assert names_in(tmp_path) == sorted([used.name, other.name, "images", out.name, out.name + ".json"])


# ---------------------------------------------------------------------------------------------- faults


@pytest.fixture
def slow_tree(tmp_path):
    """Links to a picture that takes long to decode: half a minute of work for one core."""
    folder = tmp_path / "images/a"
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "0.png"), np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8))
    for i in range(1, 1500):
        os.link(folder / "0.png", folder / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def halfway(slow_tree, tmp_path, start_write_ffcv, no_shared_memory_is_left):
    """A conversion by two workers that has already written images.

    Returns its process, its workers, and a check that nothing is left of it.
    """
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old.beton").write_text("before")
    # a process that is started under nohup ignores SIGHUP, and so do those that it starts
    inherited = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    process = start_write_ffcv(
        data_dir=slow_tree, write_path=tmp_path / "out/old.beton", num_workers=2, chunk_size=3
    )
    signal.signal(signal.SIGHUP, inherited)
    wait_until(
        lambda: any(path.stat().st_size > 9_000_000 for path in (tmp_path / "out").glob(".old.beton.*.tmp"))
    )
    workers = children_of(process.pid)
    assert len(workers) == 2 and process.poll() is None

    def nothing_is_left():
        wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers))
        no_shared_memory_is_left()
        assert names_in(tmp_path / "out") == ["old.beton"]
        assert (tmp_path / "out/old.beton").read_text() == "before"

    return process, workers, nothing_is_left


def test_a_killed_worker(halfway):
    process, workers, nothing_is_left = halfway
    os.kill(workers[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=seconds(60))
    assert process.returncode == 2
    assert (
        f"worker process {workers[1]} was killed by SIGKILL (the system does that when memory runs out)"
        in errors
    )
    assert "Traceback" not in errors
    nothing_is_left()


@pytest.mark.parametrize(
    "number, to_group, status",
    [
        (signal.SIGINT, True, 130),
        (signal.SIGTERM, False, 143),
        (signal.SIGTERM, True, None),
        (signal.SIGHUP, False, 129),
    ],
)
def test_signals(number, to_group, status, halfway):
    process, _, nothing_is_left = halfway
    (os.killpg if to_group else os.kill)(process.pid, number)
    output, errors = process.communicate(timeout=seconds(60))
    # SIGTERM to all: the parent may first notice the signal or the death of its worker
    assert process.returncode == status if status else process.returncode in (2, 143)
    assert "Traceback" not in errors
    assert "was not written" in output or "nothing was written" in errors
    nothing_is_left()


def test_workers_do_not_outlive_their_parent(halfway, tmp_path):
    process, workers, _ = halfway
    process.kill()
    process.wait(seconds(60))
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers))
    assert (
        tmp_path / "out/old.beton"
    ).read_text() == "before"  # only the temporary file is left, for the next to remove


def test_a_bug_in_a_worker_is_shown_and_ends_all(tmp_path, no_shared_memory_is_left):
    before = children_of(os.getpid())
    with pytest.raises(
        UserError, match="(?s)a worker process failed; nothing was written:.*ZeroDivisionError"
    ):
        write_beton(
            WriterConfig(write_path=str(tmp_path / "out.beton"), num_workers=2, chunk_size=2), FailingSource()
        )
    assert names_in(tmp_path) == [] and children_of(os.getpid()) == before
    no_shared_memory_is_left()


def test_a_worker_that_leaves_is_noticed(tmp_path):
    with pytest.raises(UserError, match=r"worker process \d+ ended with status 7; nothing was written"):
        write_beton(
            WriterConfig(write_path=str(tmp_path / "out.beton"), num_workers=2), FailingSource(leaves=True)
        )
    assert names_in(tmp_path) == []


def test_a_dataset_that_cannot_be_sent_to_workers(tmp_path, run_script):
    source = IndexedDataset(("a",), np.zeros(3, np.int64), "mine", lambda i: i)
    with pytest.raises(
        UserError,
        match="this IndexedDataset cannot be sent to worker processes: .*lambda.* must be picklable",
    ):
        write_beton(WriterConfig(write_path=str(tmp_path / "out.beton")), source)
    done = run_script(f"""
        class Mine(list):
            pass
        source = IndexedDataset(("a",), np.zeros(3, np.int64), "mine", Mine([(b"",)] * 3))
        write_beton(WriterConfig(write_path={str(tmp_path / "out.beton")!r}), source)
    """)
    assert "cannot be sent to worker processes: Can't get attribute 'Mine'" in done.stderr
    assert names_in(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path):
    """A folder with 3 MB of space: a tmpfs, or else a limit on the size of files.

    Returns it, and what a process must run first to see the limit.
    """
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True
        ).returncode
        == 0
    )
    yield (
        folder,
        None if mounted else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000)),
    )
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(tmp_path, small_disk, write_ffcv):
    folder, before_start = small_disk
    write_tree(tmp_path / "images", {"a": 3})
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8)
    for i in range(40):
        cv2.imwrite(str(tmp_path / f"images/a/noise{i}.bmp"), noise)
    (folder / "out.beton").write_text("before")
    for _ in range(2):  # twice: the first must leave room for the second
        done = write_ffcv(
            data_dir=tmp_path / "images",
            write_path=folder / "out.beton",
            write_mode="raw",
            preexec_fn=before_start,
        )
        assert done.returncode == 2 and "Traceback" not in done.stderr
        if before_start is None:
            assert (
                f"{folder / 'out.beton'} cannot be written: No space left on device (0.0 GB are free in"
                f" {folder})" in done.stderr
            )
        else:
            assert f"{folder / 'out.beton'} cannot be written: File too large" in done.stderr
        assert names_in(folder) == ["out.beton"] and (folder / "out.beton").read_text() == "before"


def test_a_disk_that_fills_at_the_manifest(tree, tmp_path, monkeypatch):
    convert(tree, tmp_path / "out.beton")
    before = sha256(tmp_path / "out.beton"), sha256(tmp_path / "out.beton.json")
    write_at = writer.write_at

    def full(descriptor, data, offset):
        if bytes(data[:1]) == b"{":
            raise OSError(28, "No space left on device")
        write_at(descriptor, data, offset)

    monkeypatch.setattr(writer, "write_at", full)
    with pytest.raises(UserError, match="out.beton cannot be written: No space left"):
        convert(tree, tmp_path / "out.beton", write_mode="jpg")
    assert (sha256(tmp_path / "out.beton"), sha256(tmp_path / "out.beton.json")) == before
    assert names_in(tmp_path) == ["images", "out.beton", "out.beton.json"]


def test_a_folder_without_permission(tree, tmp_path, monkeypatch):
    def forbidden(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(writer.tempfile, "mkstemp", forbidden)  # root may write anywhere
    with pytest.raises(UserError, match="out.beton cannot be written: Permission denied"):
        convert(tree, tmp_path / "out.beton")


# ---------------------------------------------------------------------------------------------- the command


def test_the_command_from_end_to_end(tree, tmp_path, write_ffcv):
    done = write_ffcv(
        data_dir=tree,
        write_path=tmp_path / "val.beton",
        split="val",
        val_fraction=0.2,
        num_workers=2,
        write_mode="jpg",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no terminal, and done in less time than a line of progress takes
    manifest = verify(tmp_path / "val.beton")
    assert manifest.num_samples == 5  # 1 of 5, 2 of 12, 2 of 9
    assert (
        f"{tmp_path / 'val.beton'}: 5 images, 3 classes, {manifest.file_size:,} bytes, "
        in done.stdout.splitlines()[-1]
    )
    assert manifest.writer["num_workers"] == 2 and manifest.writer["val_fraction"] == 0.2

    wrong = write_tree(tmp_path / "other", {"ant": 1, "dog": 1})
    assert wrong
    done = write_ffcv(
        data_dir=tmp_path / "other",
        write_path=tmp_path / "o.beton",
        class_names_from=tmp_path / "val.beton.json",
    )
    assert done.returncode == 2 and done.stdout == ""
    assert (
        "error: 1 classes are not among the 3 of class_names_from: dog; without images here: bee, cow"
        in done.stderr
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"write_mod": "raw"}, "did you mean cfg.write_mode"),
        ({"write_mode": "png"}, "it takes one of raw, jpg, smart, proportion"),
        ({"data_dir": "/no/such/folder"}, "error: data_dir /no/such/folder does not exist"),
    ],
)
def test_the_command_refuses(flags, message, tmp_path, write_ffcv):
    done = write_ffcv(**{"data_dir": tmp_path, "write_path": tmp_path / "out.beton", **flags})
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert names_in(tmp_path) == []
