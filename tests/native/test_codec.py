"""The native library: it equals a full decode and a slow, simple resize; damage is reported."""

import io
import itertools
import mmap
import signal
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from llc import native
from llc.data import beton
from llc.errors import UserError
from llc.native import codec
from tests.data.helpers import picture

# names of chroma samplings as OpenCV's encoder takes them; None: grey
SAMPLINGS = {
    "4:4:4": 0x111111,
    "4:2:2": 0x211111,
    "4:2:0": 0x221111,
    "4:4:0": 0x121111,
    "4:1:1": 0x411111,
    "grey": None,
}
MCU_WIDTHS = {"4:4:4": 8, "4:2:2": 16, "4:2:0": 16, "4:4:0": 8, "4:1:1": 32, "grey": 8}


def photograph(seed, height, width):
    """Smooth colours, edges and noise: something in every coefficient. uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    pixels = picture(seed, height, width).astype(np.int32)
    rows, columns = np.mgrid[:height, :width]
    pixels[(rows + 2 * columns) % 23 < 4] += rng.integers(-90, 90, 3)
    return (pixels + rng.normal(0, 14, pixels.shape)).clip(0, 255).astype(np.uint8)


def jpeg(pixels, sampling="4:2:0", quality=90, progressive=False, optimised=False, restart_interval=0):
    if sampling == "grey":
        pixels = pixels[..., 1]
    else:
        pixels = pixels[..., ::-1]
    done, data = cv2.imencode(
        ".jpg",
        pixels,
        [
            cv2.IMWRITE_JPEG_QUALITY,
            quality,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
            SAMPLINGS[sampling] or SAMPLINGS["4:4:4"],
            cv2.IMWRITE_JPEG_PROGRESSIVE,
            int(progressive),
            cv2.IMWRITE_JPEG_OPTIMIZE,
            int(optimised),
            cv2.IMWRITE_JPEG_RST_INTERVAL,
            restart_interval,
        ],
    )
    assert done
    return data.tobytes()


def decode_batch(encoded, crops, flips=None, size=(24, 32), modes=None, sizes=None, **options):
    """codec.decode_batch of byte strings, whose (height, width) is looked up unless `sizes` is given."""
    arrays = [np.frombuffer(data, np.uint8) for data in encoded]
    modes = [beton.JPG] * len(arrays) if modes is None else modes
    sizes = [codec.decode(data).shape[:2] for data in encoded] if sizes is None else sizes
    samples = codec.Samples(
        [a.ctypes.data for a in arrays],
        [a.size for a in arrays],
        modes,
        [w for _, w in sizes],
        [h for h, _ in sizes],
    )
    out = np.full((len(arrays), *size, 3), 77, np.uint8)
    status = codec.decode_batch(
        samples, crops, [False] * len(arrays) if flips is None else flips, out, **options
    )
    return out, status


def resize(pixels, size, **options):
    """The library's resize of a whole picture."""
    height, width = pixels.shape[:2]
    out, status = decode_batch(
        [pixels.tobytes()],
        [[0, 0, height, width]],
        size=size,
        modes=[beton.RAW],
        sizes=[(height, width)],
        **options,
    )
    assert status.tolist() == [codec.OK]
    return out[0]


# ---- resizing
# --------------------------------------------------------------------------------------------------------


def axis_weights(size, out_size):
    """float64 [out_size, size]: area averages where the axis shrinks, else linear interpolation."""
    weights = np.zeros((out_size, size))
    for o in range(out_size):
        if size > out_size:
            begin, end = o * size / out_size, (o + 1) * size / out_size
            for i in range(size):
                weights[o, i] = max(0.0, min(end, i + 1) - max(begin, i)) / (end - begin)
        else:
            position = min(max((o + 0.5) * size / out_size - 0.5, 0), size - 1)
            i = min(int(position), max(size - 2, 0))
            weights[o, i] += 1 - (position - i)
            if position > i:
                weights[o, i + 1] += position - i
    return weights


