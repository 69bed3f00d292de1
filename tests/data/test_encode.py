"""The native library's JPEGs for betons, compared with Pillow and OpenCV, for every kind of ordinary file."""

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llc.data import beton
from llc.data.encoding import RESTART_BLOCKS, encode_sample, shrink
from llc.data.images import load_rgb
from llc.data.writer import WriterConfig
from llc.native.codec import JpegWriter, decode
from tests.data.helpers import picture

SAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}  # Pillow's numbers
# Blocks are 8 pixels, MCUs 8 or 16: sizes at, below and above multiples of them, odd ones, and enough MCU
# rows for the numbers of restart markers to wrap.
SIZES = [(1, 1), (8, 8), (16, 16), (17, 15), (9, 33), (31, 24), (50, 75), (150, 41)]


@pytest.fixture(scope="module")
def writer():
    return JpegWriter(beton.PAGE_SIZE)


def photo(seed, height, width):
    """A smooth picture with some noise on it, as photographs are: coefficients of all frequencies."""
    noise = np.random.default_rng(seed).normal(0, 6, (height, width, 3))
    return (picture(seed, height, width) * 0.8 + 20 + noise).clip(0, 255).astype(np.uint8)


def jpeg(pixels, quality=95, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(bytes(data))).convert("RGB"))


def psnr(a, b):
    return 10 * np.log10(255**2 / max(((a.astype(float) - b) ** 2).mean(), 1e-9))


def layout(data):
    """Quantisation tables, sampling factors, restart interval in MCUs, number of restart markers."""
    data = bytes(data)
    image = Image.open(io.BytesIO(data))
    at = data.find(b"\xff\xdd\0\4")
    interval = int.from_bytes(data[at + 4 : at + 6], "big") if at >= 0 else 0
    scan = data[data.index(b"\xff\xda") :]
    markers = [scan[i + 1] for i in range(len(scan) - 1) if scan[i] == 0xFF and 0xD0 <= scan[i + 1] <= 0xD7]
    assert markers == [0xD0 + i % 8 for i in range(len(markers))]
    return image.quantization, [tuple(component[1:3]) for component in image.layer], interval, len(markers)


