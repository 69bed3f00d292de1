"""Images that are broken, cut off or of another kind, and machines that fail while an image is read."""

import errno
import gzip
import io
import pickle
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, features

from llc.data import encoding
from llc.data.images import ImageError, MachineError, load_rgb, read_file
from llc.data.workers import _encode_chunk
from llc.data.writer import WriterConfig
from llc.native import codec
from tests.data.helpers import REPOSITORY, picture
from tests.waiting import seconds

HEIGHT, WIDTH = 46, 60
RGB = np.maximum(picture(3, HEIGHT, WIDTH), 1)  # no black, so that missing rows show
GREY = RGB[:, :, 0].copy()


def encoded(image, file_format, **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, file_format, **options)
    return buffer.getvalue()


def chunk(kind, content, checksum=0):
    crc = zlib.crc32(kind + content) ^ checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png(pixels, bits=8, colour=2, before=b"", after=b"", end=True, interlaced=False, lose=0):
    """A PNG by hand. lose: bytes that its rows lack, while its stream ends in good order."""
    rows = b""
    for left, top, across, down in ADAM7 if interlaced else ((0, 0, 1, 1),):
        for row in pixels[top::down, left::across]:
            if bits == 16:
                content = row.astype(">u2").tobytes()
            else:
                content = np.packbits(np.unpackbits(row.reshape(-1, 1), axis=1)[:, 8 - bits :]).tobytes()
            rows += b"\0" + content if content else b""
    rows = zlib.compress(rows[: len(rows) - lose])
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, colour, 0, 0, interlaced)
    middle = len(rows) // 2
    data = chunk(b"IDAT", rows[:middle]) + chunk(b"IDAT", rows[middle:]) + after
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + data
    return data + (chunk(b"IEND", b"") if end else b"")


# ----------------------------------------------------------------------------- PNG: its transparent colour


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_png_with_a_transparent_level(bits, interlaced):
    most = 2**bits - 1
    levels = (GREY.astype(int) * most // 255).astype(np.uint16 if bits == 16 else np.uint8)
    chosen = int(levels[20, 30])
    if bits == 16:
        levels[20, 31] = chosen ^ 1  # of the same 8 high bits, and yet another one
    shown = np.where(levels == chosen, 255, np.floor(levels / most * 255 + 0.5))
    assert 0 < (levels == chosen).sum() < levels.size and not (shown == levels).all()
    data = png(levels, bits, 0, chunk(b"tRNS", struct.pack(">H", chosen)), interlaced=interlaced)
    assert np.array_equal(load_rgb(data), np.stack([shown] * 3, axis=2))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_rgb_png_with_a_transparent_colour(bits, interlaced):
    pixels = RGB if bits == 8 else RGB * np.uint16(257) - np.uint16(1)
    chosen = pixels[20, 30].copy()
    if bits == 16:
        pixels[20, 31] = chosen ^ 1
    is_chosen = (pixels == chosen).all(axis=2)
    shown = np.where(is_chosen[:, :, None], 255, pixels >> (bits - 8))
    assert is_chosen[20, 30] and not is_chosen[20, 31]
    data = png(pixels, bits, 2, chunk(b"tRNS", struct.pack(">3H", *chosen)), interlaced=interlaced)
    assert np.array_equal(load_rgb(data), shown)


# ------------------------------------------------------------------------------------------------- whole


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits, colour", [(8, 2), (16, 2), (8, 0), (16, 0), (1, 0), (4, 0)])
def test_png_with_too_few_rows_is_broken(bits, colour, interlaced):
    pixels = (RGB if colour == 2 else GREY) >> max(8 - bits, 0)
    load_rgb(png(pixels, bits, colour, interlaced=interlaced))
    for lose in (1, 5, 100, 200):
        with pytest.raises(ImageError, match="part of its picture|truncated"):
            load_rgb(png(pixels, bits, colour, interlaced=interlaced, lose=lose))


@pytest.mark.parametrize("interlaced", [False, True])
def test_png_that_ends_in_black_rows_is_whole(interlaced):
    pixels = RGB.copy()
    pixels[HEIGHT // 2 :] = 0
    assert np.array_equal(load_rgb(png(pixels, interlaced=interlaced)), pixels)
    assert np.array_equal(load_rgb(png(0 * pixels, interlaced=interlaced)), 0 * pixels)
    with pytest.raises(ImageError):
        load_rgb(png(pixels, interlaced=interlaced, lose=1))


def test_png_without_its_last_chunk_is_read():
    assert np.array_equal(load_rgb(png(RGB, end=False)), RGB)


def early_end(data):
    """A JPEG whose second half is not there, but for the marker of its end."""
    return data[: len(data) // 2] + b"\xff\xd9"


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 4}, {"subsampling": 0}], ids=str)
@pytest.mark.parametrize("pixels", [RGB, GREY], ids=["colour", "grey"])
def test_jpeg_that_ends_early_is_broken_for_reader_and_writer(pixels, options):
    data = encoded(pixels, "JPEG", quality=95, **options)
    load_rgb(data)
    config = WriterConfig(write_path="", write_mode="jpg")
    encoding.encode_sample(data, 0, config)
    with pytest.raises(ImageError, match="part of its picture"):
        load_rgb(early_end(data))
    with pytest.raises(ImageError, match="part of its picture"):
        encoding.encode_sample(early_end(data), 0, config, "a.jpg")


