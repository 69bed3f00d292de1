"""An index and perhaps its encoder: what the server answers, without HTTP. Threads may call all of it."""

import contextlib
import copy
import dataclasses
import functools
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llc.codes import unpack_bits
from llc.data.sources import as_unicode, printable
from llc.encoder import Encoder
from llc.errors import UserError
from llc.evaluation.decoders import DECODERS, Rank, bind, usable
from llc.index.index import Index
from llc.index.storage import MANIFEST, Model
from llc.options import did_you_mean
from llc.serve.limits import Refused
from llc.serve.pictures import Thumbnails, decode


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """A code of the index. label: its class's name, or number where classes have no names, or null.

    thumbnail: a relative URL.
    """

    id: int
    distance: int
    label: str | int | None
    file: str
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
    """A class and its score by the decoder. label: its name, or null where the decoder finds no class."""

    label: str | None
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
    """What the index knows of an id; label and thumbnail as in Neighbour."""

    id: int
    code: str
    label: str | int | None
    file: str
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


class _State:
    """An index as it was committed at some moment, and the model of its codes, if there is one.

    It never changes: a newer state is another _State.
    """

    def __init__(self, index: Index, encoder: Encoder | None) -> None:
        self.index, self.encoder = index, encoder
        self.ranks: dict[str, Rank] = {}  # the decoders' functions, by name, as they are made

    def newer(self, index: Index, encoder_of: Callable[[Index], Encoder | None] | None) -> "_State":
        """The state of an index that was committed since, at the same path.

        encoder_of: loads the model that an index holds; None: it must be of this state's model. Raises
        UserError if its codes are of another length, or of a model that the server does not have.
        """
        replaced = f"{self.index.path}: it was replaced by an index"
        if index.num_bits != self.index.num_bits:
            raise UserError(f"{replaced} of {index.num_bits} bits")
        if not self._is_of_the_model_of(index):
            if index.model is None:
                raise UserError(f"{replaced} that keeps no model; restart the server with its --model")
            if encoder_of is None:
                raise UserError(f"{replaced} of another model than --model; restart the server with that one")
            encoder = encoder_of(index)
            print(f"{printable(replaced)} of another model, which is used from now on", flush=True)
            return _State(index, encoder)
        newer = _State(index, self.encoder)
        newer.ranks = self.ranks
        return newer

    def _is_of_the_model_of(self, index: Index) -> bool:
        """Whether an index's codes are of this one's model. Where neither says, --model has said it."""
        if index.model_digest == self.index.model_digest:
            return True
        return self.encoder is not None and index.model_digest == Model.of(self.encoder).digest

    @functools.cached_property
    def stats(self) -> dict[str, Any]:
        """Index.stats, which looks at every row's label, and the names of the classes."""
        return {**self.index.stats(), "class_names": list(map(as_unicode, self.index.class_names))}

    def filter(self, labels: Sequence[str]) -> list[str] | int | None:
        """What Index.search takes to find only codes of these classes; none: of all. Raises Refused (422)."""
        known = self.index.class_names
        if not labels:
            return None
        if not known:
            if len(labels) > 1 or not re.fullmatch("[0-9]{1,9}", labels[0]):
                raise Refused(422, "label: the index's classes have no names; give one number")
            return int(labels[0])
        for name in labels:
            if name not in known:
                raise Refused(422, f"label: the index has no class {name[:80]!r}{did_you_mean(name, known)}")
        return list(labels)

    def described(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """What an answer says of each id beside its distance or code. Raises ValueError."""
        records, names = self.index.records(ids), self.index.class_names
        return [
            {
                "id": id,
                "label": None if label < 0 else as_unicode(names[label]) if label < len(names) else label,
                "file": as_unicode(file),
                "thumbnail": f"images/{id}/thumbnail",
            }
            for id, file, label in zip(ids.tolist(), records.files, records.labels.tolist())
        ]


class Service:
    """Answers from the last state of an index that was committed; `refresh` takes over a newer one.

    Each answer is from one state. A state never changes, so no answer waits for a refresh, nor the other way
    round. `snapshot` is for answers that take several calls.
    """

    def __init__(
        self,
        index: Index,
        encoder: Encoder | None,
        thumbnails: Thumbnails,
        *,
        encoder_of: Callable[[Index], Encoder | None] | None = None,
    ) -> None:
        """encoder: None if only codes are searched for. Raises UserError if it does not fit the index.

        encoder_of: loads the model that an index holds, where another index takes the place of this one;
        None: only indexes of the same model are taken over.
        """
        if encoder is not None and encoder.num_bits != index.num_bits:
            raise UserError(
                f"the model makes codes of {encoder.num_bits} bits, the index has codes of {index.num_bits}: "
                "give the model that made the index's codes, and its --num_bits"
            )
        self._state, self._encoder_of, self._thumbnails = _State(index, encoder), encoder_of, thumbnails
        self._path, self._num_bits, self._code_size = index.path, index.num_bits, index.code_size
        self._one_at_a_time = threading.Lock()  # for the network, which uses all cores by itself
        self._seen: tuple[int, int, int] | None = None  # the manifest at the last refresh
        self.stale: str | None = None  # why the last refresh failed

    @property
    def takes_images(self) -> bool:
        """Whether there is a model that encodes them."""
        return self._state.encoder is not None

    def snapshot(self) -> "Service":
        """This service with the state that it has now, whatever is committed later."""
        return copy.copy(self)

    # ---- the query

    def code_of(self, text: str) -> np.ndarray:
        """A code, uint8 [1, code_size], from hexadecimal digits. Raises Refused (422)."""
        size, num_bits = self._code_size, self._num_bits
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
        with _known(id):
            return self._state.index.get([id])

    def project(self, data: bytes) -> torch.Tensor:
        """z of an image file's bytes, float32 [1, num_bits]. Raises Refused.

        Images are encoded one by one, because a bit that is within float rounding of 0 could otherwise depend
        on which other images were sent at the same time.
        """
        encoder = self._state.encoder
        if encoder is None:
            raise Refused(501, "this server has no model, so send a code or an id, not an image (--model)")
        pixels = torch.from_numpy(decode(data)).permute(2, 0, 1)
        with self._one_at_a_time:
            return encoder.project([pixels]).cpu()

    # ---- the answers

    def search(self, code: np.ndarray, k: int, radius: int | None, labels: Sequence[str]) -> Neighbours:
        """The k nearest codes within a radius (None: any), of some classes (none named: all).

        Raises Refused (422) for a class that the index has not.
        """
        # Not range_search, whose result could be the whole index: the k nearest tell as much, within bounds.
        state = self._state
        found = state.index.search(code, k + (radius is not None), filter=state.filter(labels))
        distances, ids = (row[0][row[0] >= 0] for row in found)
        if radius is not None:
            ids, distances = ids[distances <= radius], distances[distances <= radius]
        more, ids = len(ids) > k, ids[:k]
        neighbours = [
            Neighbour(distance=distance, **described)
            for distance, described in zip(distances.tolist(), state.described(ids))
        ]
        return Neighbours(self._num_bits, code.tobytes().hex(), neighbours, more)

    def classify(self, decoder: str, k: int, z: torch.Tensor | None, code: np.ndarray) -> Classes:
        """The k best classes, as Encoder.classify finds them, of an image's z and code, or of a code alone.

        Raises Refused: 422 for a decoder that there is not, or that needs z; 501 if there is no codebook.
        """
        state = self._state
        encoder = state.encoder
        if encoder is None or not len(encoder.codebook):
            raise Refused(501, "this server has no model with a codebook, so it cannot classify (--model)")
        rank = self._rank(encoder, state.ranks, decoder)
        if z is None:
            if not DECODERS[decoder].of_image_codes:
                raise Refused(422, f"decode={decoder}: this decoder needs an image, not its code")
            # Any values of these signs have this code.
            z = 2 * torch.from_numpy(unpack_bits(code, encoder.num_bits)).float() - 1
        with self._one_at_a_time, torch.no_grad(), torch.autocast(encoder.device.type, enabled=False):
            labels, scores = rank(z.to(encoder.device), min(k, len(encoder.codebook)))
        classes = [
            Class(as_unicode(encoder.class_names[label]) if label >= 0 else None, score)
            for label, score in zip(labels[0].tolist(), scores[0].tolist())
        ]
        return Classes(encoder.num_bits, code.tobytes().hex(), decoder, classes)

    def code(self, code: np.ndarray) -> Code:
        """A code as text."""
        return Code(self._num_bits, code.tobytes().hex())

    def record(self, id: int) -> Record:
        """What the index knows of an id. Raises Refused (404) if it is not in the index."""
        state = self._state
        with _known(id):
            [described] = state.described(np.array([id]))
            return Record(code=state.index.get([id]).tobytes().hex(), **described)

    def thumbnail(self, id: int) -> bytes:
        """A JPEG of the image of an id. Raises Refused."""
        with _known(id):
            record = self._state.index.records([id])
        return self._thumbnails.of(record.files[0], int(record.sizes[0]), int(record.modified[0]))

    def decoders(self) -> list[DecoderInfo]:
        """The decoders that the encoder can use; none without an encoder or a codebook."""
        encoder = self._state.encoder
        if encoder is None or not len(encoder.codebook):
            return []
        decoders = [DECODERS[name] for name in usable(encoder.learnt)]
        return [DecoderInfo(d.name, d.title, d.of_image_codes, d.gives_probabilities) for d in decoders]

    def stats(self) -> dict[str, Any]:
        """What the index holds and what the server can do."""
        now = self.snapshot()
        index = now._state.stats
        shown = ("num_codes", "num_bits", "num_labelled", "num_removed", "bytes", "class_names")
        return {
            **{key: index[key] for key in shown},
            "num_segments": len(index["segments"]),
            "takes_images": now.takes_images,
            "decoders": [dataclasses.asdict(decoder) for decoder in now.decoders()],
            "stale": now.stale,
        }

    def refresh(self) -> None:
        """Takes over what was committed since, also where another index has taken the place of this one.

        If that cannot be read, or is of codes that this server cannot make, the old state stays, and `stale`
        says why until there is one that can be served.
        """
        if self._path is None:  # an index in memory
            return
        seen = _identity(self._path / MANIFEST)
        if seen is not None and seen == self._seen and self.stale is None:
            return
        stale = None
        try:
            # Opened anew, because Index.refresh would change the state under answers that are being made.
            self._state = self._state.newer(Index.open(self._path), self._encoder_of)
            self._seen = seen
        except UserError as error:
            stale = str(error)
        except Exception as error:  # whatever it is, the old state can still be searched
            stale = f"{type(error).__name__}: {error}"
        if stale is not None and stale != self.stale:
            print(
                f"WARNING: the newest state cannot be served, the last one is: {printable(stale)}", flush=True
            )
        self.stale = stale

    # ---- within

    def _rank(self, encoder: Encoder, ranks: dict[str, Rank], name: str) -> Rank:
        """The function of a decoder, kept in `ranks`. Raises Refused (422) if there is no such decoder."""
        known = usable(encoder.learnt)
        if name not in known:
            raise Refused(422, f"decode={name[:80]}: expected one of {', '.join(known)}")
        with self._one_at_a_time:
            if name not in ranks:
                ranks[name] = bind(name, encoder.network, encoder.learnt)
            return ranks[name]


@contextlib.contextmanager
def _known(id: int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise Refused(404, f"the index has no id {id}") from error


def _identity(manifest: Path) -> tuple[int, int, int] | None:
    """What changes with each commit, which puts another file in the manifest's place; None if unknown."""
    try:
        found = os.stat(manifest)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
