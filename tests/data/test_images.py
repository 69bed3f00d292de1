"""Every kind of image file, made here by Pillow, OpenCV or hand, against the pixels it must give."""

import io
import os
import pickle
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, features

from llc.data.images import ImageError, load_rgb
from tests.waiting import seconds

# Four flat colours in the quarters of a picture that is wider than high, each far from the others in every
# channel order.
RED, GREEN, BLUE, AMBER = (230, 20, 10), (15, 200, 40), (5, 30, 220), (250, 180, 0)


def quarters(height=32, width=48):
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = RED, GREEN
    pixels[height // 2 :, : width // 2], pixels[height // 2 :, width // 2 :] = BLUE, AMBER
    return pixels


def encoded(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def assert_close(pixels, expected, tolerance):
    assert pixels.dtype == np.uint8 and pixels.shape == np.shape(expected)
    assert pixels.flags["C_CONTIGUOUS"] and pixels.flags["WRITEABLE"]
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance


def assert_quarters(pixels, tolerance):
    """Compared away from the edges between the quarters, where lossy formats mix neighbours."""
    expected = quarters(*pixels.shape[:2])
    assert pixels.shape == expected.shape
    for rows in (slice(2, 10), slice(22, 30)):
        for columns in (slice(2, 18), slice(30, 46)):
            assert_close(np.ascontiguousarray(pixels[rows, columns]), expected[rows, columns], tolerance)


# ------------------------------------------------------------------------------------------ formats and modes

LOSSLESS = ["PNG", "BMP", "TIFF", "PPM", "TGA"]
Image.init()
LOSSY = [
    name for name in ("JPEG", "WEBP", "JPEG2000", "AVIF") if name in Image.SAVE
]  # a Pillow may be built without some


@pytest.mark.parametrize("file_format", LOSSLESS)
def test_lossless_colour_is_exact(file_format):
    assert_close(load_rgb(encoded(Image.fromarray(quarters()), file_format)), quarters(), 0)


@pytest.mark.parametrize("file_format", LOSSY)
def test_lossy_colour_is_near(file_format):
    # 12 levels: what chroma subsampling and quantisation at default quality do to flat saturated colours
    assert_quarters(load_rgb(encoded(Image.fromarray(quarters()), file_format)), 12)


def test_path_bytes_and_pil_image_give_the_same(tmp_path):
    image = Image.fromarray(quarters())
    (tmp_path / "a.png").write_bytes(encoded(image, "PNG"))
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), image):
        assert_close(load_rgb(source), quarters(), 0)
    assert image.size == (48, 32) and np.array_equal(
        np.asarray(image), quarters()
    )  # the caller's image is untouched


def test_grey():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert_close(load_rgb(encoded(Image.fromarray(ramp), "PNG")), np.stack([ramp] * 3, axis=2), 0)


def test_one_bit():
    bits = np.indices((9, 13)).sum(axis=0) % 3 == 0
    for file_format in ("PNG", "TIFF", "BMP", "PPM"):
        pixels = load_rgb(encoded(Image.fromarray(bits), file_format))
        assert_close(pixels, np.where(bits[:, :, None], 255, 0) * np.ones(3, int), 0)


def palette_image():
    image = Image.new("P", (4, 2))
    image.putpalette([*RED, *GREEN, *BLUE, *AMBER])
    image.putdata([0, 1, 2, 3, 3, 2, 1, 0])
    return image


def test_palette():
    row = [RED, GREEN, BLUE, AMBER]
    for file_format in ("PNG", "GIF", "BMP", "TIFF"):
        assert_close(load_rgb(encoded(palette_image(), file_format)), [row, row[::-1]], 0)


def test_palette_with_one_transparent_colour_is_over_white():
    white = (255, 255, 255)
    row = [RED, white, BLUE, AMBER]
    for file_format in ("PNG", "GIF"):
        assert_close(load_rgb(encoded(palette_image(), file_format, transparency=1)), [row, row[::-1]], 0)


