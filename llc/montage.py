"""Contact sheets: rows of small images with captions, such as queries and their neighbours, in one picture.

    rows = [[Tile("cat.jpg", ("query", "cat.jpg")), Tile("kitten.jpg", ("3 bits", "kitten.jpg"))]]
    write_sheet("out.png", draw_sheet(rows, load_rgb))

An image that cannot be opened is a grey tile that says why, so one broken file costs no sheet.
"""

import bisect
import dataclasses
import io
import os
import unicodedata
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from llc.data.sources import printable
from llc.errors import UserError
from llc.files import atomic_write

SIDE = 168  # pixels of a tile's image
MAX_ROWS, MAX_COLUMNS = 50, 21  # so a sheet has 40 million pixels at most; WebP ends at 16,383 a side
_GAP, _FONT, _LINE = 8, 13, 17  # pixels: around tiles, of letters, from line to line
_LONGEST = 400  # characters of a caption that are looked at; the longest file name has 255 bytes
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_SOFTWARE, _MARK = 0x0131, "llc contact sheet"  # an EXIF tag, by which a sheet knows an older one
_PAPER, _BESIDE, _GREY, _INK, _FAINT = "white", (226, 234, 246), (208, 208, 208), "black", (90, 90, 90)
# Fonts for letters that Pillow's own lacks, which has Latin ones alone. Those that are installed are used.
_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "DroidSansFallbackFull.ttf",
    "wqy-zenhei.ttc",
    "NotoSansArabic-Regular.ttf",
    "NotoSansHebrew-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansThai-Regular.ttf",
    "NotoSansSymbols2-Regular.ttf",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "seguisym.ttf",
)


@dataclasses.dataclass(frozen=True)
class Tile:
    """An image and its captions.

    source: what `open_image` of draw_sheet opens; equal ones are opened once. captions: lines below the
    image, the first in black. A line that is too long is shortened in its middle.
    """

    source: Hashable
    captions: tuple[str, ...] = ()


def check_sheet_name(path: str | os.PathLike[str], flag: str) -> None:
    """Raises UserError if no sheet can be written at `path`, given by `flag`. For use before long work.

    The name must end as one of the formats does. A file that is there is overwritten only if it is a sheet,
    so that no photograph is.
    """
    kind = _FORMATS.get(os.path.splitext(os.fspath(path))[1].lower())
    if kind is None:
        raise UserError(f"{flag}={printable(path)}: expected a name that ends in {', '.join(_FORMATS)}")
    if kind == "WEBP" and not features.check("webp"):
        raise UserError(f"{flag}={printable(path)}: this Pillow cannot write WebP; name a .png")
    if os.path.lexists(path) and not _is_sheet(path):
        raise UserError(
            f"{flag}={printable(path)}: it exists and is not a sheet of llc, so it is not overwritten; name "
            "another file"
        )


def _is_sheet(path):
    try:
        with Image.open(path) as image:
            return image.getexif().get(_SOFTWARE) == _MARK
    except Exception:  # Pillow raises nearly anything for what is no image
        return False


def write_sheet(path: str | os.PathLike[str], sheet: Image.Image) -> None:
    """Writes a sheet as PNG, JPEG or WebP, by its name's suffix, whole or not at all. Raises UserError."""
    check_sheet_name(path, "the sheet")
    data = io.BytesIO()
    kind = _FORMATS[os.path.splitext(os.fspath(path))[1].lower()]
    exif = Image.Exif()
    exif[_SOFTWARE] = _MARK
    # Captions in JPEG need all of the colour's resolution, or their edges are smeared.
    sheet.save(data, kind, exif=exif, **({"quality": 92, "subsampling": 0} if kind == "JPEG" else {}))
    atomic_write(path, lambda file: file.write(data.getbuffer()))


