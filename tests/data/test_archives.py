"""Tars and zips: which bytes are which image, for every form of header, and what damage is called."""

import io
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest

from llc.data.images import ImageError, load_rgb
from llc.data.manifest import verify
from llc.data.sources import SourceError, open_source, recognise
from llc.data.sources.archive import Container, Names, OpenFile, RangeReader, components, is_hidden
from llc.data.sources.tar import Tar
from llc.data.sources.zip import Zip

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def write_tar(path, files, format=tarfile.PAX_FORMAT, **options):
    """files: {name: bytes} or pairs of them."""
    with tarfile.open(path, "w", format=format, **options) as tar:
        for name, data in files.items() if isinstance(files, dict) else files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def contents(path):
    """{name: bytes} of a tar by llc."""
    tar = Tar.open(path)
    file = OpenFile(Container.of(path))
    return {name: file.read_all(size, offset) for name, offset, size in tar}


# ------------------------------------------------------------------------------------------------ tar


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("seed", range(4))
def test_members_are_those_of_tarfile(format, seed, tmp_path):
    rng = random.Random(seed)
    files = {}
    for i in range(60):
        length = rng.choice(
            (1, 20, 90, 99, 100, 101, 150, 180) + ((255, 256, 300, 700) if format != "ustar" else ())
        )
        parts = [f"{i:02}"] + [rng.choice("abc") * rng.randint(1, 60) for _ in range(length // 20)]
        name = "/".join(parts)[: max(length, 2)].rstrip("/")
        name += "é" if format != "ustar" and i % 7 == 0 else ""
        files[name] = rng.randbytes(rng.choice((0, 1, 511, 512, 513, 4096, 5000, 20_000)))
    path = write_tar(tmp_path / "x.tar", files, FORMATS[format])
    assert max(map(len, files)) > 100 and len(files) == 60
    assert contents(path) == {name.encode(): data for name, data in files.items()}


def header_of(path):
    return bytearray(path.read_bytes())


def with_checksum(header, signed=False):
    header[148:156] = b" " * 8
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in header[:512])
    header[148:156] = b"%06o\0 " % total
    return header


def test_old_headers(tmp_path):
    # before POSIX: no magic, type NUL, folders end in "/", numbers end in a space, sums of signed characters
    path = tmp_path / "old.tar"
    blocks = bytearray()
    for name, size in ((b"dir/", 0), (b"dir/caf\xe9", 5)):
        header = bytearray(512)
        header[: len(name)] = name
        header[100:108] = b"000644 \0"
        header[124:136] = b"%11o " % size
        blocks += with_checksum(header, signed=True)
        if size:
            blocks += b"hello".ljust(512, b"\0")
    path.write_bytes(blocks + bytes(1024))
    assert contents(path) == {b"dir/caf\xe9": b"hello"}


def test_sizes_in_binary(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"a": b"x" * 700, "b": b"y"})
    data = header_of(path)
    data[124:136] = b"\x80" + (700).to_bytes(11, "big")
    path.write_bytes(with_checksum(data))
    assert contents(path) == {b"a": b"x" * 700, b"b": b"y"}


