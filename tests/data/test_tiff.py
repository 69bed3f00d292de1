"""Every kind of TIFF, written here by hand, against pixels that are computed here from its samples.

Where another reader knows a kind, too, the file is checked with it: that it is what it shall be.
"""

import io
import os
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image

from llc.data.images import ImageError, load_rgb
from tests.data.tiffs import tiff

HEIGHT, WIDTH = 13, 19
RNG = np.random.default_rng(5)
GREY = RNG.integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
ALPHA = RNG.integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)
RGB16 = RNG.integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(np.uint16)
# How the same samples can lie in a file
LAYOUTS = {
    "one strip": {},
    "strips": {"rows_per_strip": 4},
    "big-endian": {"order": ">", "rows_per_strip": 5},
    "tiles": {"tile": (16, 16)},
    "LZW": {"compression": 5, "rows_per_strip": 6},
    "LZW, predicted": {"compression": 5, "predictor": 2, "order": ">"},
    "Deflate, tiles, predicted": {"compression": 8, "predictor": 2, "tile": (16, 16)},
    "PackBits": {"compression": 32773, "order": ">"},
    "planes": {"planar": 2, "rows_per_strip": 7},
    "planes in tiles, LZW": {"planar": 2, "tile": (16, 16), "compression": 5},
    "BigTIFF": {"big": True, "rows_per_strip": 4},
    "BigTIFF, big-endian, Deflate": {"big": True, "order": ">", "compression": 8, "predictor": 2},
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def three(grey):
    return np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)


def nearest(values, white):
    return np.floor(np.asarray(values, np.float64) / white * 255 + 0.5)


def on_white(colours, alpha):
    """colours, alpha: 0..255 -> the picture over white, not rounded."""
    share = np.asarray(alpha, np.float64)[..., None] / 255
    return np.asarray(colours) * share + 255 * (1 - share)


def check(data, expected, tolerance=0):
    pixels = load_rgb(data)
    assert pixels.dtype == np.uint8 and pixels.shape == expected.shape and pixels.flags.c_contiguous
    assert np.abs(pixels - expected.astype(float)).max() <= tolerance


# ------------------------------------------------------------------------------------------------------- grey


@layouts
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_unsigned_grey(bits, photometric, layout):
    values = (GREY * np.uint64((2**bits - 1) // 255)).astype(f"u{bits // 8}")
    values[0, 0], values[0, 1] = 0, 2**bits - 1  # the whole range
    expected = nearest(values, 2**bits - 1)
    check(
        tiff(values, bits, photometric, **layout),
        three(255 - expected if photometric == 0 else expected),
        1e-9,
    )


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 10, 12, 14])
@pytest.mark.parametrize(
    "layout",
    [{}, {"order": ">", "rows_per_strip": 3}, {"compression": 5}, {"tile": (16, 16), "compression": 8}],
)
def test_grey_of_other_bits(bits, photometric, layout):
    values = (GREY.astype(int) * (2**bits - 1) // 255).astype(np.uint16)
    assert values.max() == 2**bits - 1
    expected = nearest(values, 2**bits - 1)
    check(tiff(values, bits, photometric, **layout), three(255 - expected if photometric == 0 else expected))


def test_lowest_bit_first():
    values = GREY // 16
    data = bytearray(tiff(values, 4, 1, tags=[(266, 3, [2])]))
    for i in range(8, 8 + HEIGHT * 10):
        data[i] = int(f"{data[i]:08b}"[::-1], 2)
    check(bytes(data), three(values * 17))


@layouts
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [16, 32, 64])
def test_float_grey(bits, photometric, layout):
    if bits == 16 and layout.get("predictor") == 2 or layout.get("predictor") == 2:
        layout = layout | {"predictor": 3}
    values = (GREY / 255).astype(f"f{bits // 8}")
    expected = np.floor(values.astype(np.float64) * 255 + 0.5)
    assert np.array_equal(expected, GREY)
    check(tiff(values, bits, photometric, 3, **layout), three(255 - GREY if photometric == 0 else GREY))


def test_float_grey_of_other_ranges():
    check(tiff(GREY.astype(np.float32), 32, 1, 3), three(GREY))
    values = (GREY.astype(np.float64) - 100) * 1e6
    values[0, :2] = [-100e6, 155e6]
    check(tiff(values, 64, 1, 3), three(np.floor((values + 100e6) / 255e6 * 255 + 0.5)))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [8, 16, 32, 64])
def test_signed_grey(bits, order):
    values = (GREY.astype(np.int64) - 128) * 2 ** (bits - 8)
    values[0, :2] = [-(2 ** (bits - 1)), 127 * 2 ** (bits - 8)]  # lowest to 0, highest to 255
    check(
        tiff(values.astype(f"i{bits // 8}"), bits, 1, 2, order=order),
        three(values / 2.0 ** (bits - 8) + 128),
        0.51,
    )
    check(
        tiff(values.astype(f"i{bits // 8}"), bits, 0, 2, order=order),
        three(127 - values / 2.0 ** (bits - 8)),
        0.51,
    )