def test_jpeg_with_a_grey_corner_is_whole():
    pixels = RGB.copy()
    pixels[-20:] = 128
    for data in (encoded(pixels, "JPEG", quality=100, subsampling=0), encoded(pixels[:, :, 0], "JPEG")):
        assert (load_rgb(data)[-1, -1] == 128).all()


def icon(inner):
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, WIDTH, HEIGHT, 0, 0, 1, 24, len(inner), 22) + inner


def test_icon_whose_png_has_too_few_rows_is_broken():
    assert np.array_equal(load_rgb(icon(png(RGB))), RGB)
    with pytest.raises(ImageError, match="part of its picture|truncated"):
        load_rgb(icon(png(RGB, lose=300)))


@pytest.mark.skipif("JPEG2000" not in Image.SAVE, reason="this Pillow has no JPEG 2000")
@pytest.mark.parametrize("no_jp2", [False, True])
def test_jpeg_2000_without_some_of_its_tiles_is_broken(no_jp2):
    data = encoded(RGB, "JPEG2000", no_jp2=no_jp2, tile_size=(32, 32))
    assert np.array_equal(load_rgb(data), RGB)
    parts = [i for i in range(len(data)) if data[i : i + 4] == b"\xff\x90\0\x0a"]
    assert len(parts) == 4
    with pytest.raises(ImageError):
        load_rgb(data[: parts[2]] + b"\xff\xd9")


def test_pcx_without_its_palette_is_broken():
    image = Image.fromarray(RGB).quantize(200)
    buffer = io.BytesIO()
    image.save(buffer, "PCX")
    assert np.array_equal(load_rgb(buffer.getvalue()), np.asarray(image.convert("RGB")))
    with pytest.raises(ImageError):
        load_rgb(buffer.getvalue()[:-1])
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, "PCX")
    assert np.array_equal(load_rgb(buffer.getvalue())[:, :, 0], GREY)