@pytest.mark.parametrize(
    "size", [(1, 1), (2, 1), (5, 3), (24, 32), (31, 33), (64, 7), (100, 90), (101, 263), (7, 400)]
)
@pytest.mark.parametrize("out_size", [(1, 1), (24, 32), (33, 31), (50, 90)])
def test_resize_is_area_average_or_bilinear(size, out_size):
    pixels = photograph(3, *size)
    expected = np.einsum(
        "oi,pj,ijc->opc", axis_weights(size[0], out_size[0]), axis_weights(size[1], out_size[1]), pixels
    )
    # half a level of rounding at the end, and weights of 14 bits
    assert np.abs(resize(pixels, out_size) - expected).max() < 0.55


def test_resize_by_whole_factors_is_the_exact_mean_rounded():
    pixels = photograph(4, 48, 128)
    sums = pixels.reshape(24, 2, 32, 4, 3).sum((1, 3))
    assert np.array_equal(resize(pixels, (24, 32)), (sums + 4) // 8)
    assert np.array_equal(resize(pixels, (48, 128)), pixels)
    for value in (0, 1, 254, 255):  # weights that did not sum to 1 would show
        assert (resize(np.full((211, 97, 3), value, np.uint8), (40, 40)) == value).all()


def test_resize_is_close_to_opencv():
    """Where both axes shrink; in growing ones OpenCV's INTER_AREA follows a rule of its own."""
    pixels = photograph(5, 211, 187)
    difference = np.abs(
        resize(pixels, (64, 80)).astype(int) - cv2.resize(pixels, (80, 64), interpolation=cv2.INTER_AREA)
    )
    assert difference.max() <= 1 and difference.mean() < 0.02


@pytest.mark.parametrize(
    "width, out_width", [(3, 1), (9, 5), (40, 13), (41, 16), (95, 39), (300, 64), (30, 70), (64, 64)]
)
def test_every_instruction_set_makes_the_same_bytes(width, out_width):
    data = jpeg(photograph(width, 90, width), quality=95)
    raw = codec.decode(data)
    sets = native.instruction_sets()
    assert sets[-1] == "portable"
    for flip in (False, True):
        expected, status = decode_batch(
            [data], [[3, 0, 85, width]], [flip], (37, out_width), instructions="portable"
        )
        assert status.tolist() == [codec.OK] and expected.any()
        for instructions in sets:
            assert np.array_equal(
                decode_batch([data], [[3, 0, 85, width]], [flip], (37, out_width), instructions=instructions)[
                    0
                ],
                expected,
            )
            assert np.array_equal(
                resize(raw[3:88], (37, out_width), instructions=instructions)[:, :: -1 if flip else 1],
                expected[0],
            )


# ---- regions
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_whole_picture_equals_pillows(sampling):
    for seed, size in enumerate([(1, 1), (1, 70), (33, 1), (16, 16), (47, 65)]):
        for progressive in (False, True):
            data = jpeg(photograph(seed, *size), sampling, progressive=progressive)
            assert np.array_equal(codec.decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("progressive", [False, True])
def test_regions_equal_those_of_the_whole_picture(sampling, progressive):
    """Crops of every alignment at their own size, where no resize hides a difference."""
    rng = np.random.default_rng(11)
    mcu = MCU_WIDTHS[sampling]
    for size, restart_rows in itertools.product(
        [(1, 1), (3, 5), (17, 2), (16, 48), (49, 63), (90, 131)], (0, 1 / 3, 1, 2)
    ):
        height, width = size
        interval = -(-width // mcu) * restart_rows
        data = jpeg(
            photograph(height, *size),
            sampling,
            int(rng.integers(30, 99)),
            progressive,
            bool(rng.integers(2)),
            int(np.ceil(interval)),
        )
        assert (b"\xff\xdd" in data) == (restart_rows > 0)
        whole = codec.decode(data)
        for _ in range(12):
            top, left = int(rng.integers(height)), int(rng.integers(width))
            h, w = int(rng.integers(1, height - top + 1)), int(rng.integers(1, width - left + 1))
            for instructions in native.instruction_sets()[-2:]:
                out, status = decode_batch(
                    [data], [[top, left, h, w]], size=(h, w), sizes=[size], instructions=instructions
                )
                assert status.tolist() == [codec.OK]
                assert np.array_equal(out[0], whole[top : top + h, left : left + w]), (
                    size,
                    restart_rows,
                    top,
                    left,
                    h,
                    w,
                    instructions,
                )


def test_codes_and_coefficients_at_their_limits():
    """Long Huffman codes, large values, blocks that end at their last coefficient."""
    rng = np.random.default_rng(5)
    noise = rng.choice(np.array([0, 255], np.uint8), (80, 96, 3))
    for quality, optimised in ((100, False), (100, True), (4, False)):
        data = jpeg(noise, quality=quality, optimised=optimised, restart_interval=4)
        out, status = decode_batch([data], [[35, 50, 40, 40]], size=(40, 40))
        assert status.tolist() == [codec.OK]
        assert np.array_equal(out[0], codec.decode(data)[35:75, 50:90])


def test_a_batch_is_crop_resize_and_flip_of_each_for_any_number_of_threads():
    rng = np.random.default_rng(2)
    pictures, encoded, modes, crops = [], [], [], []
    for i in range(23):
        pixels = photograph(i, *rng.integers(20, 90, 2))
        raw = i % 3 == 0
        encoded.append(pixels.tobytes() if raw else jpeg(pixels, optimised=i % 2 == 0))
        modes.append(beton.RAW if raw else beton.JPG)
        pictures.append(pixels if raw else codec.decode(encoded[-1]))
        top, left = rng.integers(0, 10, 2)
        crops.append([top, left, pixels.shape[0] - top - i % 5, pixels.shape[1] - left - i % 4])
    flips = rng.random(23) < 0.5
    sizes = [pixels.shape[:2] for pixels in pictures]
    expected = []
    for pixels, (top, left, h, w), flip in zip(pictures, crops, flips):
        expected.append(resize(pixels[top : top + h, left : left + w], (24, 32))[:, :: -1 if flip else 1])
    for num_threads in (1, 2, 5, 100):
        out, status = decode_batch(encoded, crops, flips, modes=modes, sizes=sizes, num_threads=num_threads)
        assert not status.any()
        assert np.array_equal(out, expected)


def test_several_calls_may_be_in_flight():
    data = [jpeg(photograph(i, 60, 80)) for i in range(8)]
    expected = [decode_batch(data, [[i, i, 40, 50]] * 8)[0] for i in range(4)]
    wrong = []

    def work(i):
        for _ in range(20):
            if not np.array_equal(decode_batch(data, [[i, i, 40, 50]] * 8, num_threads=2)[0], expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_empty_batch_is_no_work():
    out, status = decode_batch([], np.empty((0, 4), np.int32))
    assert out.shape[0] == 0 and status.shape == (0,)


# ---- errors are reported, and their pixels are 0
# --------------------------------------------------------------------------


def cmyk():
    data = io.BytesIO()
    Image.fromarray(photograph(1, 40, 40)).convert("CMYK").save(data, "JPEG")
    return data.getvalue()


def without_marker(data):
    """The second restart marker is lost: what follows it belongs elsewhere."""
    at = data.index(b"\xff\xd1")
    return data[:at] + data[at + 2 :]


def without_tables(data):
    at = data.index(b"\xff\xc4")
    return data[:at] + b"\xff\xfe" + data[at + 2 :]  # a comment


GOOD = jpeg(photograph(0, 64, 48))
WITH_MARKERS = jpeg(photograph(0, 64, 48), restart_interval=3)


@pytest.mark.parametrize(
    "data, text",
    [
        (GOOD[: len(GOOD) // 2], "damaged JPEG"),
        (GOOD[:700], "damaged JPEG"),
        (GOOD[:5], "damaged JPEG"),
        (b"\0" * 300, "damaged JPEG"),
        (without_tables(jpeg(photograph(0, 64, 48), optimised=True)), "damaged JPEG"),
        (without_marker(WITH_MARKERS), "damaged JPEG"),
        (WITH_MARKERS.replace(b"\xff\xd2", b"\xff\xd5"), "damaged JPEG"),
        (jpeg(photograph(0, 64, 47)), "size"),
        (cmyk(), "colours"),
    ],
)
@pytest.mark.parametrize("instructions", ["portable", None])
def test_damaged_samples_are_named_and_black(data, text, instructions):
    out, status = decode_batch(
        [GOOD, data, GOOD], [[0, 0, 64, 48]] * 3, sizes=[(64, 48)] * 3, instructions=instructions
    )
    assert text in codec.status_text(status[1])
    assert not out[1].any()
    assert status[[0, 2]].tolist() == [codec.OK] * 2  # the decoder still works after an error
    assert np.array_equal(out[0], out[2]) and out[0].std() > 20


@pytest.mark.parametrize(
    "mode, length, text",
    [
        (beton.RAW, 64 * 48 * 3 - 1, "neither a JPEG nor raw"),
        (beton.RAW, 64 * 48 * 3 + 1, "neither a JPEG nor raw"),
        (7, 64 * 48 * 3, "neither"),
    ],
)
def test_raw_data_of_another_length_is_refused(mode, length, text):
    out, status = decode_batch([bytes([9]) * length], [[0, 0, 64, 48]], modes=[mode], sizes=[(64, 48)])
    assert text in codec.status_text(status[0])
    assert not out.any()


@pytest.mark.parametrize(
    "crop",
    [
        [-1, 0, 5, 5],
        [0, -1, 5, 5],
        [0, 0, 0, 5],
        [0, 0, 5, 0],
        [60, 0, 5, 5],
        [0, 44, 5, 5],
        [0, 0, 65, 5],
        [2**31 - 1, 0, 1, 1],
        [1, 0, 2**31 - 1, 1],
    ],
)
def test_crops_outside_of_the_picture_are_refused(crop):
    out, status = decode_batch([GOOD], [crop], sizes=[(64, 48)])
    assert "the crop" in codec.status_text(status[0])
    assert not out.any()


def test_random_damage_never_passes_for_another_picture():
    """A decoded slot is 0 where there is an error, and without one has nothing of what was there before."""
    rng = np.random.default_rng(8)
    errors = 0
    for _ in range(300):
        data = bytearray(WITH_MARKERS if rng.integers(2) else GOOD)
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(2, len(data)))] = int(rng.integers(256))
        out, status = decode_batch([bytes(data)], [[5, 5, 50, 40]], sizes=[(64, 48)])
        errors += status[0] != codec.OK
        assert not out.any() if status[0] != codec.OK else not (out == 77).all((1, 2, 3)).any()
    assert 50 < errors < 300


def test_decode_says_what_it_cannot():
    with pytest.raises(codec.DecodeError, match="cannot decode 5 bytes as JPEG: damaged"):
        codec.decode(b"hello")
    with pytest.raises(codec.DecodeError, match="colours"):
        codec.decode(cmyk())


def test_arrays_of_other_shapes_are_refused():
    samples = codec.Samples([0], [0], [0], [1], [1])
    out = np.zeros((1, 4, 4, 3), np.uint8)
    for crops, flips, wrong in (
        ([[0, 0, 1]], [False], out),
        ([[0, 0, 1, 1]], [False, True], out),
        ([[0, 0, 1, 1]], [False], out[..., :2]),
        ([[0, 0, 1, 1]], [False], out.astype(np.int8)),
        ([[0, 0, 1, 1]], [False], out[:, ::2]),
        ([[0, 0, 1, 1]], [False], out[:0]),
    ):
        with pytest.raises(ValueError):
            codec.decode_batch(samples, crops, flips, wrong)


def test_a_library_that_was_not_built_is_an_error_that_says_how(monkeypatch, tmp_path):
    native.library.cache_clear()
    monkeypatch.setattr(native, "_PATH", tmp_path / "_native.so")
    try:
        with pytest.raises(UserError, match="_native.so.*pip install -e"):
            codec.decode(GOOD)
    finally:
        native.library.cache_clear()


# ---- a mapped file that can no longer be read
# --------------------------------------------------------------------------


@pytest.mark.parametrize("num_threads", [1, 3])
def test_samples_whose_file_became_shorter_are_unreadable_and_others_are_not(num_threads, tmp_path):
    height, width = 300, 310
    pictures = [photograph(seed, height, width) for seed in range(12)]
    encoded = [
        jpeg(p, progressive=seed % 3 == 1) if seed % 3 else p.tobytes() for seed, p in enumerate(pictures)
    ]  # raw, and both decoders
    place = [seed * (1 << 18) for seed in range(12)]  # a multiple of every kernel's page
    path = tmp_path / "samples"
    with open(path, "wb") as file:
        for start, data in zip(place, encoded):
            file.seek(start)
            file.write(data)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        base = np.frombuffer(mapped, np.uint8)
        samples = codec.Samples(
            base.ctypes.data + np.array(place, np.uint64),
            [len(data) for data in encoded],
            [beton.JPG if seed % 3 else beton.RAW for seed in range(12)],
            [width] * 12,
            [height] * 12,
        )
        whole, out = (np.full((12, 24, 32, 3), 77, np.uint8) for _ in range(2))
        arguments = [[0, 0, height, width]] * 12, [False] * 12
        assert not codec.decode_batch(samples, *arguments, whole, num_threads).any()
        # of sample 6, raw, the first page is left; of 7 and those after it nothing
        file.truncate(place[6] + mmap.PAGESIZE)
        status = codec.decode_batch(samples, *arguments, out, num_threads)
        assert status.tolist() == [codec.OK] * 6 + [codec.UNREADABLE] * 6
        assert np.array_equal(out[:6], whole[:6]) and whole[6:].any() and not out[6:].any()
        file.truncate(place[11] + len(encoded[11]))  # zeros instead of data: damaged, but readable
        status = codec.decode_batch(samples, *arguments, out, num_threads)
        assert np.array_equal(out[:6], whole[:6]) and not {codec.OK, codec.UNREADABLE} & set(
            status[7:][np.array(samples.modes[7:]) == beton.JPG]
        )
        del base, samples
    assert "shorter" in codec.status_text(codec.UNREADABLE)


def test_a_failed_read_elsewhere_still_ends_the_process(tmp_path):
    script = (
        "import mmap, sys; import numpy as np; from llc.native import codec\n"
        "codec.decode_batch(codec.Samples(*[[]] * 5), np.zeros((0, 4)), [], np.zeros((0, 8, 8, 3),"
        " np.uint8))\n"
        "file = open(sys.argv[1], 'w+b'); file.truncate(9000); mapped = mmap.mmap(file.fileno(), 0);"
        " file.truncate(0); mapped[5000]"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "file"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGBUS, done.stderr


def test_a_bus_error_that_somebody_sends_ends_the_process():
    script = (
        "import os, signal; import numpy as np; from llc.native import codec\n"
        "codec.decode_batch(codec.Samples(*[[]] * 5), np.zeros((0, 4)), [], np.zeros((0, 8, 8, 3),"
        " np.uint8))\n"
        "os.kill(os.getpid(), signal.SIGBUS)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGBUS, done.stderr