def draw_sheet(
    rows: Sequence[Sequence[Tile]],
    open_image: Callable[[Any], Image.Image | np.ndarray],
    *,
    heading: str = "",
    queries: bool = False,
    side: int = SIDE,
    what: str = "rows",
    total: int | None = None,
) -> Image.Image:
    """A picture of rows of tiles.

    open_image: a tile's source -> a PIL image, or uint8 [H, W, 3]; threads call it. It raises UserError,
    OSError or ValueError for an image that cannot be opened. heading: a line above all. queries: whether the
    first tile of a row is its query, which is set apart. side: pixels of an image. The first MAX_ROWS rows
    and the first MAX_COLUMNS tiles of each are drawn, and a line at the end says how many are not; total: the
    number of rows that there are, if `rows` are only the first of them; what: what a row stands for.
    """
    shown = [list(row[:MAX_COLUMNS]) for row in rows[:MAX_ROWS]]
    pictures = _open_all(dict.fromkeys(tile.source for row in shown for tile in row), open_image, side)
    letters = _Letters()
    num_lines = max((len(tile.captions) for row in shown for tile in row), default=0)
    step_x, step_y = side + _GAP, side + _GAP + num_lines * _LINE + _GAP // 2
    columns = max((len(row) for row in shown), default=1)
    top = _GAP + (_LINE + _GAP if heading else 0)
    notes = _left_out(rows, len(rows) if total is None else total, what)
    width = _GAP + max(columns, 2) * step_x
    sheet = Image.new("RGB", (width, top + len(shown) * step_y + len(notes) * _LINE + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    if queries:
        pen.rectangle((0, top - _GAP // 2, side + _GAP + _GAP // 2, top + len(shown) * step_y), _BESIDE)
    if heading:
        letters.write(pen, _GAP, _GAP, heading, _INK, width - 2 * _GAP)
    for r, row in enumerate(shown):
        for c, tile in enumerate(row):
            x, y = _GAP + c * step_x, top + r * step_y
            picture = pictures[tile.source]
            if isinstance(picture, str):
                pen.rectangle((x, y, x + side - 1, y + side - 1), _GREY)
                letters.write_block(pen, x, y, picture, side)
            else:
                sheet.paste(picture, (x + (side - picture.width) // 2, y + (side - picture.height) // 2))
            for line, text in enumerate(tile.captions):
                below = y + side + 2 + line * _LINE
                letters.write(pen, x, below, text, _FAINT if line else _INK, side)
    for line, text in enumerate(notes):
        letters.write(pen, _GAP, top + len(shown) * step_y + line * _LINE, text, _INK, width - 2 * _GAP)
    return sheet


def _left_out(rows, total, what):
    """Lines on what a sheet does not show."""
    notes = []
    if total > MAX_ROWS:
        notes.append(f"and {total - MAX_ROWS:,} more {what}")
    longest = max((len(row) for row in rows[:MAX_ROWS]), default=0)
    if longest > MAX_COLUMNS:
        notes.append(f"the first {MAX_COLUMNS} images of each row; the longest has {longest:,}")
    return notes


def _open_all(sources, open_image, side):
    """{source: the image within side x side pixels, or why it cannot be opened}."""

    def opened(source):
        try:
            return _fitted(open_image(source), side)
        except (UserError, OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None)
            return printable(str(reason or error)) or type(error).__name__

    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "llc-montage") as pool:
        return dict(zip(sources, pool.map(opened, sources)))


def _fitted(image, side):
    """An RGB copy within side x side pixels. Very small images are enlarged by a whole factor."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image = image.convert("RGB")
    longest = max(image.size)
    if longest <= side // 2:
        factor = side // longest
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    if longest > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return image


class _Letters:
    """Writes text of any script: a letter by the first font that has it, or as the escape of its number."""

    def __init__(self):
        self._fonts = [ImageFont.load_default(_FONT)]
        self._others = iter(_FONTS)  # looked for when a letter needs one
        self._font_of = {}  # {letter: font, or None where no font has it}
        self._blanks = {}  # {id of a font: what it draws for a letter that it lacks}

    def write(self, pen, x, y, text, fill, width):
        """A line from (x, y) on, shortened in its middle to `width` pixels."""
        for font, part in self._runs(self._shortened(text, width)):
            pen.text((x, y + _FONT), part, fill, font, anchor="ls")
            x += font.getlength(part)

    def write_block(self, pen, x, y, text, side):
        """Text within a square, in several lines."""
        lines, width = [""], side - 2 * _GAP
        for word in self._known(text).split(" "):
            while word:
                room = f"{lines[-1]} {word}".lstrip()
                if self._length(room) <= width:
                    lines[-1], word = room, ""
                elif lines[-1]:
                    lines.append("")
                else:  # a word longer than a line, such as a path
                    ends = range(2, len(word))
                    size = 1 + bisect.bisect_right(ends, width, key=lambda end: self._length(word[:end]))
                    lines[-1], word = word[:size], word[size:]
                    lines.append("")
        lines = [line for line in lines if line]
        most = max((side - 2 * _GAP) // _LINE, 1)
        if len(lines) > most:
            lines = [*lines[: most - 1], lines[most - 1] + "…"]
        for i, line in enumerate(lines):
            self.write(pen, x + _GAP, y + (side - len(lines) * _LINE) // 2 + i * _LINE, line, _INK, width)

    def _shortened(self, text, width):
        text = self._known(text)
        if self._length(text) <= width:
            return text
        kept = bisect.bisect_right(
            range(1, len(text)), width, key=lambda count: self._length(_without_middle(text, count))
        )
        return _without_middle(text, kept)

    def _known(self, text):
        """The text in letters that some font has."""
        text = unicodedata.normalize("NFC", printable(text))
        if len(text) > _LONGEST:
            text = _without_middle(text, _LONGEST)
        return "".join(letter if self._font(letter) else ascii(letter)[1:-1] for letter in text)

    def _length(self, text):
        return sum(font.getlength(part) for font, part in self._runs(text))

    def _runs(self, text):
        """[(font, text)] of neighbouring letters with the same font."""
        runs: list[tuple[Any, list[str]]] = []
        for letter in text:
            font = self._font(letter) or self._fonts[0]
            if runs and runs[-1][0] is font:
                runs[-1][1].append(letter)
            else:
                runs.append((font, [letter]))
        return [(font, "".join(part)) for font, part in runs]

    def _font(self, letter):
        if letter not in self._font_of:
            self._font_of[letter] = next((font for font in self._all() if self._has(font, letter)), None)
        return self._font_of[letter]

    def _all(self):
        yield from self._fonts
        for name in self._others:
            try:
                self._fonts.append(ImageFont.truetype(name, _FONT))
            except OSError:  # not installed
                continue
            yield self._fonts[-1]

    def _has(self, font, letter):
        if letter == " ":
            return True
        if id(font) not in self._blanks:
            self._blanks[id(font)] = _drawn(font, "\U0010fffd")  # a letter that no font has
        return _drawn(font, letter) != self._blanks[id(font)]


def _drawn(font, letter):
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


def _without_middle(text, kept):
    """The first and last letters of a text, `kept` in all, with … between them."""
    return f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
