"""Parquet files: which images, labels and classes they give, how they are read, and what is refused."""

import io
import json
import pickle
import random
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from llc.data.images import ImageError, load_rgb
from llc.data.manifest import verify
from llc.data.sources import (
    Columns,
    Selection,
    SourceError,
    open_named,
    open_source,
    parquet,
    parquet_pages,
    recognise,
)
from llc.errors import UserError
from tests.data.betons import stored_samples
from tests.data.helpers import picture

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CLASSES = ["tench, Tinca tinca", "goldfish", "great white shark"]


def png(seed):
    file = io.BytesIO()
    Image.fromarray(picture(seed, 9 + seed % 5, 12)).save(file, "PNG")
    return file.getvalue()


def metadata(image="image", label="label", names=CLASSES):
    features = {
        "id": {"dtype": "int64", "_type": "Value"},
        image: {"_type": "Image"},
        label: {"names": names, "_type": "ClassLabel"},
    }
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def write(path, rows, labels, names=CLASSES, **options):
    """A file as `datasets` writes it. rows: seeds of pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(i), "path": f"n{i:08}.JPEG"} for i in rows]
    table = pa.table({"image": pa.array(images, IMAGE), "label": pa.array(labels, pa.int64())})
    table = table.replace_schema_metadata(metadata(names=names) if names else None)
    pq.write_table(table, path, **{"row_group_size": 3, **options})
    return path


def open_parquet(path, split="train", **columns):
    return open_named("parquet", str(path), split, Columns(**columns))


def pixels(source, i):
    return load_rgb(source.image(i))


def take_first(source, count):
    return Selection((), source.labels[:count], source, np.arange(count))


def assert_pictures(source, seeds):
    assert len(source) == len(seeds)
    for i, seed in enumerate(seeds):
        assert np.array_equal(pixels(source, i), picture(seed, 9 + seed % 5, 12)), i


# ------------------------------------------------------------------------------------------- files and splits


@pytest.fixture
def imagenet(tmp_path):
    """The layout of imagenet-1k: two shards of train, one of validation, one of test without labels."""
    write(tmp_path / "data/train-00000-of-00002.parquet", range(7), [2, 0, 1, 1, 2, 0, 2])
    write(tmp_path / "data/train-00001-of-00002.parquet", range(7, 12), [0, 0, 2, 1, 1])
    write(tmp_path / "data/validation-00000-of-00001.parquet", range(20, 24), [0, 2, 2, 0])
    write(tmp_path / "data/test-00000-of-00001.parquet", range(30, 33), [-1, -1, -1])
    return tmp_path


def test_imagenet_as_hugging_face_has_it(imagenet):
    for place in (imagenet, imagenet / "data"):
        assert recognise(str(place)) == "Parquet"
        source = open_source("auto", str(place))
        assert source.class_names == tuple(CLASSES) and source.class_words == ()
        assert (
            source.labels.tolist() == [2, 0, 1, 1, 2, 0, 2, 0, 0, 2, 1, 1] and source.labels.dtype == np.int64
        )
        assert_pictures(source, range(12))
        assert source.name(8).endswith("train-00001-of-00002.parquet[1]")
        val = open_source("auto", str(place), split="val")
        # goldfish is a class though val has no such image
        assert val.class_names == source.class_names and val.labels.tolist() == [0, 2, 2, 0]
        assert_pictures(val, range(20, 24))
    unlabelled = open_source("auto", str(imagenet / "data" / "test-*"))
    assert unlabelled.class_names == () and unlabelled.labels.tolist() == [-1, -1, -1]
    assert_pictures(unlabelled, range(30, 33))
    assert "no labels" in unlabelled.notes[-1]


def test_a_file_or_pattern_that_is_named_is_taken_whatever_the_split(imagenet):
    one = imagenet / "data/train-00001-of-00002.parquet"
    assert recognise(str(one)) == "Parquet"
    assert_pictures(open_parquet(one, "val"), range(7, 12))
    pattern = str(imagenet / "data/validation-*.parquet")
    assert recognise(pattern) == "Parquet"
    assert_pictures(open_parquet(pattern, "train"), range(20, 24))
    both = str(imagenet / "data/[tv]*-of-*.parquet")
    assert_pictures(open_parquet(both, "val"), range(20, 24))


def test_test_is_val_where_there_is_no_val_and_split_folders(tmp_path):
    write(tmp_path / "train/0000.parquet", range(3), [0, 1, 2])
    write(tmp_path / "test/0000.parquet", range(5, 7), [0, 1])
    assert_pictures(open_source("auto", str(tmp_path)), range(3))
    assert_pictures(open_source("auto", str(tmp_path), split="val"), range(5, 7))


def test_files_without_a_split_in_their_names_are_both_splits(tmp_path):
    write(tmp_path / "b.parquet", range(3, 5), [0, 1])
    write(tmp_path / "a.parquet", range(3), [0, 1, 2])
    for split in ("train", "val"):
        assert_pictures(open_parquet(tmp_path, split), range(5))


def test_what_is_not_recognised(tmp_path):
    assert not parquet.looks_like_parquet("")
    assert not parquet.looks_like_parquet(tmp_path / "nowhere")
    assert not parquet.looks_like_parquet(tmp_path / "nothing-*")
    (tmp_path / "train" / "cat").mkdir(parents=True)
    assert not parquet.looks_like_parquet(tmp_path)
    assert parquet.looks_like_parquet(tmp_path / "missing.parquet")  # so that the message is about it
    with pytest.raises(SourceError, match="missing.parquet does not exist"):
        open_parquet(tmp_path / "missing.parquet")


# ---------------------------------------------------------------------------------------------------- columns


def table(tmp_path, metadata=None, **columns):
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "t.parquet", row_group_size=2)
    return tmp_path / "t.parquet"


PNGS = pa.array([png(i) for i in range(5)])


def test_plain_binary_and_text_labels(tmp_path):
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())):
        labels = pa.array(["cat", "ant", "cat", "bee", "ant"]).cast(kind)
        source = open_parquet(table(tmp_path, img=PNGS, label=labels))
        assert source.class_names == ("ant", "bee", "cat") and source.labels.tolist() == [2, 0, 2, 1, 0]
        assert not source.numbered_classes
        assert_pictures(source, range(5))


def test_numbers_without_names_are_in_order_of_value(tmp_path):
    for kind in (pa.int64(), pa.uint8(), pa.string()):
        labels = pa.array([10, 9, 100, 9, 10]).cast(kind)
        source = open_parquet(table(tmp_path, image=PNGS, cls=labels))
        assert source.class_names == ("9", "10", "100") and source.labels.tolist() == [1, 0, 2, 0, 1]
        assert source.numbered_classes


def test_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(3):
        (tmp_path / f"photos/{i}.png").write_bytes(png(i))
    paths = [f"photos/{i}.png" for i in range(2)] + [str(tmp_path / "photos/2.png"), "photos/gone.png"]
    for image in (
        pa.array(paths),
        pa.array([{"bytes": None, "path": path} for path in paths], IMAGE),
        pa.array([{"path": path} for path in paths], pa.struct([("path", pa.string())])),
    ):
        source = open_parquet(table(tmp_path, image=image))
        assert_pictures(take_first(source, 3), range(3))
        with pytest.raises(ImageError, match="gone.png: .*No such file"):
            pixels(source, 3)


def test_columns_by_name_by_number_and_by_features(tmp_path):
    labels, others = pa.array([0, 1, 2, 0, 1]), pa.array([5, 5, 6, 6, 6])
    path = table(tmp_path, thumb=PNGS.take(pa.array([4, 3, 2, 1, 0])), photo=PNGS, kind=labels, width=others)
    with pytest.raises(
        SourceError, match="which column holds the images is not clear: thumb, photo, kind, wi"
    ):
        open_parquet(path)
    source = open_parquet(path, image="photo", label="kind")
    assert source.labels.tolist() == [0, 1, 2, 0, 1]
    assert_pictures(source, range(5))
    source = open_parquet(path, image="1", label="3")
    assert source.class_names == ("5", "6")
    source = open_parquet(path, image="photo")
    assert source.class_names == () and "other columns: thumb, kind, width" in source.notes[-1]
    path = table(tmp_path, metadata("photo", "kind"), thumb=PNGS, photo=PNGS, kind=labels, label=others)
    source = open_parquet(path)
    assert source.class_names == tuple(CLASSES) and source.labels.tolist() == [0, 1, 2, 0, 1]
    with pytest.raises(SourceError, match="no label column 'kin'; its columns are thumb, photo, kind, label"):
        open_parquet(path, label="kin")


def test_cifar100_has_two_columns_of_classes(tmp_path):
    features = {
        "img": {"_type": "Image"},
        "fine_label": {"names": list("abcdef"), "_type": "ClassLabel"},
        "coarse_label": {"names": ["x", "y"], "_type": "ClassLabel"},
    }
    words = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    fine, coarse = pa.array([5, 0, 2, 1, 3]), pa.array([1, 0, 0, 1, 0])
    path = table(tmp_path, words, img=PNGS, fine_label=fine, coarse_label=coarse)
    assert open_parquet(path).class_names == tuple("abcdef")
    assert open_parquet(path, label="coarse_label").class_names == ("x", "y")


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"image": PNGS, "label": pa.array([[0], [1], [], [2], [0]])}, "the label column label holds list<"),
        ({"image": PNGS, "label": pa.array([0.5] * 5)}, "label holds double; one whole number or text"),
        ({"image": PNGS, "label": pa.array([0, 1, None, 1, 0])}, r"t.parquet\[2\] has no label, while other"),
        ({"image": PNGS, "label": pa.array([0, 1, 0, -1, 0])}, r"\[3\] has the label -1, as 1 of 5 images"),
        (
            {"image": PNGS, "label": pa.array([0] * 5), "labels": pa.array([1] * 5)},
            "may be the label: label, l",
        ),
        ({"image": PNGS, "img": PNGS}, "several columns that may be the image: image, img"),
        ({"image": pa.array([3] * 5)}, "which column holds the images is not clear: image"),
        ({"image": PNGS[:0]}, "hold no rows"),
    ],
)
def test_columns_that_cannot_be_used(columns, message, tmp_path):
    with pytest.raises(SourceError, match=message):
        open_parquet(table(tmp_path, **columns))


def test_missing_labels_everywhere_are_images_without_labels(tmp_path):
    for labels in (pa.nulls(5), pa.nulls(5, pa.int64()), pa.array([-1] * 5)):
        source = open_parquet(table(tmp_path, image=PNGS, label=labels))
        assert source.class_names == () and source.labels.tolist() == [-1] * 5


def test_labels_beyond_the_names_and_names_that_occur_twice(tmp_path):
    with pytest.raises(SourceError, match=r"a.parquet\[1\] has the label 3, .* labels are 0 to 2, of its 3"):
        open_parquet(write(tmp_path / "a.parquet", range(3), [0, 3, 1]))
    source = open_parquet(write(tmp_path / "a.parquet", range(3), [0, 2, 1], ["crane", "ant", "crane"]))
    assert source.class_names == ("crane (0)", "ant", "crane (2)")


# -------------------------------------------------------------------------------------- files that do not fit


def test_files_must_agree(tmp_path):
    write(tmp_path / "a.parquet", range(3), [0, 1, 2])
    write(tmp_path / "b.parquet", range(3), [0, 1, 2], ["one", "two", "three"])
    with pytest.raises(SourceError, match="b.parquet names other classes than the first file"):
        open_parquet(tmp_path)
    pq.write_table(pa.table({"img": PNGS, "label": pa.array([0] * 5)}), tmp_path / "b.parquet")
    with pytest.raises(SourceError, match=r"b.parquet has other columns .*\(image: img instead of image\)"):
        open_parquet(tmp_path)


def test_missing_shards_of_a_folder(imagenet):
    (imagenet / "data/train-00001-of-00002.parquet").unlink()
    with pytest.raises(
        SourceError, match="lacks 1 of the parquet files .*data/train-00001-of-00002.parquet. Do"
    ):
        open_parquet(imagenet)
    assert_pictures(open_parquet(imagenet, "val"), range(20, 24))
    assert_pictures(open_parquet(imagenet / "data/train-*"), range(7))


def test_a_split_that_is_not_there(tmp_path):
    write(tmp_path / "train-00000-of-00001.parquet", range(3), [0, 1, 2])
    with pytest.raises(SourceError, match="holds nothing for split=val, only train; .*val_fraction"):
        open_parquet(tmp_path, "val")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "a pointer of Git LFS; get"),
        (b"<html>no such file</html>" * 9, "cannot be read as a parquet file"),
        (None, "its end is missing; download it again"),
    ],
)
def test_files_that_are_not_parquet(content, message, tmp_path):
    path = write(tmp_path / "a.parquet", range(5), [0, 1, 2, 0, 1])
    path.write_bytes(path.read_bytes()[:-50] if content is None else content)
    with pytest.raises(SourceError, match=message) as caught:
        open_parquet(path)
    assert str(path) in str(caught.value)


def test_pyarrow_is_named_where_it_is_not_installed(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", range(3), [0, 1, 2])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"files needs pyarrow, .*pip install 'llcodes\[parquet\]'"):
        open_parquet(path)


# ---------------------------------------------------------------------------------------------------- reading


@pytest.fixture
def large(tmp_path):
    """Two files of 60 and 50 pictures in groups of 20 rows, of several pages and batches each."""
    for number, (first, count) in enumerate(((0, 60), (60, 50))):
        write(
            tmp_path / f"part-{number}.parquet",
            range(first, first + count),
            [0] * count,
            row_group_size=20,
            data_page_size=1000,
            write_batch_size=4,
            use_dictionary=bool(number),
        )
    return tmp_path


@pytest.fixture
def small_cache(monkeypatch):
    """A process keeps about 12 images; batches of pyarrow's hold about 3."""
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 3 * len(png(0)))
    monkeypatch.setattr(parquet, "_KEPT_BYTES", 12 * len(png(0)))


