"""Manifests and the tables of betons: what is verified, and that untrusted bytes are refused or harmless."""

import dataclasses
import json
import time
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llc.data import beton as layout
from llc.data.beton import BetonError, read_tables
from llc.data.manifest import (
    Manifest,
    ManifestError,
    Skipped,
    check_same_classes,
    load_manifest,
    manifest_path,
    verify,
)
from llc.data.writer import WriterConfig, write_beton
from llc.errors import UserError
from tests.data.betons import written_by_ffcv
from tests.data.helpers import write_tree
from tests.data.make_ffcv_beton import LABELS


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A beton of 17 samples, raw and JPEG, and its manifest; not to be changed. Returns (path, its bytes)."""
    folder = tmp_path_factory.mktemp("written")
    write_tree(folder / "images", {"ant": 4, "bee": 7, "cow": 6})
    path = folder / "whole.beton"
    write_beton(WriterConfig(write_path=str(path), data_dir=str(folder / "images")), show_progress=False)
    return path, path.read_bytes()


@pytest.fixture
def beton(written, tmp_path):
    """A copy, with its manifest, to be damaged."""
    path = tmp_path / "a.beton"
    path.write_bytes(written[1])
    manifest_path(path).write_bytes(manifest_path(written[0]).read_bytes())
    assert verify(path).num_samples == 17
    return path


def change(path, offset, new):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(new)


def header_of(data):
    return np.frombuffer(data, layout.HEADER_TYPE, count=1)[0]


# ---------------------------------------------------------------------------------- betons that are not whole


@pytest.mark.parametrize("with_manifest", [True, False])
@pytest.mark.parametrize("cut", [1, 10, 24 * 8, 24 * 17, 24 * 17 + 1, 0.01, 0.5, 0.9, 0.9999])
def test_a_cut_beton_is_recognised(cut, with_manifest, beton, written):
    # FFCV serves wrong images from files that lack 10 bytes or half the allocation table
    data = written[1]
    beton.write_bytes(data[:-cut] if isinstance(cut, int) else data[: int(len(data) * (1 - cut))])
    if not with_manifest:
        manifest_path(beton).unlink()
    with pytest.raises(BetonError, match="a.beton is (cut off|not a beton)"):
        verify(beton)


def test_a_grown_beton_is_recognised(beton, written):
    beton.write_bytes(written[1] + b"\0" * 24)
    with pytest.raises(BetonError, match="is not the file of its manifest"):
        verify(beton)
    with pytest.raises(BetonError, match="its tables end at"):
        read_tables(beton)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not a beton: 0 bytes"),
        (b"text\n" * 1000, "not a beton of format version 2"),
        (bytes(100_000), "not a beton of format version 2"),  # allocated, but never written
    ],
)
def test_foreign_files(content, message, tmp_path):
    (tmp_path / "a.beton").write_bytes(content)
    with pytest.raises(BetonError, match=message):
        verify(tmp_path / "a.beton")


def test_paths_that_are_no_betons(tmp_path, beton):
    with pytest.raises(BetonError, match="none.beton does not exist"):
        verify(tmp_path / "none.beton")
    with pytest.raises(BetonError, match="is not a file"):
        verify(tmp_path)
    with pytest.raises(ManifestError, match=r"a.beton.json is a manifest; give the beton .*a\.beton$"):
        verify(manifest_path(beton))


def test_the_manifest_of_another_conversion(beton, written, tmp_path):
    images = written[0].parent / "images"
    other = tmp_path / "b.beton"
    # of the same size: sizes in the file are rounded up to pages
    write_beton(
        WriterConfig(write_path=str(other), data_dir=str(images), compress_probability=0.4),
        show_progress=False,
    )
    assert other.stat().st_size == beton.stat().st_size
    manifest_path(beton).write_bytes(manifest_path(other).read_bytes())
    with pytest.raises(BetonError, match="does not belong to a.beton.json"):
        verify(beton)


def test_counts_are_compared_with_the_labels(beton):
    manifest = load_manifest(beton)
    for counts, names in (
        ((7, 4, 6), manifest.class_names),
        ((4, 13), ("a", "b")),
        ((4, 7, 6, 0), tuple("abcd")),
    ):
        dataclasses.replace(manifest, class_counts=counts, class_names=names).save(beton)
        if len(names) == 4:
            verify(beton)  # a class without images
        else:
            with pytest.raises(ManifestError, match="class_counts are not those of the labels"):
                verify(beton)


def test_every_changed_byte_of_the_tables_is_noticed(beton, written):
    data = written[1]
    end = layout.METADATA_START + 17 * layout.METADATA_TYPE.itemsize
    table = int(header_of(data)["alloc_table_ptr"])
    for offset in [
        *range(0, 48, 5),
        *range(48, end, 97),
        *range(end - 24, end),
        *range(table, len(data), 13),
    ]:
        change(beton, offset, bytes([data[offset] ^ 0x10]))
        with pytest.raises(BetonError):
            verify(beton)
        change(beton, offset, data[offset : offset + 1])
    verify(beton)


def test_pages_that_were_never_written_are_noticed(beton):
    first = int(read_tables(beton).images["data_ptr"].min())
    change(beton, first, bytes(1 << 16))
    with pytest.raises(BetonError, match=r"the data of sample \d+ is not a JPEG"):
        verify(beton)


# Fields of the header and of the tables, without a manifest: what FFCV would crash on or serve wrong images
# from.
NUM_SAMPLES, TABLE_PTR, PAGE, FIELD = 8, 16, 4, layout.HEADER_TYPE.itemsize
ROW = layout.METADATA_START + 3 * layout.METADATA_TYPE.itemsize  # sample 3


@pytest.mark.parametrize(
    "offset, new, message",
    [
        (0, b"\x01", "not a beton of format version 2"),
        (2, b"\x03", "not a beton of images and labels: it has 3 fields"),
        (FIELD, b"\x03", r"not a beton of images and labels: .*'image', 3"),
        (FIELD + 1, b"I", "not a beton of images and labels: .*'Image', 2"),
        (NUM_SAMPLES, bytes(8), "holds no samples"),
        (NUM_SAMPLES, b"\xff" * 8, "18446744073709551615 samples"),
        (NUM_SAMPLES, b"\x10", "its tables end at"),
        (TABLE_PTR, bytes(8), "was not finished"),
        (TABLE_PTR, b"\xff" * 8, "is cut off"),
        (TABLE_PTR, b"\x40" + bytes(7), "17 samples and an allocation table at byte 64"),
        (PAGE, bytes(4), "page size is 0"),
        (PAGE, b"\x01\x10", "page size is 8392705"),
        (ROW, b"\x02", "sample 3 is neither raw nor JPEG"),
        (ROW + 1, bytes(2), "sample 3 has no pixels"),
        (ROW + 1, b"\xff\xff", "sample 3 is raw, but of another size"),
        (ROW + 5, b"\xff" * 8, "sample 3 has no place in the allocation table"),
        (ROW + 5, bytes(8), "sample 3 has no place in the allocation table"),
        (ROW + 16, b"\xff" * 8, "sample 3 has a negative label"),
        (ROW + 20, b"\x01", "sample 3 has an absurd label"),
        (ROW + 17, b"\xff", "a label of 652"),
    ],
)
def test_values_that_ffcv_would_trust(offset, new, message, beton):
    raw = np.flatnonzero(read_tables(beton).images["mode"] == layout.RAW)
    assert 3 in raw
    manifest_path(beton).unlink()
    change(beton, offset, new)
    with pytest.raises(BetonError, match=message):
        verify(beton)


@pytest.mark.parametrize(
    "column, value, message",
    [
        ("ptr", (1 << 64) - 1, "has no place"),
        ("size", (1 << 64) - 1, "lies outside"),
        ("size", 1 << 22, "reaches beyond|crosses a page|of another size"),
        ("size", 0, "has no data"),
        ("size", 5, "of another size"),
    ],
)
def test_allocations_that_ffcv_would_trust(column, value, message, beton, written):
    table = np.frombuffer(
        written[1], layout.ALLOC_TYPE, offset=int(header_of(written[1])["alloc_table_ptr"])
    ).copy()
    table[column][3] = value
    change(beton, len(written[1]) - table.nbytes, table.tobytes())
    manifest_path(beton).unlink()
    with pytest.raises(BetonError, match=message):
        verify(beton)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_without_a_manifest_is_refused_or_harmless(data, beton, written):
    """Whatever passes is something that FFCV can read without leaving the file."""
    manifest_path(beton).unlink(missing_ok=True)
    whole = written[1]
    tables = [*range(2100), *range(len(whole) - 24 * 17, len(whole))]
    tables += [*range(layout.METADATA_START, layout.METADATA_START + 24 * 17)] * 3
    for _ in range(data.draw(st.integers(1, 3))):
        offset = data.draw(st.sampled_from(tables))
        new = data.draw(st.binary(min_size=1, max_size=8))[: len(whole) - offset]
        change(beton, offset, new)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            manifest = verify(beton)
        found = read_tables(beton)
        ends = found.images["data_ptr"].astype(object) + found.sizes
        assert max(ends) <= len(whole) and min(found.sizes) > 0 and found.labels.min() >= 0
        assert manifest.num_samples == len(found) == 17
    except UserError as error:
        assert "a.beton" in str(error)
    finally:
        change(beton, 0, whole[: layout.METADATA_START + 24 * 17])
        change(beton, len(whole) - 24 * 17, whole[-24 * 17 :])


def test_a_beton_by_ffcvs_own_writer(tmp_path):
    path = written_by_ffcv(tmp_path)
    with pytest.warns(
        UserWarning,
        match="ffcv_written.beton has no manifest .ffcv_written.beton.json.: its 4 classes are called 0 to 3",
    ):
        manifest = verify(path)
    assert manifest.class_names == ("0", "1", "2", "3") and manifest.class_counts == (1, 3, 2, 2)
    assert manifest.num_samples == 8 and manifest.writer == {} and manifest.file_size == path.stat().st_size
    with pytest.warns(UserWarning):
        assert load_manifest(path) == manifest
    tables = read_tables(path)
    assert tables.images["height"].tolist() == list(range(33, 41)) and tables.labels.tolist() == list(LABELS)
    raw = tables.images["mode"] == layout.RAW
    assert 0 < raw.sum() < 8
    assert tables.sizes[raw].tolist() == [h * 40 * 3 for h in tables.images["height"][raw].tolist()]


def test_verifying_does_not_read_the_images(tmp_path):
    """A million samples, whose 300 GB of image data are a hole in the file, take seconds at most."""
    num_samples, size = 1_000_000, 300_000
    places = np.arange(num_samples, dtype=np.int64)
    per_page = layout.PAGE_SIZE // size
    first = -(-(layout.METADATA_START + num_samples * 24) // layout.PAGE_SIZE)
    places = (first + places // per_page) * layout.PAGE_SIZE + places % per_page * size
    metadata = np.zeros(num_samples, layout.METADATA_TYPE)
    metadata["f0"]["mode"], metadata["f0"]["width"], metadata["f0"]["height"] = layout.RAW, 1000, 100
    metadata["f0"]["data_ptr"], metadata["f1"] = places, np.arange(num_samples) % 1000
    table = np.zeros(num_samples, layout.ALLOC_TYPE)
    table["sample_id"], table["ptr"], table["size"] = np.arange(num_samples), places, size
    end = int(places[-1]) + layout.PAGE_SIZE
    path = tmp_path / "large.beton"
    with open(path, "wb") as file:
        file.write(layout.header_bytes(num_samples, end) + metadata.tobytes())
        file.seek(end)
        file.write(table.tobytes())
    start = time.process_time()
    with pytest.warns(UserWarning, match="1000 classes"):
        manifest = verify(path)
    assert manifest.class_counts == (1000,) * 1000
    assert time.process_time() - start < 30
    assert path.stat().st_blocks * 512 < 1 << 30


# ---------------------------------------------------------------------------------------------- the JSON


def manifest(**changes):
    values = {
        "class_names": ("a", "b"),
        "class_counts": (1, 2),
        "num_samples": 3,
        "file_size": 9,
        "tables_sha256": "0" * 64,
        "writer": {"split": "train", "subset": -1, "val_fraction": 0.5},
        "skipped": (Skipped("a/1.jpg", "is an empty file"),),
    }
    return Manifest(**{**values, **changes})


def test_save_and_load(tmp_path):
    saved = manifest(class_names=('zebra\n"ß"', "\udcff name that is not UTF-8"))
    saved = dataclasses.replace(
        saved, class_words=("tench, Tinca tinca", ""), order={"shuffled": 7}, part=(2, 3)
    )
    saved.save(tmp_path / "x.beton")
    assert json.loads((tmp_path / "x.beton.json").read_text())["part"] == [2, 3]
    assert load_manifest(tmp_path / "x.beton") == load_manifest(tmp_path / "x.beton.json") == saved
    assert saved.num_classes == 2
    assert [path.name for path in tmp_path.iterdir()] == ["x.beton.json"]


def test_older_manifests_know_no_words_order_or_part(tmp_path):
    content = json.loads(manifest().to_json())
    for key in ("class_words", "order", "part"):
        del content[key]
    (tmp_path / "x.beton.json").write_text(json.dumps(content))
    loaded = load_manifest(tmp_path / "x.beton")
    assert (loaded.class_words, loaded.order, loaded.part) == ((), "unknown", None)
    assert loaded == manifest()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"class_words": ("a",)}, "2 class_names, but 1 class_words"),
        ({"class_words": ("a", 1)}, "class_words is not a list of texts"),
        ({"order": "random"}, "order is 'random', not"),
        ({"order": {"shuffled": 1.5}}, "order is {'shuffled': 1.5}, not"),
        ({"order": {"shuffled": 1, "more": 2}}, "not .source., .unknown. or"),
        ({"part": (0, 3)}, r"part is \(0, 3\), not \[i, n\] with 1 <= i <= n"),
        ({"part": (4, 3)}, "not .i, n. with"),
        ({"part": (1, 2, 3)}, "not .i, n. with"),
        ({"part": (1, True)}, "not .i, n. with"),
        ({"class_names": ()}, "class_names is not a list of names"),
        ({"class_names": ("a", 1)}, "class_names is not a list of names"),
        ({"class_names": ("a", "a")}, "class_names holds 'a' more than once"),
        ({"class_counts": (3,)}, "2 class_names, but 1 class_counts"),
        ({"class_counts": (4, -1)}, "class_counts is not a list of counts"),
        ({"class_counts": (True, 2)}, "class_counts is not a list of counts"),
        ({"class_counts": (1.0, 2)}, "class_counts is not a list of counts"),
        ({"num_samples": 4}, "num_samples is 4, but class_counts add up to 3"),
        ({"checksums": (1, 2)}, "2 checksums, but 3 samples make 1 blocks"),
        ({"checksums": (1 << 32,)}, "checksums is not a list of numbers of 32 bits"),
        ({"checksums": (1,), "samples_per_checksum": 0}, "samples_per_checksum is 0, not a number above 0"),
        ({"num_samples": "3"}, "num_samples is '3', not a number above 0"),
        ({"num_samples": 10**400}, "num_samples is a number too large, not"),
        ({"class_counts": (10**400, 2)}, "add up to a number too large"),
        ({"file_size": -1}, "file_size is -1, not a number above 0"),
        ({"tables_sha256": "0" * 63}, "tables_sha256 is '000"),
        ({"tables_sha256": "G" * 64}, "not 64 hexadecimal digits"),
        ({"writer": {"a": []}}, "writer is not a table of settings"),
        ({"writer": [1]}, "writer is not a table of settings"),
        ({"skipped": (Skipped("a", 1),)}, "skipped is not a list of names and reasons"),
    ],
)
def test_values_that_no_manifest_has(changes, message, tmp_path):
    with pytest.raises(ManifestError, match=message):
        manifest(**changes)
    content = {**json.loads(manifest().to_json()), **changes}
    if "skipped" in changes:
        content["skipped"] = [{"name": "a", "reason": 1}]
    (tmp_path / "x.beton.json").write_text(json.dumps(content))
    with pytest.raises(ManifestError, match=f"x.beton.json is not a manifest: .*{message}"):
        load_manifest(tmp_path / "x.beton")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is not a manifest"),
        ("[]", "a table of keys is needed"),
        ("{}", "format is None; this version reads 1"),
        ('{"format": 2}', "format is 2; this version reads 1"),
        ('{"format": true}', "format is True"),
        ('{"format": 1}', "class_names is missing"),
        ("[" * 100_000, "is not a manifest"),
        ('{"format": ' + "9" * 10_000 + "}", "is not a manifest"),
        ('{"format": 1, "class_names": "ab"', "is not a manifest"),
        ("\0" * 50, "is not a manifest"),
    ],
)
def test_files_that_are_no_manifests(text, message, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ManifestError, match=message) as caught:
        load_manifest(tmp_path / "x.json")
    assert str(tmp_path / "x.json") in str(caught.value) and len(str(caught.value)) < 500


def test_manifests_that_cannot_be_read(tmp_path):
    with pytest.raises(ManifestError, match="x.json cannot be read: No such file"):
        load_manifest(tmp_path / "x.json")
    (tmp_path / "d.json").mkdir()
    with pytest.raises(ManifestError, match="d.json cannot be read: Is a directory"):
        load_manifest(tmp_path / "d.json")
    with pytest.raises(BetonError, match="x.beton does not exist"):
        load_manifest(tmp_path / "x.beton")
    with open(tmp_path / "huge.json", "wb") as file:
        file.truncate(1 << 29)
    with pytest.raises(ManifestError, match="larger than"):
        load_manifest(tmp_path / "huge.json")


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(sorted(json.loads(manifest().to_json()))), value=ANY_JSON)
@example(key="skipped", value=[{"name": "a", "reason": "b", "more": 1}])
def test_any_json_in_any_place_is_refused_or_a_manifest(key, value, tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({**json.loads(manifest().to_json()), key: value}))
    try:
        assert isinstance(load_manifest(tmp_path / "x.json"), Manifest)
    except ManifestError as error:
        assert "x.json is not a manifest" in str(error)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1), new=st.binary(max_size=4), drop=st.integers(0, 40))
def test_any_damage_to_the_text_is_refused_or_a_manifest(position, new, drop, tmp_path):
    text = manifest().to_json().encode()
    offset = int(position * len(text))
    (tmp_path / "x.json").write_bytes(text[:offset] + new + text[offset + drop :])
    try:
        assert isinstance(load_manifest(tmp_path / "x.json"), Manifest)
    except ManifestError as error:
        assert "x.json is not a manifest" in str(error)


# ---------------------------------------------------------------------------------------------- two manifests


def test_the_same_classes():
    train, val = manifest(), manifest(class_counts=(3, 0), tables_sha256="1" * 64, writer={})
    check_same_classes(train, val)


@pytest.mark.parametrize(
    "names, message",
    [
        (
            ("b", "a"),
            "t.beton has 2 classes and v.beton 2, and they differ: label 0: 'a' and 'b'; label 1: 'b' and"
            " 'a'. Write",
        ),
        (
            ("a", "b", "c"),
            "t.beton has 2 classes and v.beton 3, and they differ: label 2: nothing and 'c'. Write",
        ),
        (("a",), "label 1: 'b' and nothing. Write"),
        (tuple("hgfedcba"), "label 4: nothing and 'd'; and 3 more labels. Write"),
    ],
)
def test_other_classes_are_refused_with_the_first_differences(names, message):
    val = manifest(class_names=names, class_counts=(3,) + (0,) * (len(names) - 1))
    with pytest.raises(ManifestError) as caught:
        check_same_classes(manifest(), val, "t.beton", "v.beton")
    assert message in str(caught.value)
    assert str(caught.value).endswith("Write val again with --cfg.class_names_from=t.beton.json")