def test_palette_with_alpha_per_colour():
    # bytes: an alpha for each palette entry (PNG's tRNS chunk)
    pixels = load_rgb(encoded(palette_image(), "PNG", transparency=bytes([255, 0, 128, 255])))
    half_blue = [(value * 128 + 255 * 127 + 127) // 255 for value in BLUE]
    row = [RED, (255, 255, 255), half_blue, AMBER]
    assert_close(pixels, [row, row[::-1]], 0)


def test_alpha_is_over_white():
    rgba = np.zeros((3, 256, 4), np.uint8)
    rgba[:, :, :3] = np.array([RED, BLUE, (0, 0, 0)])[:, None]
    rgba[:, :, 3] = np.arange(256)
    alpha = np.arange(256)[None, :, None] / 255
    expected = rgba[:, :, :3] * alpha + 255 * (1 - alpha)
    assert expected.min() == 0 and expected.max() == 255
    for file_format in ("PNG", "TIFF"):
        # half a level of rounding
        assert_close(load_rgb(encoded(Image.fromarray(rgba), file_format)), expected, 0.5 + 1e-9)


def test_grey_with_alpha_is_over_white():
    grey_alpha = np.array([[[0, 255], [0, 0], [100, 255], [100, 51]]], np.uint8)
    pixels = load_rgb(encoded(Image.fromarray(grey_alpha), "PNG"))
    assert_close(pixels, [[[0] * 3, [255] * 3, [100] * 3, [224] * 3]], 0)  # 100 * 0.2 + 255 * 0.8


def test_transparent_colour_of_an_rgb_png():
    pixels = load_rgb(encoded(Image.fromarray(quarters()), "PNG", transparency=GREEN))
    expected = quarters()
    expected[:16, 24:] = 255
    assert_close(pixels, expected, 0)


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "RGBX"])
def test_rare_modes_of_a_pil_image(mode):
    opaque = Image.fromarray(quarters()).convert("RGBA")
    image = {
        "La": lambda: opaque.convert("LA").convert("La"),
        "RGBa": lambda: opaque.convert("RGBa"),
        "PA": lambda: palette_image().convert("PA"),
        "RGBX": lambda: Image.fromarray(quarters()).convert("RGBX"),
    }[mode]()
    expected = {
        "La": lambda: np.asarray(Image.fromarray(quarters()).convert("L").convert("RGB")),
        "PA": lambda: [[RED, GREEN, BLUE, AMBER], [AMBER, BLUE, GREEN, RED]],
    }.get(mode, quarters)()
    assert image.mode == mode
    assert_close(load_rgb(image), expected, 0)


# ---------------------------------------------------------------------------------------------- colour models


def cmyk_of(rgb):
    """Inks without black: the exact inverse of the plain conversion."""
    return np.concatenate([255 - rgb, np.zeros_like(rgb[:, :, :1])], axis=2)


def test_cmyk_tiff():
    image = Image.fromarray(cmyk_of(quarters()), mode="CMYK")
    assert_close(load_rgb(encoded(image, "TIFF")), quarters(), 1)


def test_cmyk_jpeg_with_inks_stored_inverted():
    data = encoded(Image.fromarray(cmyk_of(quarters()), mode="CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data  # the marker that says so
    assert_quarters(load_rgb(data), 6)


def test_black_ink_darkens():
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[:, :, 3] = 255
    inks[:8, :, 3] = 51
    pixels = load_rgb(encoded(Image.fromarray(inks, mode="CMYK"), "TIFF"))
    assert_close(pixels[:8], np.full((8, 16, 3), 204), 1)
    assert_close(pixels[8:], np.full((8, 16, 3), 0), 1)


def test_ycck_jpeg():
    # Pillow writes no YCCK, but the Adobe marker's last byte makes one of a CMYK JPEG: 2 says that the first
    # three channels are Y, Cb, Cr of the complement of what is stored, and that is the inks inverted:
    # together, of the inks. Black is stored inverted.
    inks = 255 - quarters()
    ycc = np.asarray(Image.fromarray(inks).convert("YCbCr"))
    stored = np.concatenate([ycc, np.full_like(ycc[:, :, :1], 255)], axis=2)
    data = bytearray(encoded(Image.fromarray(255 - stored, mode="CMYK"), "JPEG", quality=95, subsampling=0))
    marker = data.index(b"Adobe")
    data[marker + 11] = 2
    assert_quarters(load_rgb(bytes(data)), 8)


def test_ycbcr_tiff():
    image = Image.fromarray(quarters()).convert("YCbCr")
    assert_close(load_rgb(encoded(image, "TIFF", compression="tiff_lzw")), quarters(), 2)


def test_hsv():
    assert_close(load_rgb(Image.fromarray(quarters()).convert("HSV")), quarters(), 4)


@pytest.mark.skipif(not features.check("littlecms2"), reason="this Pillow has no colour management")
def test_lab_tiff():
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    muted = quarters() // 2 + 60  # dark saturated colours fall apart in 8-bit Lab
    image = ImageCms.profileToProfile(Image.fromarray(muted), srgb, lab, outputMode="LAB")
    data = encoded(image, "TIFF")
    with Image.open(io.BytesIO(data)) as reopened:
        assert reopened.mode == "LAB"
    assert_close(load_rgb(data), muted, 4)  # Lab in 8 bits is coarse


# ------------------------------------------------------------------------------------------- more than 8 bits

RAMP_16 = np.linspace(0, 65535, 64 * 7).round().astype(np.uint16).reshape(7, 64)


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".pgm"])
def test_16_bit_grey_is_scaled(suffix):
    done, data = cv2.imencode(suffix, RAMP_16)
    assert done
    pixels = load_rgb(data.tobytes())
    expected = np.round(RAMP_16 / 257)
    assert expected.min() == 0 and expected.max() == 255 and 120 < np.median(expected) < 135
    assert_close(pixels, np.stack([expected] * 3, axis=2), 0)


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_16_bit_grey_of_either_byte_order(dtype):
    image = Image.fromarray(RAMP_16.astype(dtype))
    assert image.mode in ("I;16", "I;16B")
    expected = np.stack([np.round(RAMP_16 / 257)] * 3, axis=2)
    assert_close(load_rgb(image), expected, 0)
    assert_close(load_rgb(encoded(image, "TIFF")), expected, 0)