CUT = {
    "BMP": encoded(RGB, "BMP"),
    "GIF": encoded(GREY, "GIF"),
    "ICO": encoded(RGB[:32, :32].copy(), "ICO", bitmap_format="bmp", sizes=[(32, 32)]),
    "JPEG": encoded(RGB, "JPEG"),
    "JPEG, progressive": encoded(RGB, "JPEG", progressive=True),
    "PCX": encoded(RGB, "PCX"),
    "PGM": b"P5 60 46 255\n" + GREY.tobytes(),
    "plain PGM": b"P2 60 46 255\n" + b" ".join(str(value).encode() for value in GREY.reshape(-1)) + b"\n",
    "PPM": encoded(RGB, "PPM"),
    "SGI": encoded(RGB, "SGI"),
    "TGA": encoded(RGB, "TGA"),
    "TGA, packed": encoded(RGB, "TGA", compression="tga_rle"),
    "TIFF, fax": encoded(GREY > 99, "TIFF", compression="group4"),
    "TIFF, JPEG": encoded(RGB, "TIFF", compression="jpeg"),
    "PNG": png(RGB),
    "PNG, interlaced": png(RGB, interlaced=True),
}
if features.check("webp"):
    CUT["WebP"] = encoded(RGB, "WEBP")
    CUT["WebP, lossless"] = encoded(RGB, "WEBP", lossless=True)
if "JPEG2000" in Image.SAVE:
    CUT["JPEG 2000"] = encoded(RGB, "JPEG2000")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", CUT)
def test_a_cut_file_is_broken_or_has_all_its_pixels(name, capfd):
    data = CUT[name]
    whole = load_rgb(data)
    errors = 0
    for length in np.linspace(1, len(data) - 1, 65).astype(int):
        try:
            assert np.array_equal(load_rgb(data[:length]), whole)
        except ImageError:
            errors += 1
    assert errors > 50
    assert capfd.readouterr() == ("", "")  # libraries' own words name no file


# ------------------------------------------------------------------------- only ancillary chunks are broken

NOTES = {
    "text": chunk(b"tEXt", b"a\0b", checksum=1),
    "colour profile": chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"x" * 200), checksum=1),
    "colour profile that is none": chunk(b"iCCP", b"icc\0\0nothing"),
    "EXIF": chunk(b"eXIf", b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\1\0\0\0\0\0\0\0", checksum=1),
    "gamma": chunk(b"gAMA", b"\0\0\1\0", checksum=1),
    "compressed text": chunk(b"zTXt", b"a\0\0nothing", checksum=1),
    "text that unpacks to too much": chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26))),
    "too short": chunk(b"pHYs", b"1"),
}


@pytest.mark.parametrize("note", NOTES.values(), ids=NOTES)
def test_png_with_a_broken_note_is_read(note):
    assert np.array_equal(load_rgb(png(RGB, before=note)), RGB)
    assert np.array_equal(load_rgb(png(RGB, after=note)), RGB)


