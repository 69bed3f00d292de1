"""What a run's network makes of labelled images: the part of a report that needs them.

One pass over the images gives codes, classes and the extremes of each bit. The few images that a report shows
are read a second time, so memory does not grow with the size of the images.
"""

import glob
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from llc import progress as progress_bars
from llc import stages
from llc.codes import pack_bits, unpack_bits
from llc.data.batches import BetonImages, Images, prepare
from llc.data.image_errors import read_from
from llc.data.images import load_rgb
from llc.data.sources import printable
from llc.encode import Encoding, open_for
from llc.encoder import Encoder, check_finite, load, non_finite
from llc.errors import UserError
from llc.evaluation import metrics, retrieval
from llc.evaluation.bit_images import SIDE
from llc.evaluation.decoders import DECODERS, bind, calibration_bins, calibration_error, usable
from llc.evaluation.predict import Answers, Predictions
from llc.evaluation.taxonomy import Extremes, class_distances, confusion_matrix
from llc.hamming import search
from llc.inference import evaluating
from llc.report.contents import Bit, Confusion, Measured, Neighbour, Query, Reliability, Run

AUTO = "auto"  # the decoder: posterior where it is fitted to other images, else mhd
_POSTERIOR, _MHD = "posterior", "mhd"
_MAX_IMAGES = 900  # shown; at 64 pixels a side they take about 2 kB each
_MAX_BYTES = 2_900_000  # of all images that are shown
_QUALITIES = (80, 60, 40, 20)  # of JPEG: the first at which they fit into that
_MAX_PAIRED = 50_000  # images whose pairs are counted: 1.25 billion, which takes seconds
_MAX_COUNTS = 50_000_000  # of pairs by image and distance, 8 bytes each