def test_dark_16_bit_grey_stays_dark():
    # 12-bit data in a 16-bit file: nothing in the file says so, and guessing would make exposure depend on
    # content
    assert load_rgb(encoded(Image.fromarray(RAMP_16 // 16), "PNG")).max() == 16


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".ppm"])
def test_16_bit_colour_is_scaled(suffix):
    colour = np.stack([RAMP_16, RAMP_16[::-1], RAMP_16[:, ::-1]], axis=2)
    done, data = cv2.imencode(suffix, colour[:, :, ::-1])
    assert done
    assert_close(load_rgb(data.tobytes()), colour / 257, 1)


def test_16_bit_colour_with_alpha():
    rgba = np.full((5, 6, 4), 65535, np.uint16)
    rgba[:, :3, :3], rgba[:, 3:, 3] = 0x8000, 0
    done, data = cv2.imencode(".png", rgba)
    assert done
    pixels = load_rgb(data.tobytes())
    assert (pixels[:, :3] == 128).all() and (pixels[:, 3:] == 255).all()


@pytest.mark.parametrize(
    "values, expected",
    [
        ([0, 0.25, 0.5, 1], [0, 64, 128, 255]),  # fractions
        ([0, 0.25, 100.4, 255], [0, 0, 100, 255]),  # levels
        ([-1, 0, 1, 3], [0, 64, 128, 255]),  # neither: lowest to 0, highest to 255
        ([1000, 1000, 1000, 1000], [0, 0, 0, 0]),
    ],
)
def test_float_tiff(values, expected):
    grey = np.array([values], np.float32)
    assert_close(load_rgb(encoded(Image.fromarray(grey), "TIFF")), np.array([[[v] * 3 for v in expected]]), 0)


def test_float_colour_tiff_which_pillow_cannot_read():
    colour = np.random.default_rng(0).random((6, 9, 3)).astype(np.float32)
    done, data = cv2.imencode(".tiff", colour[:, :, ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 1])  # 1: none
    assert done
    with pytest.raises(Image.UnidentifiedImageError), Image.open(io.BytesIO(data.tobytes())) as image:
        image.load()
    assert_close(load_rgb(data.tobytes()), colour * 255, 0.51)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_without_meaning_are_an_error(value):
    with pytest.raises(ImageError, match="not numbers"):
        load_rgb(encoded(Image.fromarray(np.array([[0, value]], np.float32)), "TIFF"))


def test_32_bit_integers():
    assert_close(
        load_rgb(Image.fromarray(np.array([[0, 65535, 257]], np.int32))), [[[0] * 3, [255] * 3, [1] * 3]], 0
    )
    assert_close(
        load_rgb(Image.fromarray(np.array([[-100000, 0, 100000]], np.int32))),
        [[[0] * 3, [128] * 3, [255] * 3]],
        0,
    )


# --------------------------------------------------------------------------------------- upright, first frame

# EXIF orientation -> where the stored picture's (red, green, blue, amber) quarters are when it is shown,
# left to right, top down
TURNED = {1: "RGBA", 2: "GRAB", 3: "ABGR", 4: "BARG", 5: "RBGA", 6: "BRAG", 7: "AGBR", 8: "GARB"}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation(file_format, orientation):
    image = Image.fromarray(quarters())
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"tiffinfo": {0x0112: orientation}} if file_format == "TIFF" else {"exif": exif}
    pixels = load_rgb(encoded(image, file_format, **options))
    height, width = pixels.shape[:2]
    assert (height, width) == ((32, 48) if orientation <= 4 else (48, 32))
    colours = {"R": RED, "G": GREEN, "B": BLUE, "A": AMBER}
    for letter, (row, column) in zip(TURNED[orientation], ((1, 1), (1, 3), (3, 1), (3, 3))):
        pixel = pixels[row * height // 4, column * width // 4].astype(int)
        assert np.abs(pixel - colours[letter]).max() <= 12


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_broken_exif_does_not_cost_the_picture():
    data = encoded(Image.fromarray(quarters()), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert_close(load_rgb(data), quarters(), 0)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_several(file_format):
    frames = [Image.new("RGB", (40, 24), colour) for colour in (RED, GREEN, BLUE)]
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    pixels = load_rgb(data)
    assert pixels.shape == (24, 40, 3)
    assert np.abs(pixels.astype(int) - RED).max() <= 8


def test_one_pixel_and_extreme_sides():
    for height, width in ((1, 1), (1, 900), (900, 1)):
        pixels = load_rgb(encoded(Image.new("RGB", (width, height), AMBER), "PNG"))
        assert_close(pixels, np.full((height, width, 3), AMBER), 0)


# ---------------------------------------------------------------------------------------------- errors


def photograph():
    rng = np.random.default_rng(1)
    return Image.fromarray(rng.integers(0, 256, (8, 10, 3), np.uint8)).resize(
        (200, 160), Image.Resampling.BICUBIC
    )


BROKEN = {
    "empty": b"",
    "text": b"this is no image\n" * 20,
    "jpeg_header_only": encoded(photograph(), "JPEG")[:300],
    "jpeg_half": encoded(photograph(), "JPEG")[: len(encoded(photograph(), "JPEG")) // 2],
    "png_half": encoded(photograph(), "PNG")[: len(encoded(photograph(), "PNG")) // 2],
    "gif_half": encoded(photograph(), "GIF")[: len(encoded(photograph(), "GIF")) // 2],
    "webp_half": encoded(photograph(), "WEBP")[: len(encoded(photograph(), "WEBP")) // 2],
    "tiff_half": encoded(photograph(), "TIFF", compression="tiff_lzw")[:2000],
    "tiff_head": b"II*\0\x08\0\0\0",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_file_is_an_error_that_names_it(kind, tmp_path):
    path = tmp_path / f"{kind}.jpg"
    path.write_bytes(BROKEN[kind])
    with pytest.raises(ImageError) as caught:
        load_rgb(path)
    assert str(path) in str(caught.value)
    assert str(path) not in caught.value.reason
    assert caught.value.name == str(path)


def test_every_cut_of_a_jpeg_is_an_error():
    data = encoded(photograph(), "JPEG")
    load_rgb(data)
    for length in np.linspace(1, len(data) - 3, 40).astype(int):
        with pytest.raises(ImageError):
            load_rgb(data[:length])


def test_absurd_size_is_refused_before_memory_is_taken():
    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(ImageError, match="exceeds limit"):
        load_rgb(data)


def test_things_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="not a regular file"):
        load_rgb(tmp_path / "pipe.jpg")  # without waiting for a writer
    with pytest.raises(ImageError, match="is a folder"):
        load_rgb(tmp_path)
    with pytest.raises(ImageError, match="missing.png: .*No such file"):
        load_rgb(tmp_path / "missing.png")


def test_error_names_what_the_caller_says_and_travels_between_processes():
    with pytest.raises(ImageError) as caught:
        load_rgb(b"nothing", name="n01/a.jpg")
    assert str(caught.value).startswith("n01/a.jpg: ")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.name, again.reason, str(again)) == (
        caught.value.name,
        caught.value.reason,
        str(caught.value),
    )


def test_formats_are_found_in_a_fresh_interpreter():
    # Pillow loads its plugins on demand; the list of formats must not depend on what was opened before
    data = encoded(Image.fromarray(quarters()), "WEBP", lossless=True)
    script = (
        "import sys; from llc.data.images import load_rgb;"
        " print(load_rgb(sys.stdin.buffer.read())[0, 0].tolist())"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], input=data, capture_output=True, timeout=seconds(120)
    )
    assert result.stdout.decode().strip() == str(list(RED)), result.stderr.decode()
