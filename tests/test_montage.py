"""Contact sheets: what is drawn where, captions of any text, images that cannot be opened, their size."""

import numpy as np
import pytest
from PIL import Image

from llc import montage
from llc.data.image_errors import ImageError
from llc.errors import UserError
from llc.montage import MAX_COLUMNS, MAX_ROWS, SIDE, Tile, check_sheet_name, draw_sheet, write_sheet

RED, BLUE = (250, 10, 20), (20, 10, 250)


def plain(source):
    """An image of one colour: (width, height, colour)."""
    width, height, colour = source
    return Image.new("RGB", (width, height), colour)


def count(sheet, colour):
    return int((np.asarray(sheet) == colour).all(2).sum())


def middle(sheet, row, column, lines=1, heading=False):
    """The colour in the middle of a tile."""
    step_x, step_y = SIDE + 8, SIDE + 8 + 17 * lines + 4
    x, y = 8 + column * step_x + SIDE // 2, 8 + (25 if heading else 0) + row * step_y + SIDE // 2
    return sheet.getpixel((x, y))


def test_tiles_are_at_their_places_and_keep_their_shape():
    rows = [
        [Tile((500, 250, RED), ("a",)), Tile((250, 1000, BLUE), ("b",))],
        [Tile((SIDE, SIDE, BLUE), ("c",))],
    ]
    sheet = draw_sheet(rows, plain, heading="what this is")
    assert [middle(sheet, 0, 0, heading=True), middle(sheet, 0, 1, heading=True)] == [RED, BLUE]
    assert middle(sheet, 1, 0, heading=True) == BLUE and middle(sheet, 1, 1, heading=True) == (255, 255, 255)
    assert count(sheet, RED) == SIDE * SIDE // 2
    assert count(sheet, BLUE) == SIDE * SIDE // 4 + SIDE * SIDE


def test_very_small_images_are_enlarged_without_blur_and_thin_ones_stay_visible():
    pixels = np.zeros((10, 10, 3), np.uint8)
    pixels[::2, ::2] = RED
    sheet = draw_sheet([[Tile("a")]], lambda _: pixels)
    assert count(sheet, RED) == 25 * (SIDE // 10) ** 2
    assert count(draw_sheet([[Tile((3000, 1, RED))]], plain), RED) == SIDE


def test_an_image_is_opened_once_for_all_its_tiles():
    opened = []

    def open_image(source):
        opened.append(source)
        return plain((9, 9, RED))

    draw_sheet([[Tile(i % 3, ("x",)) for i in range(7)]] * 4, open_image)
    assert sorted(opened) == [0, 1, 2]


@pytest.mark.parametrize(
    "error",
    [
        ImageError("a.jpg", "is a text file"),
        UserError("the file holds 3 images"),
        OSError(5, "Input/output error", "a.jpg"),
        ValueError("embedded null byte"),
        UserError("x" * 500),
        UserError(""),
    ],
)
def test_an_image_that_cannot_be_opened_is_a_grey_tile_with_text(error):
    def open_image(source):
        if source == "a":
            raise error
        return plain((200, 200, RED))

    sheet = draw_sheet([[Tile("a", ("a",)), Tile("b", ("b",))]], open_image)
    grey = count(sheet, (208, 208, 208))
    assert SIDE * SIDE * 0.6 < grey < SIDE * SIDE  # the rest is text
    assert count(sheet, RED) == SIDE * SIDE
    assert sheet.getpixel((8, 8)) == sheet.getpixel((8 + SIDE - 1, 8 + SIDE - 1)) == (208, 208, 208)


def caption(text, width=SIDE):
    """(the line as it is drawn, its length in pixels)."""
    letters = montage._Letters()
    line = letters._shortened(text, width)
    return line, letters._length(line)


def test_long_captions_are_shortened_in_the_middle_and_keep_both_ends():
    assert caption("cat.jpg")[0] == "cat.jpg"
    name = "holiday_in_the_mountains_" * 8 + "IMG_2023.jpg"
    line, length = caption(name)
    assert (
        length <= SIDE and line.startswith("holiday") and line.endswith("2023.jpg") and line.count("…") == 1
    )
    assert caption("i" * 5000)[1] <= SIDE and len(caption("i" * 5000)[0]) < 400
    assert caption(name, 3)[0] == "…"


def test_captions_of_any_text_are_drawn_in_one_line():
    for text, shown in (
        ("a\nb\x1b[31m", "a\\nb\\x1b[31m"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("e\u0301", "\u00e9"),  # as macOS writes é
        ("\U0010fffe", "\\U0010fffe"),
        ("\udcff.png", "\\xff.png"),
    ):
        assert caption(text)[0] == shown
    for text in ("кошка.jpg", "猫の写真.png", "صورة.jpg", "😀", "", " ", "x" * 300, "\ud800"):
        sheet = draw_sheet([[Tile((200, 200, RED), (text, text))]], plain)
        assert count(sheet, RED) == SIDE * SIDE  # nothing is drawn over the image
        assert sheet.height == 8 + SIDE + 8 + 2 * 17 + 4 + 8


def test_letters_that_no_font_has_become_escapes(monkeypatch):
    monkeypatch.setattr(montage, "_FONTS", ())
    assert caption("猫.png", 500)[0] == "\\u732b.png"


def test_a_sheet_has_a_largest_size_and_says_what_it_leaves_out():
    rows = [[Tile((9, 9, RED), ("x",))] * (MAX_COLUMNS + 30)] * (MAX_ROWS + 3)
    sheet = draw_sheet(rows, plain, queries=True, what="queries")
    assert sheet.width == 8 + MAX_COLUMNS * (SIDE + 8) and sheet.width * sheet.height < 42_000_000
    assert max(sheet.size) <= 16_383  # WebP's limit
    assert montage._left_out(rows, len(rows), "queries") == [
        "and 3 more queries",
        f"the first {MAX_COLUMNS} images of each row; the longest has {MAX_COLUMNS + 30}",
    ]
    assert montage._left_out(rows[:2], 12_345, "groups")[0] == "and 12,295 more groups"
    assert montage._left_out([[1]], 1, "rows") == []
    assert draw_sheet([], plain).width > 100  # of nothing


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.jpeg", "a.webp"])
def test_sheets_are_written_by_the_suffix_and_only_over_sheets(name, tmp_path):
    path = tmp_path / name
    sheet = draw_sheet([[Tile((200, 200, RED), ("one",))]], plain)
    check_sheet_name(path, "--montage")
    write_sheet(path, sheet)
    with Image.open(path) as image:
        assert image.size == sheet.size and image.format == {"g": "JPEG", "p": "WEBP"}.get(
            name[-1].lower() if "n" not in name else "", "PNG"
        )
        close = np.abs(np.asarray(image.convert("RGB")).astype(int) - RED).max(2) < 12
    assert abs(int(close.sum()) - SIDE * SIDE) < 800
    write_sheet(path, sheet)  # once more, over the first
    plain((30, 30, BLUE)).save(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="exists and is not a sheet"):
        check_sheet_name(path, "--montage")
    with pytest.raises(UserError, match="exists and is not a sheet"):
        write_sheet(path, sheet)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["a", "a.gif", "a.png.txt", ".png"])
def test_other_suffixes_are_refused(name, tmp_path):
    with pytest.raises(UserError, match="expected a name that ends in .png, .jpg, .jpeg, .webp"):
        check_sheet_name(tmp_path / name, "--montage")