def test_any_order_gives_the_same_images(large, small_cache):
    source = open_parquet(large)
    reader = pickle.loads(pickle.dumps(source.reader))
    assert len(pickle.dumps(source.reader)) < 1000  # workers do not get the labels
    order = list(range(110)) + random.Random(0).sample(range(110), 110) + list(range(109, -1, -1))
    for i, handle in zip(order, source.handles(np.array(order))):
        image, name = reader.read(handle)
        assert image == png(i) and name == source.name(i)


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "brotli", "lz4"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("use_dictionary", [True, False])
def test_pages_of_every_kind_give_what_pyarrow_gives(compression, version, use_dictionary, tmp_path):
    """Also values that repeat or are missing, in columns and structs that may have missing ones or not."""
    rng = random.Random(f"{compression} {version} {use_dictionary}")
    values = [rng.choice([None, b"", bytes(7), rng.randbytes(rng.randrange(300))]) for _ in range(700)]
    there = [value or b"?" for value in values]
    image = pa.struct([pa.field("path", pa.string()), pa.field("bytes", pa.binary(), nullable=False)])
    columns = {
        "plain": (pa.array(values), True),
        "required": (pa.array(there), False),
        "struct": (pa.array([None if v == b"" else {"bytes": v} for v in values], IMAGE), True),
        "inner": (pa.array([{"path": "p", "bytes": v} for v in there], image), False),
    }
    schema = pa.schema([pa.field(name, a.type, nullable=null) for name, (a, null) in columns.items()])
    pq.write_table(
        pa.table([a for a, _ in columns.values()], schema),
        tmp_path / "t.parquet",
        row_group_size=301,
        data_page_size=2000,
        write_batch_size=16,
        dictionary_pagesize_limit=5000,
        compression=compression,
        data_page_version=version,
        use_dictionary=use_dictionary,
    )
    rows, path = parquet._Rows(), str(tmp_path / "t.parquet")
    for name, (array, _) in columns.items():
        in_struct = pa.types.is_struct(array.type)
        for i in rng.sample(range(700), 700):
            expected = array[i].as_py()
            if in_struct and expected and expected["bytes"] is not None:
                expected = expected["bytes"]
            found = rows.row(path, name, f"{name}.bytes" if in_struct else name, i)
            if isinstance(found, dict) and found["bytes"] is not None:
                found = found["bytes"]
            assert found == expected, (name, i)
    chunk = rows._files[path].chunk(0, "plain")
    assert (chunk is None) == (compression == "lz4")
    assert chunk is None or len(chunk.pages) > 3 and (chunk.dictionary is not None) == use_dictionary