def measure(
    run: Run,
    *,
    data: str = "",
    decoder: str = AUTO,
    num_queries: int = 12,
    num_neighbours: int = 8,
    num_images: int = 6,
    num_confusions: int = 20,
    seed: int = 0,
    num_workers: int = -1,
    progress: bool = True,
) -> Measured:
    """What the network of the run's last finished stage with codes makes of labelled images.

    data: a beton, a folder of images, or any other source; by default the run's data.val_dataset. decoder: of
    llc.evaluation.decoders.DECODERS, by which queries and confusions are decoded. num_images: on either side
    of a bit, fewer where there are many bits. seed: of the queries, of the order of equally near neighbours,
    and of the images whose pairs are counted if there are very many. progress: whether to show how far
    it is. The images are prepared, and z is averaged over flips, as in the run's own validation.

    Raises UserError where no such stage is finished, where the images cannot be read, have no labels or other
    classes than the run, where z is NaN or infinite, and for a decoder that was not fitted, or to these very
    images.
    """
    encoder, stage = _encoder(run)
    where = data or _val_dataset(run)
    given = "--data" if data else "data.val_dataset"
    options = Encoding(batch_size=run.config.validation.batch_size, num_workers=num_workers or -1)
    images = open_for(encoder, where, options, encoder.class_names if encoder.named else None)
    _check_images(images, f"{given} = {printable(where)}", run)
    learnt = _learnt(encoder, images)
    chosen = _decoder(decoder, encoder, learnt)
    num_shown = min(encoder.num_bits, _MAX_IMAGES // 2)  # bits with images
    room = (_MAX_IMAGES - num_queries * (1 + num_neighbours)) // (2 * num_shown)
    extremes = Extremes(num_shown, max(1, min(num_images, room)))
    view = metrics.FLIP if encoder.flip else ""
    predictions = _predict(encoder, images, learnt, extremes, progress)
    accuracy = metrics.evaluate({view: predictions}, len(encoder.codebook))
    labels, codes = predictions.labels.numpy(), predictions.codes.numpy()
    decoded = predictions.answers[chosen][0][:, 0].numpy()
    class_codes, rng = encoder.class_codes.cpu().numpy(), np.random.default_rng(seed)
    places = _spread(labels, decoded, num_queries, rng)
    queries = _queries(places, labels, decoded, codes, num_neighbours, rng)
    bits = _bits(class_codes, codes, encoder.num_bits, extremes)
    shown = {query.image for query in queries} | {one.image for query in queries for one in query.neighbours}
    shown |= {image for bit in bits for image in (*bit.highest, *bit.lowest)}
    return Measured(
        title=where,
        stage=stage,
        decoder=chosen,
        num_images=len(labels),
        accuracy=accuracy,
        num_codes=len(np.unique(codes, axis=0)),
        confusions=confusions(labels, decoded, class_codes, num_confusions),
        reliability=_reliability(labels, predictions.answers),
        queries=queries,
        bits=bits,
        pairs=pairs(codes, labels, encoder.num_bits, rng),
        images=_pictures(images, encoder, sorted(shown), num_workers),
        called="val images"
        if not data or data == run.config.data.val_dataset
        else f"images of {_short(data)}",
    )


# ------------------------------------------------------------------------------------- the run and the images


def _encoder(run: Run) -> tuple[Encoder, str]:
    """(the network that makes codes, the stage at whose end it was saved). Raises UserError."""
    found = [
        name for name in run.stages if not stages.STAGES[name].dense and name not in run.without_checkpoint
    ]
    if not found:
        raise UserError(
            f"{run.path}/checkpoints holds no network of a finished stage with codes, so no images can be "
            "encoded; copy it here, wait for the end of such a stage, or continue the run"
        )
    return load(run.path, checkpoint=found[-1]), found[-1]


def _short(where: str) -> str:
    """A path, or several, without folders."""
    return ", ".join(os.path.basename(os.path.normpath(part)) for part in where.split(","))


def _val_dataset(run: Run) -> str:
    """The run's data.val_dataset. Raises UserError if it is not there."""
    where = run.config.data.val_dataset
    if os.path.exists(where) or all(os.path.exists(part) or glob.glob(part) for part in where.split(",")):
        return where
    raise UserError(f"{printable(where)}, the run's data.val_dataset, is not there: name images with --data")


def _check_images(images: Images, where: str, run: Run) -> None:
    """Raises UserError unless each image has a label, and the classes are as many as the run's."""
    if images.num_unlabelled:
        raise UserError(
            f"{where}: {images.num_unlabelled:,} of {images.num_samples:,} images have no label, and each "
            "needs one: give a beton, or a folder with one folder of images per class"
        )
    if len(images.class_names) != len(run.class_names):
        raise UserError(
            f"{where} has {len(images.class_names)} classes, {run.path} has {len(run.class_names)}; name "
            "images of the run's classes with --data"
        )


def _learnt(encoder: Encoder, images: Images) -> Mapping[str, Any]:
    """What decoders learnt, unless it was from these very images."""
    known = encoder.fitted is not None and encoder.fitted.images
    return {} if known and known == images.identity else encoder.learnt


def _decoder(name: str, encoder: Encoder, learnt: Mapping[str, Any]) -> str:
    """The decoder to use. Raises UserError."""
    if name == AUTO:
        return _POSTERIOR if _POSTERIOR in learnt else _MHD
    if name not in DECODERS:
        raise UserError(f"decoder = {name!r}: expected {AUTO}, {', '.join(DECODERS)}")
    if name not in usable(learnt):
        why = "was fitted to these very images" if name in encoder.learnt else "is not fitted to this run"
        raise UserError(f"decoder = {name}: it {why}; take {_MHD}, or fit it to train images")
    return name


@torch.inference_mode()
def _predict(
    encoder: Encoder, images: Images, learnt: Mapping[str, Any], extremes: Extremes, progress: bool
) -> Predictions:
    """What all decoders say of all images, on the CPU. extremes: gets the z of its bits. Raises UserError."""
    ranks = {name: bind(name, encoder.network, learnt) for name in usable(learnt)}
    depths = {name: min(DECODERS[name].depth, len(encoder.codebook)) for name in ranks}
    labels, codes, broken = [], [], []
    found: dict[str, list[tuple[torch.Tensor, ...]]] = {name: [] for name in ranks}
    num_shown = len(extremes.highest[0])
    with (
        progress_bars.bar(images.num_samples, "encode", disable=not progress) as bar,
        evaluating(encoder.network),
    ):
        for batch, of_batch in images.loader:
            z = encoder(batch)
            labels.append(of_batch.cpu())
            codes.append(pack_bits(z).cpu())
            broken.append(non_finite(z).cpu())
            for name, rank in ranks.items():
                found[name].append(tuple(part.cpu() for part in rank(z, depths[name])))
            extremes.add(z[:, :num_shown].cpu().numpy())
            bar.update(len(of_batch))
    not_finite = torch.cat(broken)
    check_finite(not_finite.numpy(), images.files)
    answers: Answers = {}
    for name, parts in found.items():
        classes, scores = map(torch.cat, zip(*parts))
        answers[name] = classes, scores
    return Predictions(torch.cat(labels), torch.cat(codes), answers, not_finite.sum())


# ----------------------------------------------------------------------------------------- figures from codes


def confusions(
    labels: np.ndarray, decoded: np.ndarray, class_codes: np.ndarray, number: int
) -> list[Confusion]:
    """The most frequent Confusions, at most `number`; of equally frequent ones the lowest label comes first.

    labels, decoded int64 [N]; class_codes uint8 [C, code_size]. Images of no class (-1) are left out.
    """
    num_classes = len(class_codes)
    if num_classes < 2:
        return []
    of = np.bincount(labels, minlength=num_classes)
    kept = decoded >= 0
    matrix = confusion_matrix(labels[kept], decoded[kept], num_classes)
    np.fill_diagonal(matrix, 0)
    distances = class_distances(class_codes)
    found = []
    for place in np.argsort(-matrix, axis=None, kind="stable")[:number].tolist():
        label, other = divmod(place, num_classes)
        if not matrix[label, other]:
            break
        count, distance = int(matrix[label, other]), int(distances[label, other])
        found.append(Confusion(label, other, count, int(of[label]), distance))
    return found


def pairs(codes: np.ndarray, labels: np.ndarray, num_bits: int, rng: np.random.Generator) -> np.ndarray:
    """Of pairs of images, the fraction at each distance: among pairs of one class, and among pairs of two.

    codes uint8 [N, code_size], labels int64 [N] -> float64 [num_bits + 1, 2]. Up to 50,000 images every pair
    is counted, of codes of 1,000 bits or more fewer. Of more images, so many are drawn by rng, and their
    pairs are counted. A column without pairs is 0.
    """
    most = min(_MAX_PAIRED, _MAX_COUNTS // (num_bits + 1))
    if len(codes) > most:
        drawn = np.sort(rng.permutation(len(codes))[:most])
        codes, labels = codes[drawn], labels[drawn]
    if len(codes) < 2:
        return np.zeros((num_bits + 1, 2))
    ranking = retrieval.rank(
        codes, labels, codes, labels, 1, leave_one_out=True, neighbours=1, conventions=False
    )
    same = ranking.relevant.sum(0, dtype=np.int64)
    counts = np.stack([same, ranking.total.sum(0, dtype=np.int64) - same], axis=1)[: num_bits + 1]
    counts = np.pad(counts, ((0, num_bits + 1 - len(counts)), (0, 0)))
    return counts / np.maximum(counts.sum(0), 1)


def _reliability(labels: np.ndarray, answers: Answers) -> Reliability | None:
    """The Reliability of the posterior decoder, None if it was not measured."""
    if _POSTERIOR not in answers:
        return None
    classes, scores = answers[_POSTERIOR]
    hits = classes[:, 0] == torch.from_numpy(labels)
    counts, confidence, accuracy = (part.numpy() for part in calibration_bins(hits, scores[:, 0]))
    edges = np.linspace(0, 1, len(counts) + 1)
    return Reliability(edges, counts, confidence, accuracy, calibration_error(hits, scores[:, 0]))


def _bits(class_codes: np.ndarray, codes: np.ndarray, num_bits: int, extremes: Extremes) -> list[Bit]:
    """A Bit for each bit; those that `extremes` does not have get no images."""
    of_classes, balance = unpack_bits(class_codes, num_bits), unpack_bits(codes, num_bits).mean(0)
    highest, lowest = extremes.highest[1].tolist(), extremes.lowest[1].tolist()
    without: list[list[int]] = [[]] * (num_bits - len(highest))
    return [
        Bit(np.flatnonzero(ones).tolist(), high, low, float(share))
        for ones, high, low, share in zip(of_classes.T, highest + without, lowest + without, balance)
    ]


# --------------------------------------------------------------------------------------------------- queries


def _spread(labels: np.ndarray, decoded: np.ndarray, number: int, rng: np.random.Generator) -> list[int]:
    """Positions of up to `number` images: half decoded right, then half decoded wrong.

    They are of as many classes as possible. Where there are too few of one kind, there are more of the other.
    """
    classes = rng.permutation(np.unique(labels)).tolist()
    kinds = [
        list(_in_turn(labels, wanted, classes, rng)) for wanted in (decoded == labels, decoded != labels)
    ]
    num_wrong = min(number // 2, len(kinds[1]))
    num_right = min(number - num_wrong, len(kinds[0]))
    return kinds[0][:num_right] + kinds[1][: number - num_right]


def _in_turn(
    labels: np.ndarray, wanted: np.ndarray, classes: Sequence[int], rng: np.random.Generator
) -> Iterator[int]:
    """Positions of the wanted images: one of each class, then a second of each, ..., in random order."""
    of_class: dict[int, list[int]] = {label: [] for label in classes}
    for position in rng.permutation(np.flatnonzero(wanted)).tolist():
        of_class[int(labels[position])].append(position)
    for turn in range(max(map(len, of_class.values()), default=0)):
        yield from (positions[turn] for positions in of_class.values() if turn < len(positions))


def _queries(
    places: Sequence[int],
    labels: np.ndarray,
    decoded: np.ndarray,
    codes: np.ndarray,
    num_neighbours: int,
    rng: np.random.Generator,
) -> list[Query]:
    """The Query of each place, with its nearest other images.

    Equally near ones come in a random order. In that of the val set, which lies class after class, the first
    classes would be shown for every query with many equal codes.
    """
    if not places:
        return []
    order = rng.permutation(len(codes))
    k = min(num_neighbours + 1, len(codes))  # one more, as the image itself may be among them
    distances, indices = search(np.ascontiguousarray(codes[places]), codes[order], k)
    found = []
    for place, of_query, near in zip(places, distances.tolist(), order[indices].tolist()):
        others = [
            Neighbour(image, int(labels[image]), distance)
            for image, distance in zip(near, of_query)
            if image != place
        ]
        found.append(Query(place, int(labels[place]), int(decoded[place]), others[:num_neighbours]))
    return found


# -------------------------------------------------------------------------------------------------- pictures


def _pictures(
    images: Images, encoder: Encoder, positions: Sequence[int], num_workers: int
) -> dict[int, tuple[bytes, str]]:
    """{position: (a JPEG, its media type)}: what the network sees of the images, at most 64 pixels a side.

    If they would take more than 2.9 MB together, their quality is lower.
    """
    source = images.source if images.source is not None else BetonImages.of(images.shards)
    reader = source.reader

    def pixels_of(handle: Any) -> np.ndarray:
        image, name = read_from(reader, handle)
        return load_rgb(image, printable(name))

    handles = source.handles(np.array(positions, np.int64))
    batches = prepare(pixels_of, handles, encoder.preprocessing, batch_size=64, num_workers=num_workers or -1)
    small = [_small(pixels) for batch in batches for pixels in batch.permute(0, 2, 3, 1).numpy()]
    for quality in _QUALITIES:
        files = [_jpeg(image, quality) for image in small]
        if sum(map(len, files)) <= _MAX_BYTES:
            break
    return {position: (file, "image/jpeg") for position, file in zip(positions, files)}


def _small(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return image if max(image.size) <= SIDE else image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality, optimize=True)
    return data.getvalue()