def test_png_with_a_broken_note_keeps_transparency_and_orientation():
    clear = chunk(b"tRNS", struct.pack(">3H", *RGB[3, 4]))
    turn = chunk(b"eXIf", b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0")
    expected = RGB.copy()
    expected[(RGB == RGB[3, 4]).all(axis=2)] = 255
    data = png(RGB, before=NOTES["text"] + clear + turn)
    assert np.array_equal(load_rgb(data), np.rot90(expected, -1))


def test_png_whose_picture_is_broken_stays_broken():
    with pytest.raises(ImageError, match="IHDR"):
        load_rgb(png(RGB, before=NOTES["text"]).replace(b"IHDR", b"IHDR", 1)[:29] + b"\1" + png(RGB)[30:])
    with pytest.raises(ImageError):
        load_rgb(png(RGB, before=NOTES["text"], lose=500))
    damaged = bytearray(png(RGB, before=NOTES["text"]))
    damaged[len(damaged) // 2] ^= 0xFF
    with pytest.raises(ImageError):
        load_rgb(bytes(damaged))


# ---------------------------------------------------------------------------------------------- what it is

JPEG = encoded(RGB, "JPEG", subsampling=0)
FRAME = JPEG.index(b"\xff\xc0")


def changed_jpeg(marker=0xC0, bits=8, height=HEIGHT):
    return JPEG[: FRAME + 1] + bytes([marker, 0, 17, bits]) + struct.pack(">H", height) + JPEG[FRAME + 7 :]


def media(brand, *others):
    return struct.pack(">I", 16 + 4 * len(others)) + b"ftyp" + brand + bytes(4) + b"".join(others) + bytes(99)


SVG = b'<?xml version="1.0"?>\n<!-- a drawing -->\n<svg xmlns="http://www.w3.org/2000/svg" width="9"></svg>'
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "is an empty file"),
        (b"x", "is a text file, not an image"),
        (changed_jpeg(bits=12), "JPEG of 12 bits"),
        (changed_jpeg(height=0), "DNL"),
        (changed_jpeg(marker=0xC3), "lossless JPEG"),
        (changed_jpeg(marker=0xC5), "hierarchical JPEG"),
        (JPEG[:30], "JPEG"),
        (media(b"heic", b"mif1"), "HEIC"),
        (media(b"mif1", b"heic"), "HEIC"),
        (media(b"isom", b"mp41"), "video"),
        (media(b"qt  "), "video"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), "JPEG XL"),
        (b"\xff\x0a" + bytes(range(50)), "JPEG XL"),
        (SVG, "SVG"),
        (b"\xef\xbb\xbf  <!DOCTYPE HTML><html><body>404</body></html>", "HTML page"),
        (b"<html><head></head></html>", "HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML document"),
        (LFS, "Git LFS pointer"),
        (gzip.compress(JPEG), "gzip"),
        (b"PK\x03\x04" + bytes(40), "zip archive"),
        (b"%PDF-1.4\n" + bytes(40), "PDF"),
        (b"8BPS\0\1" + bytes(40), "Photoshop"),
        (b"RIFF\x40\0\0\0AVI LIST" + bytes(40), r"video \(AVI\)"),
        (b"\x1aE\xdf\xa3" + bytes(range(60)), "Matroska"),
        (b'{"message": "not found"}', "JSON"),
        (b"no image\n" * 4, "text file"),
        (bytes(5000), "only zeros"),
        (b"\0\x05\x16\x07\0\2\0\0Mac OS X" + bytes(60), "AppleDouble"),
        (bytes(range(128, 256)), "not an image in a known format"),
        (b"\x89PNG\r\n\x1a\n" + bytes(9), "PNG"),
        (b"BM" + bytes(4), "BMP"),
        (b"RIFF\x40\0\0\0WEBP", "WEBP|WebP"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_what_the_file_is(data, reason, tmp_path, capfd):
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    for read in (
        load_rgb,
        lambda path: encoding.encode_sample(path, 0, WriterConfig(write_path="", write_mode="jpg")),
    ):
        with pytest.raises(ImageError, match=reason) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
    assert capfd.readouterr() == ("", "")


def test_warning_about_a_very_large_image_names_it(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)
    for name in ("PNG", "TIFF", "JPEG", "GIF"):
        path = tmp_path / f"large.{name}"
        path.write_bytes(encoded(RGB, name))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load_rgb(path)
        assert [str(path) in str(warning.message) for warning in caught] == [True]
        assert issubclass(caught[0].category, Image.DecompressionBombWarning)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", HEIGHT * WIDTH // 2 - 1)
    with pytest.raises(ImageError, match="large.PNG: has 60 x 46 pixels, which exceeds limit"):
        load_rgb(tmp_path / "large.PNG")


# ------------------------------------------------------------------------------------------ machine faults


def failing(error):
    def fail(*arguments, **options):
        raise error

    return fail


MACHINE = [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.ENOTCONN, errno.ETIMEDOUT]


@pytest.mark.parametrize("number", MACHINE, ids=errno.errorcode.get)
def test_errors_of_the_machine_are_not_the_images(number, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(png(RGB))
    monkeypatch.setattr("builtins.open", failing(OSError(number, "what the system says")))
    for read in (read_file, load_rgb):
        with pytest.raises(MachineError, match="a.png: the machine") as caught:
            read(path)
        assert not isinstance(caught.value, ImageError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is MachineError and str(again) == str(caught.value)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG])
def test_errors_of_the_file_are_the_images(number, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(png(RGB))
    monkeypatch.setattr("builtins.open", failing(OSError(number, "what the system says")))
    with pytest.raises(ImageError, match="what the system says"):
        load_rgb(path)


NO_MEMORY = [
    ("PIL.ImageFile.ImageFile.load", MemoryError()),
    ("PIL.ImageFile.ImageFile.load", OSError("out of memory error when reading image file")),
    ("PIL.ImageFile.ImageFile.load", ImportError("cannot open shared object file: Too many open files")),
    ("llc.data.images._as_array", MemoryError()),
    ("llc.data.images._orientation", MemoryError()),
]


@pytest.mark.parametrize("where, error", NO_MEMORY)
def test_no_memory_is_no_broken_image(where, error, monkeypatch):
    load_rgb(png(RGB), "a.png")
    monkeypatch.setattr(where, failing(error))
    for data in (png(RGB), png(RGB, before=NOTES["text"]), encoded(RGB, "JPEG")):
        with pytest.raises(MachineError, match="a.png: "):
            load_rgb(data, "a.png")


def test_no_memory_to_shrink_or_to_encode_is_no_broken_image(monkeypatch):
    config = WriterConfig(write_path="", write_mode="jpg", max_resolution=20)
    encoding.encode_sample(png(RGB), 0, config, "a.png")
    with monkeypatch.context() as patch:
        patch.setattr(codec, "decode_batch", lambda *arguments: np.int32([codec.OUT_OF_MEMORY]))
        with pytest.raises(MachineError, match="a.png: the machine has no memory"):
            encoding.encode_sample(png(RGB), 0, config, "a.png")
    monkeypatch.setattr(encoding, "_jpeg_writer", lambda: NoMemory())
    with pytest.raises(MachineError, match="a.png: the machine has no memory"):
        encoding.encode_sample(png(RGB), 0, config, "a.png")


class NoMemory:
    recode = keep = lambda self, *arguments: None
    encode = failing(MemoryError())


class OneImage:
    def read(self, handle):
        return png(RGB), "a.png"


def test_a_worker_leaves_no_image_out_for_the_machine(monkeypatch):
    import os

    config = WriterConfig(write_path="", write_mode="jpg", on_error="skip")
    assert _encode_chunk(OneImage(), config, 0, [0], os.getppid())[3] == []
    monkeypatch.setattr("llc.data.images._as_array", failing(MemoryError()))
    with pytest.raises(MachineError):
        _encode_chunk(OneImage(), config, 0, [0], os.getppid())


def test_a_conversion_without_memory_ends_and_names_the_image(tmp_path):
    for name, image in (("a/1", (9, 9)), ("a/large", (9400, 9400)), ("b/1", (9, 9))):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("LA", image, (77, 9)).save(tmp_path / "tree" / f"{name}.png")
    flags = f"--cfg.data_dir={tmp_path}/tree --cfg.write_path={tmp_path}/o.beton --cfg.num_workers=1"
    script = f"ulimit -v 1100000; {sys.executable} {REPOSITORY}/write_ffcv.py {flags} --cfg.on_error=skip"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=seconds(120))
    assert done.returncode == 2, done.stderr
    assert "a/large.png: the machine has no memory left" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "o.beton").exists()


def test_too_many_open_files_end_a_conversion(tmp_path):
    script = (
        "import resource, sys; from llc.data.images import load_rgb\n"
        "load_rgb(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "load_rgb(sys.argv[1])"
    )
    (tmp_path / "a.png").write_bytes(png(RGB))
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "a.png"],
        capture_output=True,
        text=True,
        timeout=seconds(60),
        cwd=REPOSITORY,
    )
    assert "MachineError" in done.stderr and "a.png: the machine could not read it: Too many" in done.stderr