def test_files_that_are_not_read_by_pages(large, small_cache, tmp_path):
    values = [png(i) for i in range(40)]
    table = pa.table({"image": values})
    path = tmp_path / "t.parquet"
    pq.write_table(
        table,
        path,
        row_group_size=20,
        use_dictionary=False,
        column_encoding={"image": "DELTA_LENGTH_BYTE_ARRAY"},
    )
    source = open_parquet(path)
    for i in [*range(40), *random.Random(2).sample(range(40), 40)]:
        assert source.image(i) == values[i]
    assert source.reader.cache._files[str(path)].chunk(0, "image") is None


def test_nearby_images_are_read_once(large, monkeypatch):
    read, read_values = [], parquet_pages.read_values

    def counted(descriptor, chunk, page, dictionary):
        read.append((descriptor, chunk.pages[0].offset, page.first_row))
        return read_values(descriptor, chunk, page, dictionary)

    monkeypatch.setattr(parquet_pages, "read_values", counted)
    source = open_parquet(large)
    for i in range(110):
        source.image(max(i - 3, 0))
        source.image(i)
    assert len(read) == len(set(read)) > 10


def test_what_is_kept_is_bounded(large, small_cache):
    source = open_parquet(large)
    cache = source.reader.cache
    for i in random.Random(1).sample(range(110), 110):
        source.image(i)
        assert cache._kept_bytes == sum(size for _, size in cache._kept.values())
        # a group's dictionary is kept for its pages, however large it is
        assert cache._kept_bytes <= parquet._KEPT_BYTES or len(cache._kept) <= 2


