"""What every source of images is made of: Source, its errors, and `register`, which gives it a name.

A new source is one file in this folder, or a plugin. It needs a subclass of Source and a function that opens
it:

    @register("mine")
    def open_mine(data_dir, split):
        ...
        return MySource(class_names, labels, ...)

`python -m llc.write --cfg.dataset=mine` then finds it. With `recognises=`, it is also found where the user
names no dataset. A function with a third parameter `columns` also gets the Columns that the user named.
Import large libraries inside functions: every command, and each of the writer's processes, imports all
sources.
"""

import os
import re
import unicodedata
from dataclasses import dataclass, field

import numpy as np

from llc.data.image_errors import ImageError, MachineError, machine_fault
from llc.errors import UserError

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .gif .bmp .tif .tiff .webp .ppm .pgm .pbm .pnm .jp2 .avif".split()
)
SPLITS = ("train", "val")
# Names of folders that hold a split of a dataset, not a class.
SPLIT_FOLDERS = ("train", "training", "val", "valid", "validation", "test")
DOWNLOAD_FOLDER = "data"  # for a named dataset without a data_dir

OPENERS = {}  # {name in lower case: (name as it was registered first, function)}
RECOGNISERS = {}  # {name as it was registered first: function of a path}


class SourceError(UserError):
    """A source that cannot be used as it is. The message says what is wrong with it and what to do."""


@dataclass(frozen=True)
class Columns:
    """Where a table has its images and labels. "" stands for what the source finds by itself.

    image, label: names of columns, or their numbers, counted from 0. header: whether the first line of a
    text table names the columns: "auto", "yes" or "no".
    """

    image: str = ""
    label: str = ""
    header: str = "auto"


FOUND_BY_SOURCE = Columns()


def register(*names, recognises=None):
    """A decorator that makes `open(data_dir, split) -> Source` known under `names`, in any case.

    data_dir: text, "" where the user gave none. split: "train" or "val". The function raises SourceError
    where the source cannot be used. Messages show the first name. recognises: data_dir -> whether it is a
    dataset of this kind. It is asked where the user names no dataset, so it must be quick, and true only for
    what no other source takes. Raises ValueError where a name is taken.
    """

    def add(function):
        for name in names:
            if OPENERS.get(name.lower(), (name, function))[1] is not function:
                raise ValueError(f"dataset source {name!r} is registered already")
        OPENERS.update({name.lower(): (names[0], function) for name in names})
        if recognises is not None:
            RECOGNISERS[names[0]] = recognises
        return function

    return add


@dataclass(frozen=True)
class Source:
    """Images by index, with labels int64 [len], which index `class_names`.

    A source without labels has no class_names, and every label is -1. class_words: what each class is called
    in plain words, "" where it is not known; or empty. `notes` are lines that tell the user what was found.

    A subclass defines `image` and `name`. One with long lists of names also defines `reader`, `handles` and
    `read`, so that worker processes get only what they read.
    """

    class_names: tuple
    labels: np.ndarray
    notes: tuple = field(default=(), kw_only=True)
    class_words: tuple = field(default=(), kw_only=True)

    def __len__(self):
        return len(self.labels)

    def image(self, i):
        """Image i for `load_rgb` (images.py): a path, the bytes of an image file, or a PIL image."""
        raise NotImplementedError

    def name(self, i):
        """What messages call image i."""
        raise NotImplementedError

    @property
    def sorted_by_label(self):
        """Whether the images come class by class, and have to again when the classes get another order."""
        return False

    @property
    def numbered_classes(self):
        """Whether class_names are only numbers as text, such as "17", so that a list can name class 17."""
        return False

    def check_classes(self):
        """Raises SourceError where the classes that were found look like a mistake.

        It is called only if the user did not say which classes there are.
        """

    @property
    def reader(self):
        """What reads this source's handles. It is pickled and sent to each worker process once."""
        return self

    def handles(self, indices):
        """A list of what `reader.read` takes for the images at `indices`, int64 [n]."""
        return indices.tolist()

    def read(self, handle):
        """(image, name) of one of `handles`, as `image` and `name` give them.

        Raises ImageError for an image that cannot be read, and SourceError where the whole source cannot. An
        OSError becomes an ImageError, or a MachineError where the machine is at fault
        (llc.data.image_errors.read_from).
        """
        return self.image(handle), self.name(handle)

    def class_counts(self):
        """Images per class, int64 [num_classes]."""
        return np.bincount(self.labels[self.labels >= 0], minlength=len(self.class_names))


@dataclass(frozen=True)
class Selection(Source):
    """Some images of another source, in the order of `indices`, int64 [len], with classes of its own."""

    source: Source
    indices: np.ndarray

    def image(self, i):
        return self.source.image(self.indices[i])

    def name(self, i):
        return self.source.name(self.indices[i])

    @property
    def reader(self):
        return self.source.reader

    def handles(self, indices):
        return self.source.handles(self.indices[indices])


@dataclass(frozen=True)
class IndexedDataset(Source):
    """A dataset whose items are (image, label), such as torchvision's.

    Its images are of the kinds that `Source.image` returns.
    """

    title: str
    dataset: object

    def image(self, i):
        try:
            return self.dataset[i][0]
        except MachineError:
            raise
        except Exception as error:  # many datasets open the image themselves
            if (fault := machine_fault(error)) is not None:
                raise MachineError(self.name(i), fault) from error
            raise ImageError(self.name(i), f"cannot be read: {one_line(error)}") from error

    def name(self, i):
        return f"{self.title}[{i}]"


def refuse_empty_classes(source, place):
    """Raises SourceError where a class folder of a source holds no images. place: the source's path."""
    empty = [name for name, count in zip(source.class_names, source.class_counts()) if not count]
    if empty:
        raise SourceError(
            f"{printable(place)}: {len(empty)} of {len(source.class_names)} class folders hold no images:"
            f" {some(empty)}; fill or remove them (for a val split that lacks some classes of train, give"
            " class_names_from)"
        )


def is_image_name(name):
    """Whether a file of this name is taken for an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def printable(name):
    """A file or class name as text that is safe to print: what a terminal would act on becomes escapes.

    These are control characters such as newlines and escape sequences, characters that change the direction
    of text or are invisible, and bytes that are not UTF-8. Text that is printable already stays as it is.
    """
    text = os.fspath(name)
    if text.isprintable():
        return text
    return "".join(
        _escape(character) if _is_hidden(character) else character for character in as_unicode(text)
    )


def as_unicode(name):
    """A file or class name as it is, but for bytes that are not UTF-8, which become escapes.

    So any file can hold it as text. It may hold characters that a terminal acts on: print `printable(name)`.
    """
    text = _LONE_SURROGATE.sub(lambda match: _escape(match[0]), os.fspath(name))
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


# Halves of a pair that stand for no byte of a file name. JSON may hold them.
_LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_NEEDED_BY_SCRIPTS = "\u200c\u200d"  # join and separate letters, as in Persian and in emoji


def _is_hidden(character):
    return unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") and character not in _NEEDED_BY_SCRIPTS


def _escape(character):
    return ascii(character)[1:-1]


def some(names, limit=20):
    """The first `limit` names, separated by commas, and how many more there are."""
    names = [printable(name) for name in names]
    return ", ".join(names[:limit]) + (f", and {len(names) - limit} more" if len(names) > limit else "")


def one_line(error):
    """An exception's message on a single line, or its type if it has none."""
    return printable(re.sub(r"\s+", " ", str(error)).strip().rstrip(".")) or type(error).__name__