def test_signed_grey_without_negative_values_has_the_range_of_its_bits():
    check(tiff((GREY // 2).astype(np.int8), 8, 1, 2), three(GREY // 2))
    check(tiff((GREY.astype(np.int16) * 128), 16, 1, 2), three(nearest(GREY * 128.0, 65535)))


@layouts
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [8, 16])
def test_grey_with_alpha(bits, photometric, layout):
    unit = np.uint16(2 ** (bits - 8) + 1 if bits == 16 else 1)
    values = np.dstack([GREY * unit, ALPHA * unit]).astype(f"u{bits // 8}")
    shown = 255 - GREY if photometric == 0 else GREY
    check(tiff(values, bits, photometric, extra=[2], **layout), on_white(three(shown), ALPHA), 0.5 + 1e-9)


def test_grey_with_premultiplied_alpha():
    share = ALPHA / 255
    for bits, unit in ((8, 1), (16, 257)):
        values = np.dstack([np.floor(GREY * share) * unit, ALPHA.astype(int) * unit]).astype(f"u{bits // 8}")
        check(tiff(values, bits, 1, extra=[1]), on_white(three(GREY), ALPHA), 2.01)


def test_extra_sample_without_meaning_is_left_out():
    for values, bits in ((np.dstack([GREY, ALPHA]), 8), (np.dstack([GREY, ALPHA]) * np.uint16(257), 16)):
        check(tiff(values, bits, 1, extra=[0]), three(GREY))


def test_float_grey_with_alpha():
    values = np.dstack([GREY, ALPHA]).astype(np.float32) / 255
    check(tiff(values, 32, 1, 3, extra=[2]), on_white(three(GREY), ALPHA), 0.5 + 1e-9)


# ----------------------------------------------------------------------------------------------------- colour


@layouts
def test_rgb(layout):
    check(tiff(RGB, 8, 2, **layout), RGB)
    rgba = np.dstack([RGB, ALPHA])
    check(tiff(rgba, 8, 2, extra=[2], **layout), on_white(RGB, ALPHA), 0.5 + 1e-9)
    check(tiff(rgba, 8, 2, extra=[0], **layout), RGB)


@layouts
def test_rgb_of_16_bits(layout):
    data = tiff(RGB16, 16, 2, **layout)
    check(data, RGB16 / 257, 1)
    other = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert layout.get("big") or layout.get("planar") or np.array_equal(other[:, :, ::-1], RGB16)
    rgba = np.dstack([RGB16, ALPHA * np.uint16(257)])
    check(tiff(rgba, 16, 2, extra=[2], **layout), on_white(RGB16 / 257, ALPHA), 1.5)
    check(tiff(rgba, 16, 2, **layout), on_white(RGB16 / 257, ALPHA), 1.5)  # not said: alpha


def test_rgb_of_12_bits_and_of_4():
    check(tiff(RGB16 >> 4, 12, 2), nearest(RGB16 >> 4, 4095))
    check(tiff(RGB >> 4, 4, 2), (RGB >> 4) * 17)


@layouts
@pytest.mark.parametrize("bits", [16, 32, 64])
def test_float_colour(bits, layout):
    if layout.get("predictor") == 2:
        layout = layout | {"predictor": 3}
    values = (np.dstack([RGB, ALPHA]) / 255).astype(f"f{bits // 8}")
    check(tiff(values[:, :, :3].copy(), bits, 2, 3, **layout), RGB)
    check(tiff(values, bits, 2, 3, extra=[2], **layout), on_white(RGB, ALPHA), 0.5 + 1e-9)


def test_rgb_of_32_bits():
    values = RGB16.astype(np.uint32) << 16
    values[0, 0] = [0, 0, 2**32 - 1]
    check(tiff(values, 32, 2), nearest(values, 2**32 - 1), 1)


@layouts
def test_cmyk(layout):
    inks = np.dstack([RGB, ALPHA // 2])
    expected = (255.0 - inks[:, :, :3]) * (255.0 - inks[:, :, 3:]) / 255
    check(tiff(inks, 8, 5, **layout), expected, 1)
    check(tiff(inks * np.uint16(257), 16, 5, **layout), expected, 1)


def rgb_of_lab(lab):
    """By the CIE's formulas, Bradford's adaptation from D50 to D65, and the matrix of the sRGB standard."""
    y = (lab[..., 0] + 16) / 116
    xyz = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    d50, d65 = np.array([0.96422, 1, 0.82521]), np.array([0.95047, 1, 1.08883])
    xyz = np.where(xyz > 6 / 29, xyz**3, (xyz - 16 / 116) * 3 * (6 / 29) ** 2) * d50
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    adapt = np.linalg.inv(bradford) @ np.diag((bradford @ d65) / (bradford @ d50)) @ bradford
    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.072175],
            [0.0193339, 0.119192, 0.9503041],
        ]
    )
    linear = np.clip(xyz @ adapt.T @ np.linalg.inv(to_xyz).T, 0, 1)
    return np.where(linear < 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


def test_lab():
    lab = np.dstack([RGB[..., 0] / 255 * 60 + 20, RGB[..., 1] / 255 * 30 - 15, RGB[..., 2] / 255 * 30 - 15])
    expected = rgb_of_lab(lab)
    assert expected.std(axis=(0, 1)).min() > 20
    light = lab[..., :1]
    for photometric, white, zero in ((8, 255, 0), (9, 255, 128)):
        stored = np.dstack([np.round(light / 100 * white), np.round(lab[..., 1:] + zero) % 256]).astype(
            np.uint8
        )
        check(tiff(stored, 8, photometric), expected, 8)  # 8 bits are coarse, in dark colours above all
    for photometric, white, zero in ((8, 65535, 0), (9, 65280, 32768)):
        for layout in ({}, {"order": ">", "compression": 8, "predictor": 2}, {"tile": (16, 16)}):
            stored = np.dstack([np.round(light / 100 * white), np.round(lab[..., 1:] * 256 + zero) % 65536])
            check(tiff(stored.astype(np.uint16), 16, photometric, (1, 2, 2), **layout), expected, 0.8)
    grey = np.dstack([GREY * np.uint16(257), 0 * GREY, 0 * GREY])
    y = (GREY / 255 * 100 + 16) / 116
    linear = np.where(y > 6 / 29, y**3, (y - 16 / 116) * 3 * (6 / 29) ** 2)
    srgb = np.where(linear < 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    check(tiff(grey, 16, 8), three(srgb), 0.6)


@layouts
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("of_8_bits", [False, True])
def test_palette(bits, of_8_bits, layout):
    if bits < 8:
        layout = {key: value for key, value in layout.items() if key != "predictor"}
    colours = np.random.default_rng(bits).integers(1, 256, (3, 2**bits))
    stored = (colours if of_8_bits else colours * 257).reshape(-1).tolist()
    values = GREY >> (8 - bits)
    check(tiff(values, bits, 3, tags=[(320, 3, stored)], **layout), colours.T[values])


def test_palette_of_16_bits_and_with_alpha():
    colours = np.random.default_rng(3).integers(0, 256, (3, 65536))
    values = RGB16[:, :, 0]
    check(tiff(values, 16, 3, tags=[(320, 3, (colours * 256).reshape(-1).tolist())]), colours.T[values])
    few = colours[:, :256]
    data = tiff(np.dstack([GREY, ALPHA]), 8, 3, extra=[2], tags=[(320, 3, (few * 257).reshape(-1).tolist())])
    check(data, on_white(few.T[GREY], ALPHA), 0.5 + 1e-9)


@pytest.mark.parametrize("layout", [{}, {"order": ">"}, {"compression": 5}, {"compression": 8, "order": ">"}])
@pytest.mark.parametrize("across, down", [(1, 1), (2, 1), (2, 2)])
def test_ycbcr(across, down, layout):
    """Blocks of across x down luminances and the two colour differences that they share."""
    height, width = 12, 16
    luminance = np.random.default_rng(1).integers(60, 200, (height, width)).astype(np.uint8)
    colours = (
        np.random.default_rng(2).integers(90, 160, (height // down, width // across, 2)).astype(np.uint8)
    )
    blocks = luminance.reshape(height // down, down, width // across, across).transpose(0, 2, 1, 3)
    stored = np.concatenate([blocks.reshape(height // down, width // across, -1), colours], axis=2)
    cb, cr = (np.kron(colours[..., i].astype(float) - 128, np.ones((down, across))) for i in (0, 1))
    y = luminance.astype(float)
    expected = np.dstack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb])
    size = [(256, 4, [width]), (257, 4, [height]), (278, 4, [height]), (258, 3, [8] * 3), (277, 3, [3])]
    tags = [*size, (530, 3, [across, down]), (532, 5, [0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1])]
    tags.append((339, 3, [1, 1, 1]))
    check(tiff(stored.reshape(height // down, -1), 8, 6, tags=tags, **layout), np.clip(expected, 0, 255), 2)


# ------------------------------------------------------------------------------------------- refused by name


@pytest.mark.parametrize(
    "data, reason",
    [
        (tiff(np.dstack([RGB, RGB]), 8, 2), "6 samples per pixel"),
        (tiff(np.dstack([RGB16, RGB16]), 16, 1, extra=[0] * 5), "6 samples per pixel"),
        (tiff(np.dstack([GREY] * 5), 8, 1), "5 samples per pixel"),
        (tiff(RGB, 8, 1), "3 samples per pixel"),
        (tiff(np.dstack([GREY, GREY]), 8, 2), "2 samples per pixel where its colours need 3"),
        (tiff(GREY.astype(np.complex64).view(np.float64), 64, 1, 6), "complex"),
        (tiff(GREY, 8, 32803), "colour filter array"),
        (tiff(GREY, 8, 4), "transparency mask"),
        (tiff(GREY, 8, 1, tags=[(259, 3, [34887])]), "LERC"),
        (tiff(GREY, 8, 1, tags=[(259, 3, [7777])]), "compression 7777"),
        (tiff(np.dstack([RGB, GREY]), 8, 5, tags=[(332, 3, [2])]), "inks other than CMYK"),
        (tiff(RGB16, 16, 6), "YCbCr in 16 bits"),
        (tiff(RGB.astype(np.float32), 32, 8, 3), "Lab in 32 bits of floating point"),
        (tiff(GREY, 8, 1, tags=[(258, 3, [24])]), "integers of 24 bits"),
        (tiff(RGB, 8, 2, tags=[(258, 3, [5, 6, 5])]), "different bits"),
        (tiff(GREY, 8, 3, tags=[(320, 3, [0] * 6)]), "palette has 6 values"),
        (tiff(GREY.astype(np.float32) * np.nan, 32, 1, 3), "NaN"),
        (tiff(GREY, 8, 1, tags=[(317, 3, [9])], compression=8), "predictor 9"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_supported_is_named(data, reason, capfd):
    with pytest.raises(ImageError, match=reason):
        load_rgb(data)
    assert capfd.readouterr() == ("", "")


# ----------------------------------------------------------------------------------------------- whole, first


@layouts
@pytest.mark.parametrize("bits", [8, 16])
def test_a_strip_or_tile_that_holds_less_than_promised(bits, layout, capfd):
    values = RGB if bits == 8 else RGB16
    load_rgb(tiff(values, bits, 2, **layout))
    for cut in (1, 40):
        if layout.get("compression") == 8 and cut == 1:
            continue  # of the checksum: all samples are there
        with pytest.raises(ImageError):
            load_rgb(tiff(values, bits, 2, cut=cut + (2 if layout.get("compression") == 5 else 0), **layout))
    offsets = 324 if "tile" in layout else 273
    with pytest.raises(ImageError):
        load_rgb(tiff(values, bits, 2, tags=[(offsets, 4, [16]), (325 if offsets == 324 else 279, 4, [9])]))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["strips", "tiles", "LZW", "BigTIFF", "PackBits"])
def test_every_cut_of_a_file_is_an_error(name, capfd):
    data = tiff(RGB16, 16, 2, **LAYOUTS[name])
    load_rgb(data)
    for length in range(len(data) - 12):
        with pytest.raises(ImageError):
            load_rgb(data[:length])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation):
    turned = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: np.swapaxes(a, 0, 1),
        6: lambda a: np.rot90(a, 3),
        7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
        8: np.rot90,
    }[orientation]
    for layout in ({}, {"compression": 5}):
        check(tiff(GREY, 8, 0, tags=[(274, 3, [orientation])], **layout), turned(three(255 - GREY)))


def test_more_bytes_than_pillow_allows_for_a_picture(monkeypatch, recwarn):
    # 247 pixels of 8 bytes: as bytes they are more than the limit, as pixels they are not
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 300)
    values = np.dstack([RGB16, ALPHA * np.uint16(257)])
    check(tiff(values, 16, 2, extra=[2], compression=8), on_white(RGB16 / 257, ALPHA), 1.5)
    assert not recwarn.list


def test_an_opened_pil_image_is_read_by_its_tags_too():
    values = GREY * np.uint16(257)
    for data, expected in (
        (tiff(values, 16, 0, compression=5), 255 - GREY),
        (tiff(values >> 4, 12, 1), GREY),
    ):
        with Image.open(io.BytesIO(data)) as image:
            assert np.array_equal(load_rgb(image), three(expected))
            assert np.array_equal(load_rgb(image), three(expected))


def test_a_thread_may_read_while_another_one_does(capfd):
    broken = tiff(RGB, 8, 2, compression=32773, cut=40)
    whole = tiff(RGB16, 16, 2, compression=5, predictor=2)

    def read(i):
        if i % 3:
            return np.array_equal(load_rgb(whole), RGB16 >> 8)
        with pytest.raises(ImageError):
            load_rgb(broken)
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(200)))
    os.write(2, b"after")  # standard error is itself again
    assert capfd.readouterr().err == "after"