def test_pax_size_counts(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a")
        info.size, info.pax_headers = 700, {"size": "700", "comment": "two\nlines", "path": "longer/a"}
        tar.addfile(info, io.BytesIO(b"x" * 700))
        tar.addfile(tarfile.TarInfo("b"))
    data = header_of(path)
    at = data.index(b"a\0\0\0", 1024)
    assert at % 512 == 0
    data[at + 124 : at + 136] = b"00000000000\0"
    data[at : at + 512] = with_checksum(data[at : at + 512])
    path.write_bytes(data)
    assert contents(path) == {b"longer/a": b"x" * 700, b"b": b""}


def test_links_folders_and_pipes(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind, target, data in (
            ("d", tarfile.DIRTYPE, "", b""),
            ("d/a.png", tarfile.REGTYPE, "", b"picture"),
            ("d/b.png", tarfile.LNKTYPE, "d/a.png", b""),
            ("d/c.png", tarfile.SYMTYPE, "a.png", b""),
            ("d/" + "e" * 120, tarfile.LNKTYPE, "nothing", b""),
            ("pipe", tarfile.FIFOTYPE, "", b""),
            ("d/f.png", tarfile.CONTTYPE, "", b"other"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, len(data)
            tar.addfile(info, io.BytesIO(data))
    assert contents(path) == {b"d/a.png": b"picture", b"d/b.png": b"picture", b"d/f.png": b"other"}
    tar = Tar.open(path)
    list(tar)
    assert len(tar.notes) == 1 and tar.notes[0].startswith("2 links in")


def sparse_tar(path, folder, *options):
    with open(folder / "s.png", "wb") as file:
        file.truncate(1 << 20)
        file.write(b"x" * 4096)
    subprocess.run(["tar", "-cSf", path, *options, "-C", folder, "s.png"], check=True)


@pytest.mark.parametrize("options", [("--format=gnu",), ("--format=pax",)])
def test_sparse_members_are_refused(options, tmp_path):
    sparse_tar(tmp_path / "x.tar", tmp_path, *options)
    assert os.path.getsize(tmp_path / "x.tar") < 1 << 20  # it is sparse
    with pytest.raises(SourceError, match=r"x.tar: .*s.png is a sparse file, .* plain tar -cf"):
        list(Tar.open(tmp_path / "x.tar"))


@pytest.mark.parametrize(
    "mode, message",
    [
        ("w:gz", "compressed with gzip, .*unpack it once, with gunzip --keep"),
        ("w:bz2", "compressed with bzip2, .*bunzip2 --keep"),
        ("w:xz", "compressed with xz, .*unxz --keep"),
    ],
)
def test_compressed_tars_are_refused(mode, message, tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, mode) as tar:
        tar.addfile(tarfile.TarInfo("a"))
    with pytest.raises(SourceError, match=f"x.tar is {message}, and give the .tar"):
        list(Tar.open(path))


def test_every_cut_is_seen(tmp_path):
    files = {"a.png": b"x" * 700, "b/" + "c" * 200: b"y" * 1500, "d.png": b"z" * 10}
    whole = write_tar(tmp_path / "x.tar", files, tarfile.GNU_FORMAT).read_bytes()
    with tarfile.open(tmp_path / "x.tar") as tar:
        ends = [member.offset_data + member.size for member in tar]
        starts = [member.offset for member in tar][1:]
    path = tmp_path / "cut.tar"
    quiet = 0
    for length in [*range(1, ends[-1] + 700, 37), *range(512, ends[-1], 512)]:
        path.write_bytes(whole[:length])
        tar = Tar.open(path)
        between = [k for k, end in enumerate(ends) if end <= length <= (*starts, len(whole))[k]]
        if between:
            assert len(list(tar)) == between[0] + 1
            assert length > ends[-1] or "cut.tar has no end mark" in tar.notes[0]
            quiet += 1
        else:
            with pytest.raises(SourceError, match="cut.tar is (cut off|not a tar)"):
                list(tar)
    assert quiet > 10


def test_damaged_headers_are_seen(tmp_path):
    whole = write_tar(tmp_path / "x.tar", {f"{i}.png": b"x" * 700 for i in range(9)}).read_bytes()
    path = tmp_path / "damaged.tar"
    for at in (0, 3, 130, 148, 300, 3 * 1536 + 1, 3 * 1536 + 126, 3 * 1536 + 156, 8 * 1536 + 511):
        damaged = bytearray(whole)
        damaged[at] ^= 0x15
        path.write_bytes(damaged)
        message = f"no header at byte {at // 1536 * 1536:,}," if at >= 512 else "is not a tar"
        with pytest.raises(SourceError, match=f"damaged.tar .*{message}"):
            list(Tar.open(path))


def test_what_is_no_tar(tmp_path):
    for data, message in (
        (b"", "is an empty file"),
        (b"x" * 100, "is not a tar"),
        (b"x" * 5000, "is not a tar"),
    ):
        (tmp_path / "x.tar").write_bytes(data)
        with pytest.raises(SourceError, match=message):
            list(Tar.open(tmp_path / "x.tar"))
    with pytest.raises(SourceError, match="gone.tar cannot be read: No such file"):
        Tar.open(tmp_path / "gone.tar")
    with pytest.raises(SourceError, match="is not a regular file"):
        Tar.open(tmp_path)


def test_data_after_the_end_mark_are_noted(tmp_path):
    one = write_tar(tmp_path / "x.tar", {"a.png": bytes(1 << 20)}).read_bytes()
    (tmp_path / "x.tar").write_bytes(one + one)
    tar = Tar.open(tmp_path / "x.tar")
    assert len(list(tar)) == 1 and "bytes after the end mark" in tar.notes[0]


# ------------------------------------------------------------------------------------------------ reading


def test_a_reader_goes_to_other_processes_and_opens_few_files(tmp_path):
    paths = [write_tar(tmp_path / f"{i}.tar", {"a": b"%d" % i * 600}) for i in range(150)]
    containers = tuple(map(Container.of, paths))
    first = RangeReader(containers)
    before = len(os.listdir("/proc/self/fd"))
    for reader in (first, pickle.loads(pickle.dumps(first))):
        for i in range(150):
            assert reader.read((i, 512, 5, b"n\xff")) == ((b"%d" % i * 600)[:5], "n\udcff")
        assert len(os.listdir("/proc/self/fd")) <= before + 2 * 64
    del first, reader
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_changes_is_an_error(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"a": b"x" * 600})
    reader = RangeReader((Container.of(path),))
    write_tar(path, {"a": b"y" * 6000})
    with pytest.raises(SourceError, match="x.tar has changed since"):
        reader.read((0, 512, 600, b"a"))
    path = write_tar(tmp_path / "y.tar", {"a": b"x" * 60_000})
    reader = RangeReader((Container.of(path),))
    assert reader.read((0, 512, 600, b"a"))[0] == b"x" * 600
    os.truncate(path, 1000)
    with pytest.raises(SourceError, match="y.tar has changed since"):
        reader.read((0, 512, 600, b"a"))
    os.remove(path)
    with pytest.raises(SourceError, match="y.tar cannot be read: No such file"):
        RangeReader(reader._containers).read((0, 512, 600, b"a"))


def test_names_are_compact():
    words = [f"n01440764/n01440764_{i}.JPEG".encode() for i in range(20_000)]
    tracemalloc.start()
    names = Names.joined([Names(words[:5]), Names(()), Names(words[5:])])
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [names[i] for i in range(len(names))] == words
    assert used / len(words) < 45
    assert len(Names.joined([])) == 0


def test_components_stay_in_the_archive():
    assert components(b"/a/./b//c.png") == [b"a", b"b", b"c.png"]
    assert components(b"a/../../../b/../c/d") == [b"c", b"d"]
    assert components(b"./") == []
    assert [is_hidden(components(name)) for name in (b"a/._b.png", b"__MACOSX/a/b", b".git/x", b"./a/b")] == [
        True,
        True,
        True,
        False,
    ]


# ------------------------------------------------------------------------------------------------ folders


def zip_tree(path, root, prefix="", method=zipfile.ZIP_DEFLATED, extra=()):
    """A zip of a tree of images; files come in another order than sorted."""
    with zipfile.ZipFile(path, "w", method) as archive:
        files = sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())
        for name in random.Random(0).sample(files, len(files)):
            archive.write(root / name, prefix + name)
        for name, data in extra:
            archive.writestr(name, data)
    return path


def tar_tree(path, root, prefix=""):
    with tarfile.open(path, "w") as tar:
        tar.add(root, prefix or ".")
    return path


JUNK = (("__MACOSX/images/ant/._000.png", b"x"), ("images/.DS_Store", b"x"), ("images/bee/readme.txt", b"x"))


@pytest.mark.parametrize("kind", ["stored", "deflated", "tar", "dotted tar"])
def test_an_archive_gives_what_its_tree_gives(kind, tree, tmp_path, write_ffcv):
    """The beton is the same to the byte, for any number of workers."""
    (tree / "cow" / "sub").mkdir()
    os.rename(tree / "cow" / "003.png", tree / "cow" / "sub" / "003.png")
    (tree / "cow" / "sub.png").write_bytes((tree / "cow" / "004.png").read_bytes())
    if kind.endswith("tar"):
        path = tar_tree(tmp_path / "x.tar", tree, "images" if kind == "tar" else "")
    else:
        method = zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED
        path = zip_tree(tmp_path / "x.zip", tree, "images/", method, JUNK)
        assert recognise(path) == "zip"
    dataset = path.suffix[1:]
    expected = open_source("folder", tree)
    source = open_source(dataset, path)
    assert source.class_names == expected.class_names and source.labels.tolist() == expected.labels.tolist()
    assert [source.name(i) for i in range(len(source))] == [expected.name(i) for i in range(len(expected))]
    for i in range(len(source)):
        assert np.array_equal(load_rgb(source.image(i)), load_rgb(expected.image(i)))
    flags = {"write_mode": "proportion", "chunk_size": 3}
    done = write_ffcv(
        data_dir=tree, write_path=tmp_path / "a.beton", dataset="folder", num_workers=1, **flags
    )
    assert done.returncode == 0, done.stderr
    for workers in (1, 3):
        done = write_ffcv(
            data_dir=path, write_path=tmp_path / "b.beton", dataset=dataset, num_workers=workers, **flags
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "a.beton").read_bytes() == (tmp_path / "b.beton").read_bytes()
    assert verify(tmp_path / "b.beton").class_names == ("ant", "bee", "cow")
    if dataset == "zip":
        assert "1 files there are not images" in done.stdout and "2 hidden files" in done.stdout


@pytest.mark.parametrize("around", ["", "data/", "a/b/"])
def test_splits_inside_an_archive(around, tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png", "train/b/5.png"):
            archive.writestr(around + name, name)
    for split, numbers in (("train", "125"), ("val", "34")):
        source = open_source("zip", path, split)
        assert source.class_names == ("a", "b")
        assert [source.name(i)[2] for i in range(len(source))] == list(numbers)
        assert source.image(0) == f"{split}/a/{numbers[0]}.png".encode()


@pytest.mark.parametrize(
    "names, split, message",
    [
        (
            ("train/a/1.png", "train/b/1.png"),
            "val",
            "split=val: .*no folder val or test .*train does.*val_fraction",
        ),
        (
            ("1.png", "2.png"),
            "train",
            "holds no folders of images: .*directly in it, like 1.png, have no class",
        ),
        (("a/1.txt",), "train", "holds no folders of images"),
        (("a/1.png", "b/", "c/2.png"), "train", "1 of 3 class folders hold no images: b; fill or remove"),
        (("a/1.png", "b/1.png", "/a/./1.png"), "train", "a/1.png is there twice"),
        ((), "train", "holds no folders of images"),
    ],
)
def test_archives_that_cannot_be_used(names, split, message, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            tar.addfile(info)
    for kind in ("zip", "tar") if names and "b/" not in names else ("zip",):
        with pytest.raises(SourceError, match=message):
            open_source(kind, tmp_path / f"x.{kind}", split)


# ------------------------------------------------------------------------------------------------ zip


def test_zip_members_are_those_of_zipfile(tmp_path):
    path = tmp_path / "x.zip"
    rng = random.Random(1)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(3000):  # more of a directory than is read at once
            archive.writestr(f"d{i % 7}/{'é' * (i % 60)}{i}.png", rng.randbytes(i % 50), i % 2 * 8)
            if i == 5:
                archive.comment = b"a comment"
    with zipfile.ZipFile(path) as archive:
        expected = [
            (info.filename.encode(), info.header_offset, info.compress_size, info.file_size, info.CRC)
            for info in archive.infolist()
        ]
    for junk in (b"", b"#!/bin/sh\n" * 50):  # a program before it, which unpacks it
        (tmp_path / "y.zip").write_bytes(junk + path.read_bytes())
        found = Zip(OpenFile(Container.of(tmp_path / "y.zip")))
        assert [
            (name, header - len(junk), packed, size, crc) for name, (_, header, packed, size, crc, _) in found
        ] == expected


def test_zip64(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(0x10000 + 5):  # more members than the old directory counts
            archive.writestr(zipfile.ZipInfo(f"a/{i}.png"), b"%d" % i)
    source = open_source("zip", path)
    assert len(source) == 0x10000 + 5
    i = len(source) - 1
    assert source.image(i).decode() + ".png" == source.name(i).removeprefix("a/")


def test_zip64_extra_fields(tmp_path):
    # offsets above 4 GB without 4 GB: the zip's own numbers stand in the extra field
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/1.png", b"one")
        archive.writestr("a/2.png", b"second")
    data = path.read_bytes()
    end = data.rindex(b"PK\5\6")
    size, start = struct.unpack_from("<LL", data, end + 12)
    directory, at = b"", start
    for extra_of in ((0,), (0, 1, 2)):  # only the header's offset; all three
        entry = bytearray(data[at : at + 46 + 7])
        at += 46 + 7
        values = struct.unpack_from("<LL", entry, 20) + struct.unpack_from("<L", entry, 42)
        places = (
            {0: (42, values[2])}
            if extra_of == (0,)
            else {0: (24, values[1]), 1: (20, values[0]), 2: (42, values[2])}
        )
        for place, _ in places.values():
            struct.pack_into("<L", entry, place, 0xFFFFFFFF)
        extra = struct.pack("<HHL", 0x7777, 4, 1) + struct.pack(
            f"<HH{len(places)}Q", 1, 8 * len(places), *(value for _, value in places.values())
        )
        struct.pack_into("<H", entry, 30, len(extra))
        directory += bytes(entry) + extra
    tail = bytearray(data[end:])
    struct.pack_into("<L", tail, 12, len(directory))
    path.write_bytes(data[:start] + directory + tail)
    with zipfile.ZipFile(path) as archive:
        assert archive.read("a/2.png") == b"second"
    source = open_source("zip", path)
    assert [source.image(i) for i in range(2)] == [b"one", b"second"]


def test_zip_names_without_utf8_flag(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("caf@/1.png", b"x")
    path.write_bytes(path.read_bytes().replace(b"caf@", b"caf\x82"))  # code page 437
    assert open_source("zip", path).class_names == ("café",)


def test_damaged_members_are_images_that_cannot_be_read(tmp_path, tree, write_ffcv):
    path = zip_tree(tmp_path / "x.zip", tree)
    with zipfile.ZipFile(path) as archive:
        infos = {info.filename: info for info in archive.infolist()}
    data = bytearray(path.read_bytes())
    data[infos["ant/002.png"].header_offset + 30 + 11 + 40] ^= 0xFF
    data[infos["bee/001.png"].header_offset] ^= 0xFF
    path.write_bytes(data)
    source = open_source("zip", path)
    names = [source.name(i) for i in range(len(source))]
    with pytest.raises(ImageError, match="ant/002.png: its data in the zip are damaged"):
        source.image(names.index("ant/002.png"))
    with pytest.raises(ImageError, match="bee/001.png: its header in the zip is damaged"):
        source.image(names.index("bee/001.png"))
    done = write_ffcv(data_dir=path, dataset="zip", write_path=tmp_path / "x.beton", on_error="skip")
    assert done.returncode == 0, done.stderr
    assert [skipped.name for skipped in verify(tmp_path / "x.beton").skipped] == [
        "ant/002.png",
        "bee/001.png",
    ]


def test_zips_that_cannot_be_used(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a/1.png", b"x" * 100)
    with pytest.raises(SourceError, match="x.zip: a/1.png is packed with LZMA, .* zip -r -0"):
        open_source("zip", path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/1.png", b"x" * 100)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(SourceError, match="a/1.png is encrypted"):
        open_source("zip", path)
    path.write_bytes(data[:-30])
    with pytest.raises(SourceError, match="x.zip is cut off: the directory at its end is missing"):
        open_source("zip", path)
    path.write_bytes(b"not at all")
    with pytest.raises(SourceError, match="x.zip is not a zip"):
        open_source("zip", path)
    with pytest.raises(SourceError, match="gone.zip cannot be read: No such file"):
        open_source("zip", tmp_path / "gone.zip")


def test_workers_import_no_large_library(tmp_path):
    script = "import llc.data.workers, sys; print({'scipy', 'pyarrow', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
