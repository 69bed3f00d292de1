"""An index and perhaps its encoder: what the server answers, without HTTP. Threads may call all of it."""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from llc.codes import unpack_bits
from llc.data.sources import as_unicode, printable
from llc.encoder import Encoder
from llc.errors import UserError
from llc.evaluation.decoders import DECODERS, Rank, bind, usable
from llc.index.index import Index, Records
from llc.index.storage import MANIFEST
from llc.options import did_you_mean
from llc.serve.limits import Refused
from llc.serve.pictures import Thumbnails, decode

MAX_ID = (1 << 63) - 2


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """A code of the index. label is -1 and class_name null without a class; thumbnail is a relative URL."""

    id: int
    distance: int
    file: str
    label: int
    class_name: str | None
    thumbnail: str


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """The nearest codes, by distance, then id. code: the query's, in hexadecimal digits.

    more: whether there are more within the radius than k.
    """

    num_bits: int
    code: str
    neighbours: list[Neighbour]
    more: bool


@dataclasses.dataclass(frozen=True)
class Class:
    """A class and its score by the decoder. label is -1 and class_name null where it finds no class."""

    label: int
    class_name: str | None
    score: float


@dataclasses.dataclass(frozen=True)
class Classes:
    """The best classes, best first. decode: the decoder.

    Scores are distances of mhd and ed (less is better), logits of class, probabilities of posterior.
    """

    num_bits: int
    code: str
    decode: str
    classes: list[Class]


@dataclasses.dataclass(frozen=True)
class Code:
    """A code in hexadecimal digits, two a byte; the padding bits at its end are 0."""

    num_bits: int
    code: str


@dataclasses.dataclass(frozen=True)
class Record:
    """What the index knows of an id."""

    id: int
    code: str
    file: str
    label: int
    class_name: str | None
    thumbnail: str


@dataclasses.dataclass(frozen=True)
class DecoderInfo:
    """A way to find classes. of_codes: whether it works on codes; if not, it needs the image.

    probabilities: whether its scores are probabilities.
    """

    name: str
    title: str
    of_codes: bool
    probabilities: bool