def test_threads_share_a_reader(large, small_cache):
    source, wrong = open_parquet(large), []

    def read(start):
        for i in range(start, 110, 4):
            if source.image(i) != png(i):
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_images_that_are_missing_or_broken_are_named(tmp_path):
    images = [
        {"bytes": png(0), "path": None},
        None,
        {"bytes": None, "path": None},
        {"bytes": b"no picture", "path": ""},
    ]
    source = open_parquet(table(tmp_path, image=pa.array(images, IMAGE)))
    assert_pictures(take_first(source, 1), [0])
    for i in (1, 2):
        with pytest.raises(ImageError, match=rf"t.parquet\[{i}\]: is missing: its field is empty"):
            source.image(i)
    with pytest.raises(ImageError, match="is a text file, not an image"):
        pixels(source, 3)


def test_a_damaged_row_group_loses_its_own_images_only(tmp_path):
    path = write(tmp_path / "a.parquet", range(9), [0] * 9, compression="gzip")
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    data[start + 40 : start + column.total_compressed_size - 40] = bytes(column.total_compressed_size - 80)
    path.write_bytes(data)
    source = open_parquet(path)
    for i in range(9):
        if 3 <= i < 6:
            with pytest.raises(ImageError, match=rf"a.parquet\[{i}\]: cannot be read, nor its neighbours"):
                source.image(i)
        else:
            assert source.image(i) == png(i)