def marks(height, width, mcu_height, mcu_width, interval):
    """Restart interval and number of restart markers of a JPEG of so many pixels."""
    return interval, -(-height // mcu_height) * -(-width // mcu_width) // interval - (
        -(-height // mcu_height) * -(-width // mcu_width) % interval == 0
    )


# ---------------------------------------------------------------------------------------------- recoded


@pytest.mark.parametrize("size", SIZES)
def test_recoding_to_the_same_quality_keeps_every_pixel(size, writer):
    # the same step sizes: each coefficient comes out as it went in
    for options in (
        {},
        {"optimize": True},
        {"restart_marker_blocks": 1},
        {"restart_marker_blocks": 3},
        {"restart_marker_rows": 2},
    ):
        source = jpeg(photo(1, *size), 90, subsampling="4:2:0", **options)
        for restart_blocks in (0, 1, 24):
            result = writer.recode(source, 0, 90, restart_blocks)
            assert (result.height, result.width) == size
            assert np.array_equal(decoded(result.data), decoded(source))


@pytest.mark.parametrize("quality", [30, 90, 100])
@pytest.mark.parametrize("sampling", [*SAMPLINGS, "grey"])
@pytest.mark.parametrize("size", SIZES)
def test_recoding_is_as_good_as_encoding_the_pixels(size, sampling, quality, writer):
    pixels = photo(2, *size)
    if sampling == "grey":
        source = jpeg(pixels[:, :, 1], 95)
    else:
        source = jpeg(pixels, 95, subsampling=SAMPLINGS[sampling])
    result = writer.recode(source, 0, quality, 24)
    before, after = decoded(source), decoded(result.data)
    by_pixels_data = writer.encode(before, quality, 24)
    by_pixels = decoded(by_pixels_data)
    # Rounded once instead of three times, so it is better on average, but not for every small picture.
    assert psnr(after, before) > psnr(by_pixels, before) - (0.3 if min(size) > 40 else 1.5)
    assert len(result.data) < 40 + 1.05 * len(by_pixels_data)
    done, reference = cv2.imencode(".jpg", before, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert layout(result.data) == (layout(reference)[0], [(2, 2), (1, 1), (1, 1)], *marks(*size, 16, 16, 4))
    assert layout(by_pixels_data) == layout(result.data)


def test_chroma_of_rows_that_are_doubled(writer):
    # 4:4:0, which Pillow does not write: a 4:2:2 file's columns are a 4:4:0 file's rows
    source = jpeg(photo(3, 64, 48), 95, subsampling="4:2:2")
    at = source.index(b"\xff\xc0") + 11
    assert source[at] == 0x21
    turned = source[:at] + b"\x12" + source[at + 1 :]
    reference = decoded(turned)
    # the order of blocks differs between the two, so the picture is scrambled, but it is a picture
    result = writer.recode(turned, 0, 95, 1)
    assert result is not None and psnr(decoded(result.data), reference) > 30


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_what_lies_behind_the_edge_does_not_show(sampling, writer):
    # A picture that only its header makes smaller: beyond the edge it is blue, where an encoder would repeat
    # the last pixel.
    size = {"4:4:4": (24, 24), "4:2:2": (24, 32), "4:2:0": (32, 32)}[
        sampling
    ]  # the same blocks as those of 19 x 21
    pixels = np.full((*size, 3), (200, 60, 40), np.uint8)
    pixels[19:], pixels[:, 21:] = (20, 40, 220), (20, 40, 220)
    source = bytearray(jpeg(pixels, 100, subsampling=SAMPLINGS[sampling]))
    at = source.index(b"\xff\xc0") + 5
    source[at : at + 4] = (19).to_bytes(2, "big") + (21).to_bytes(2, "big")
    before = decoded(source).astype(int)
    after = decoded(writer.recode(bytes(source), 0, 100, 1).data).astype(int)
    by_pixels = decoded(writer.encode(before.astype(np.uint8), 100, 1)).astype(int)
    assert after.shape == (19, 21, 3)
    if sampling == "4:4:4":
        assert np.abs(after - before).max() <= 12 and np.abs(by_pixels - before).max() <= 12
    else:  # their averages were made before
        assert np.abs(after - before).max() <= 110


def test_restart_markers_change_no_pixel(writer):
    pixels = photo(4, 230, 170)
    for make in (
        lambda blocks: writer.recode(jpeg(pixels), 0, 90, blocks).data,
        lambda blocks: writer.encode(pixels, 90, blocks),
    ):
        plain = make(0)
        assert layout(plain)[2:] == (0, 0)
        for blocks, interval in (
            (1, 1),
            (11, 1),
            (12, 2),
            (18, 3),
            (66, 11),
            (330, 55),
            (990, 165),
            (10**6, 65535),
        ):
            marked = make(blocks)
            assert layout(marked)[2:] == marks(230, 170, 16, 16, interval)
            assert np.array_equal(decoded(marked), decoded(plain))
            assert np.array_equal(decode(marked), decoded(plain))


@pytest.mark.parametrize(
    "size, max_side", [((300, 400), 399), ((300, 400), 200), ((413, 97), 150), ((900, 3), 100), ((64, 64), 5)]
)
def test_shrinking(size, max_side, writer):
    source = jpeg(photo(5, *size))
    reference = decoded(source)
    expected = shrink(reference, max_side)
    of_opencv = cv2.resize(reference, expected.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(expected.astype(int) - of_opencv).max() <= 1  # averages of areas, up to rounding
    pixels = writer.read(source, max_side)
    assert (pixels.height, pixels.width) == expected.shape[:2]
    assert np.abs(pixels.data.reshape(expected.shape).astype(int) - expected).max() <= 1
    result = writer.recode(source, max_side, 90, 1)
    assert np.array_equal(
        decoded(result.data), decoded(writer.encode(pixels.data.reshape(expected.shape), 90, 1))
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sampling", [*SAMPLINGS, "grey"])
def test_pixels_are_those_of_load_rgb(size, sampling, writer):
    pixels = photo(6, *size)
    source = jpeg(pixels[:, :, 0]) if sampling == "grey" else jpeg(pixels, subsampling=SAMPLINGS[sampling])
    assert np.array_equal(writer.read(source, 0).data.reshape(*size, 3), load_rgb(source))


# ---------------------------------------------------------------------------------------------- kept


@pytest.mark.parametrize(
    "options",
    [{"subsampling": s} for s in (0, 1, 2)] + [{"progressive": True}, {"optimize": True}, {"grey": True}],
)
def test_kept_pictures_have_the_same_pixels(options, writer):
    for size in SIZES:
        grey = "grey" in options
        pixels = photo(7, *size)
        source = jpeg(
            pixels[:, :, 1] if grey else pixels, 93, **({} if grey else options), comment=b"a comment" * 20
        )
        result = writer.keep(source, max(size), 24)
        assert np.array_equal(decoded(result.data), decoded(source)) and b"a comment" not in bytes(
            result.data
        )
        assert np.array_equal(decode(result.data), decoded(source))
        sampling = layout(result.data)[1]
        assert sampling == layout(source)[1]
        across, down = (1, 1) if grey else sampling[0]
        interval = 24 if grey else 24 // (across * down + 2)
        assert layout(result.data)[2:] == marks(*size, 8 * down, 8 * across, interval)
        assert max(size) == 1 or writer.keep(source, max(size) - 1, 1) is None


# --------------------------------------------------------------------------------------- what is not ordinary


def with_segment(data, marker, content):
    return data[:2] + bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content + data[2:]


def exif(orientation):
    content = Image.Exif()
    content[0x0112] = orientation
    return content.tobytes()


def xmp(orientation):
    return (
        b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'
        % orientation
    )


ORDINARY = jpeg(photo(8, 40, 56))
ADOBE = b"Adobe\0\x64\0\0\0\0"
NO_JFIF = ORDINARY[:2] + ORDINARY[20:]
EXTRAORDINARY = {
    "RGB, by Adobe's marker": with_segment(NO_JFIF, 0xEE, ADOBE + b"\0"),
    "turned, by EXIF": jpeg(photo(8, 40, 56), exif=exif(6)),
    "turned, by XMP": with_segment(ORDINARY, 0xE1, xmp(8)),
    "EXIF cut off": with_segment(ORDINARY, 0xE1, exif(1)[:-5]),
    "two EXIFs": with_segment(with_segment(ORDINARY, 0xE1, exif(1)), 0xE1, exif(1)),
    "progressive": jpeg(photo(8, 40, 56), progressive=True),
}
ALSO_ORDINARY = {
    "upright, by EXIF": jpeg(photo(8, 40, 56), exif=exif(1)),
    "EXIF of another value": jpeg(photo(8, 40, 56), exif=exif(0)),
    "EXIF counts before XMP": with_segment(jpeg(photo(8, 40, 56), exif=exif(1)), 0xE1, xmp(8)),
    "no JFIF": NO_JFIF,
    "Adobe's YCbCr": with_segment(NO_JFIF, 0xEE, ADOBE + b"\1"),
    "fill bytes": ORDINARY[:2] + b"\xff\xff\xff" + ORDINARY[2:],
    "something behind": ORDINARY + b"something",
    "profile": jpeg(photo(8, 40, 56), icc_profile=b"x" * 70_000),
}


@pytest.mark.parametrize("kind", ALSO_ORDINARY)
def test_ordinary_files(kind, writer):
    source = ALSO_ORDINARY[kind]
    assert np.array_equal(writer.read(source, 0).data, load_rgb(source).reshape(-1))
    assert psnr(decoded(writer.recode(source, 0, 95, 1).data), load_rgb(source)) > 33
    assert np.array_equal(decoded(writer.keep(source, 0, 1).data), load_rgb(source))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", EXTRAORDINARY)
def test_files_that_take_the_careful_way(kind, writer):
    source = EXTRAORDINARY[kind]
    assert writer.recode(source, 0, 90, 1) is None and writer.read(source, 0) is None
    assert (writer.keep(source, 0, 1) is None) == (kind != "progressive")
    config = WriterConfig("out.beton", write_mode="raw")
    sample = encode_sample(source, 0, config)
    assert np.array_equal(sample.data, load_rgb(source).reshape(-1))
    sample = encode_sample(source, 0, WriterConfig("out.beton", write_mode="jpg"))
    assert (sample.height, sample.width) == load_rgb(source).shape[:2]
    assert psnr(decoded(sample.data), load_rgb(source)) > 30 and layout(sample.data)[2] == RESTART_BLOCKS // 6


def test_every_cut_is_noticed(writer):
    source = jpeg(photo(10, 40, 56), restart_marker_rows=1)
    assert writer.recode(source, 0, 90, 1) is not None
    for length in range(len(source)):
        cut = source[:length]
        assert writer.recode(cut, 0, 90, 1) is None
        assert length % 7 or (writer.read(cut, 0) is None and writer.keep(cut, 0, 1) is None)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 5),
    place=st.floats(0, 1, exclude_max=True),
    flip=st.integers(1, 255),
    sampling=st.sampled_from([0, 1, 2]),
)
def test_damage_is_noticed_or_read_as_pillow_reads_it(seed, place, flip, sampling, writer):
    source = bytearray(jpeg(photo(seed, 24, 40), subsampling=sampling, restart_marker_blocks=seed))
    at = int(place * len(source))
    source[at] ^= flip
    source = bytes(source)
    result = writer.recode(source, 40, 95, 1)
    pixels = writer.read(source, 40)
    kept = writer.keep(source, 40, 1)
    if pixels is not None and max(load_rgb(source).shape) <= 40:
        assert np.array_equal(pixels.data, load_rgb(source).reshape(-1))
    if kept is not None:
        assert np.array_equal(decoded(kept.data), decoded(source))
    if result is not None and max(load_rgb(source).shape) <= 40:
        assert (result.height, result.width) == load_rgb(source).shape[:2]
        # Other decoders clamp values that no 8-bit picture has; with damaged tables that may be nearly all.
        assert (
            at < source.index(b"\xff\xda")
            or np.abs(decoded(result.data).astype(int) - decoded(source)).mean() < 25
        )


def test_too_large_a_result_is_none():
    small, source = JpegWriter(700), jpeg(photo(11, 100, 100))
    assert (
        small.recode(source, 0, 90, 1) is None
        and small.keep(source, 0, 1) is None
        and small.read(source, 0) is None
    )
    assert small.encode(photo(11, 100, 100), 90, 1) is None
    assert small.read(source, 15).data.nbytes == 675