class Service:
    """Answers from the last state of an index that was committed; `refresh` takes over a newer one."""

    def __init__(self, index: Index, encoder: Encoder | None, thumbnails: Thumbnails) -> None:
        """encoder: None if only codes are searched for. Raises UserError if it does not fit the index."""
        if encoder is not None and encoder.num_bits != index.num_bits:
            raise UserError(
                f"the model makes codes of {encoder.num_bits} bits, the index has codes of {index.num_bits}: "
                "give the model that made the index's codes, and its --num_bits"
            )
        self._index, self._encoder, self._thumbnails = index, encoder, thumbnails
        self._one_at_a_time = threading.Lock()  # for the network, which uses all cores by itself
        self._turn = _Turn()
        self._ranks: dict[str, Rank] = {}  # the decoders' functions, by name
        self._seen: tuple[int, int, int] | None = None  # _manifest at the last refresh
        self.stale: str | None = None  # why the last refresh failed

    @property
    def takes_images(self) -> bool:
        """Whether there is a model that encodes them."""
        return self._encoder is not None

    # ---- the query

    def code_of(self, text: str) -> np.ndarray:
        """A code, uint8 [1, code_size], from hexadecimal digits. Raises Refused (422)."""
        size, num_bits = self._index.code_size, self._index.num_bits
        try:
            data = bytes.fromhex(text)
        except ValueError:
            data = b""
        if len(data) != size or len(text) != 2 * size:
            raise Refused(422, f"code: expected {2 * size} hexadecimal digits, for {num_bits} bits")
        code = np.frombuffer(data, np.uint8)[None]
        if int(code[0, -1]) & ((1 << 8 * size - num_bits) - 1):
            raise Refused(422, f"code: the padding bits after its {num_bits} bits must be 0")
        return code

    def code_at(self, id: int) -> np.ndarray:
        """The code of an id, uint8 [1, code_size]. Raises Refused (404) if it is not in the index."""
        with self._turn.of_reader(), _known(id):
            return self._index.get([id])

    def project(self, data: bytes) -> torch.Tensor:
        """z of an image file's bytes, float32 [1, num_bits]. Raises Refused.

        Images are encoded one by one, because a bit that is within float rounding of 0 could otherwise depend
        on which other images were sent at the same time.
        """
        if self._encoder is None:
            raise Refused(501, "this server has no model, so send a code or an id, not an image (--model)")
        pixels = torch.from_numpy(decode(data)).permute(2, 0, 1)
        with self._one_at_a_time:
            return self._encoder.project([pixels]).cpu()

    # ---- the answers

    def search(self, code: np.ndarray, k: int, radius: int | None, class_names: Sequence[str]) -> Neighbours:
        """The k nearest codes within a radius (None: any), of some classes (none named: all).

        Raises Refused (422) for a class that the index has not.
        """
        # Not range_search, whose result could be the whole index: the k nearest tell as much, within bounds.
        with self._turn.of_reader():
            self._check_classes(class_names)
            found = self._index.search(code, k + (radius is not None), filter=list(class_names) or None)
            distances, ids = (row[0][row[0] >= 0] for row in found)
            if radius is not None:
                ids, distances = ids[distances <= radius], distances[distances <= radius]
            more, ids = len(ids) > k, ids[:k]
            neighbours = [
                Neighbour(distance=distance, **described)
                for distance, described in zip(distances.tolist(), self._described(ids))
            ]
        return Neighbours(self._index.num_bits, code.tobytes().hex(), neighbours, more)

    def classify(self, decoder: str, k: int, z: torch.Tensor | None, code: np.ndarray) -> Classes:
        """The k best classes, as Encoder.classify finds them, of an image's z and code, or of a code alone.

        Raises Refused: 422 for a decoder that there is not, or that needs z; 501 if there is no codebook.
        """
        encoder = self._classifier()
        rank = self._rank(encoder, decoder)
        if z is None:
            if not DECODERS[decoder].of_image_codes:
                raise Refused(422, f"decode={decoder}: this decoder needs an image, not its code")
            # Any values of these signs have this code.
            z = 2 * torch.from_numpy(unpack_bits(code, encoder.num_bits)).float() - 1
        with self._one_at_a_time, torch.no_grad(), torch.autocast(encoder.device.type, enabled=False):
            labels, scores = rank(z.to(encoder.device), min(k, len(encoder.codebook)))
        classes = [
            Class(label, as_unicode(encoder.class_names[label]) if label >= 0 else None, score)
            for label, score in zip(labels[0].tolist(), scores[0].tolist())
        ]
        return Classes(encoder.num_bits, code.tobytes().hex(), decoder, classes)

    def code(self, code: np.ndarray) -> Code:
        """A code as text."""
        return Code(self._index.num_bits, code.tobytes().hex())

    def record(self, id: int) -> Record:
        """What the index knows of an id. Raises Refused (404) if it is not in the index."""
        with self._turn.of_reader(), _known(id):
            [described] = self._described(np.array([id]))
            return Record(code=self._index.get([id]).tobytes().hex(), **described)

    def thumbnail(self, id: int) -> bytes:
        """A JPEG of the image of an id. Raises Refused."""
        with self._turn.of_reader(), _known(id):
            record = self._index.records([id])
        return self._thumbnails.of(record.files[0], int(record.sizes[0]), int(record.modified[0]))

    def decoders(self) -> list[DecoderInfo]:
        """The decoders that the encoder can use; none without an encoder or a codebook."""
        if self._encoder is None or not len(self._encoder.codebook):
            return []
        decoders = [DECODERS[name] for name in usable(self._encoder.learnt)]
        return [DecoderInfo(d.name, d.title, d.of_image_codes, d.gives_probabilities) for d in decoders]

    def stats(self) -> dict[str, Any]:
        """What the index holds and what the server can do."""
        with self._turn.of_reader():
            index, names = self._index.stats(), list(map(as_unicode, self._index.class_names))
        return {
            **{key: index[key] for key in ("num_codes", "num_bits", "num_labelled", "num_removed", "bytes")},
            "num_segments": len(index["segments"]),
            "class_names": names,
            "takes_images": self.takes_images,
            "decoders": [dataclasses.asdict(decoder) for decoder in self.decoders()],
            "stale": self.stale,
        }

    def refresh(self) -> None:
        """Takes over what was committed since.

        If that cannot be read, the old state stays, and `stale` says why.
        """
        seen = self._manifest()
        if (
            seen is not None and seen == self._seen and self.stale is None
        ):  # searches need not make room for a look
            return
        stale = None
        try:
            with self._turn.of_refresh():
                self._index.refresh()
            self._seen = seen
        except UserError as error:
            stale = str(error)
        except Exception as error:  # whatever it is, the old state can still be searched
            stale = f"{type(error).__name__}: {error}"
        if stale is not None and stale != self.stale:
            print(
                f"WARNING: the newest state cannot be read, the last one is served: {printable(stale)}",
                flush=True,
            )
        self.stale = stale

    # ---- within

    def _manifest(self) -> tuple[int, int, int] | None:
        """What changes with each commit, which puts another file in the manifest's place; None if unknown."""
        if self._index.path is None:
            return None
        try:
            found = os.stat(self._index.path / MANIFEST)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _check_classes(self, names):
        known = self._index.class_names
        for name in names:
            if name not in known:
                raise Refused(422, f"label: the index has no class {name[:80]!r}{did_you_mean(name, known)}")

    def _described(self, ids: np.ndarray) -> list[dict[str, Any]]:
        records: Records = self._index.records(ids)
        names = self._index.class_names
        return [
            {
                "id": id,
                "file": as_unicode(file),
                "label": label,
                "class_name": as_unicode(names[label]) if 0 <= label < len(names) else None,
                "thumbnail": f"images/{id}/thumbnail",
            }
            for id, file, label in zip(ids.tolist(), records.files, records.labels.tolist())
        ]

    def _classifier(self) -> Encoder:
        """The encoder. Raises Refused (501) if there is none that classifies."""
        if self._encoder is None or not len(self._encoder.codebook):
            raise Refused(501, "this server has no model with a codebook, so it cannot classify (--model)")
        return self._encoder

    def _rank(self, encoder: Encoder, name: str) -> Rank:
        """The function of a decoder. Raises Refused (422) if there is no such decoder."""
        known = usable(encoder.learnt)
        if name not in known:
            raise Refused(422, f"decode={name[:80]}: expected one of {', '.join(known)}")
        with self._one_at_a_time:
            if name not in self._ranks:
                self._ranks[name] = bind(name, encoder.network, encoder.learnt)
            return self._ranks[name]


@contextlib.contextmanager
def _known(id: int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise Refused(404, f"the index has no id {id}") from error


class _Turn:
    """Any number of readers at a time, or one refresh: an answer is from one state of the index."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._num_readers, self._refreshing = 0, False

    @contextlib.contextmanager
    def of_reader(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: not self._refreshing)
            self._num_readers += 1
        try:
            yield
        finally:
            with self._condition:
                self._num_readers -= 1
                self._condition.notify_all()

    @contextlib.contextmanager
    def of_refresh(self) -> Iterator[None]:
        with self._condition:
            self._refreshing = True  # readers that come now wait, so that this one's turn comes
            self._condition.wait_for(lambda: self._num_readers == 0)
        try:
            yield
        finally:
            with self._condition:
                self._refreshing = False
                self._condition.notify_all()