def test_a_beton_of_a_parquet_folder(imagenet, write_ffcv, tmp_path):
    contents = []
    for workers in (1, 3):
        beton = tmp_path / f"{workers}.beton"
        done = write_ffcv(
            data_dir=imagenet, dataset="parquet", write_path=beton, write_mode="raw", num_workers=workers
        )
        assert done.returncode == 0, done.stderr
        contents.append(beton.read_bytes())
    assert contents[0] == contents[1]
    manifest = verify(beton)
    assert manifest.class_names == tuple(CLASSES) and manifest.class_counts == (4, 4, 4)
    for i, sample in enumerate(stored_samples(beton)):
        assert sample.label == [2, 0, 1, 1, 2, 0, 2, 0, 0, 2, 1, 1][i]
        assert np.array_equal(sample.pixels(), picture(i, 9 + i % 5, 12))


def test_an_unreadable_image_is_left_out_where_that_is_wanted(write_ffcv, tmp_path):
    path = write(tmp_path / "a.parquet", range(4), [0, 1, 2, 0])
    rows = pq.read_table(path).to_pylist()
    rows[2]["image"]["bytes"] = b"broken"
    schema = pq.read_schema(path)
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    flags = dict(data_dir=path, dataset="parquet", write_path=tmp_path / "x.beton")
    done = write_ffcv(**flags)
    assert done.returncode == 2 and "a.parquet[2]: is a text file, not an image" in done.stderr
    done = write_ffcv(**flags, on_error="skip")
    assert done.returncode == 0 and verify(tmp_path / "x.beton").class_counts == (2, 1, 0)
