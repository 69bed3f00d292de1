"""One or several betons read as one dataset, whose samples are numbered across all of them."""

import glob
import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from llc import environment
from llc.data.manifest import Manifest, ManifestError, check_same_classes, open_verified
from llc.errors import UserError

_MAX_SHOWN = 10  # parts that a message names


@dataclass(frozen=True)
class Shards:
    """The tables of verified betons, one after the other: S shards, n samples.

    paths: tuple of S; starts: int64 [S + 1], the first sample of each shard, and n; images: structured [n]
    (beton.IMAGE_TYPE; data_ptr is an offset in the shard); sizes: int64 [n], bytes; labels: int64 [n];
    page_sizes, file_sizes, manifests: tuples of S; manifest: of all shards together. where: what was opened.
    """

    paths: tuple
    starts: np.ndarray
    images: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    page_sizes: tuple
    file_sizes: tuple
    manifest: Manifest
    manifests: tuple
    where: str

    def __len__(self):
        return len(self.labels)

    def __str__(self):
        return str(self.paths[0]) + (f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else "")

    @property
    def identity(self):
        """64 hexadecimal digits that are the same for copies of these betons in the same order."""
        return hashlib.sha256("".join(m.identity for m in self.manifests).encode()).hexdigest()

    def shard_of(self, indices):
        """The shard of each sample, int64, the shape of `indices`."""
        return np.searchsorted(self.starts, indices, side="right") - 1

    def name(self, index):
        """What messages call a sample: its place in its file."""
        shard = int(self.shard_of(index))
        return f"sample {index - int(self.starts[shard])} of {self.paths[shard]}"


def open_shards(where, spot_check=True):
    """Verifies and opens `where`: a beton, several separated by commas, or a glob (its files sorted by name).

    Raises UserError where there is no file or one comes twice; ManifestError and BetonError as
    `manifest.verify` does, and where the manifests name different classes, or some of the parts of
    `python -m llc.write --cfg.part` are missing. One part is opened alone only if `where` is its name.
    spot_check: whether to look if some images are JPEGs; a reader that checks all of them need not.
    """
    where = str(where)
    paths = _find(where)
    opened = [open_verified(path, spot_check) for path in paths]
    manifests, tables = zip(*opened)
    for path, manifest in zip(paths[1:], manifests[1:]):
        check_same_classes(manifests[0], manifest, str(paths[0]), str(path))
    betons = _betons(paths, manifests)
    _check_not_twice(betons)
    # Each machine may have its own parts; then check_parts_of_all compares them.
    if not Path(where).exists() and environment.world_size() == environment.local_world_size():
        _check_parts(where, betons)
    return Shards(
        tuple(paths),
        np.cumsum([0, *map(len, tables)]),
        np.concatenate([t.images for t in tables]),
        np.concatenate([t.sizes for t in tables]),
        np.concatenate([t.labels for t in tables]),
        tuple(t.page_size for t in tables),
        tuple(t.file_size for t in tables),
        _merge(manifests),
        manifests,
        where,
    )


def check_parts_of_all(shards, processes):
    """Raises ManifestError, on all processes, where some parts are missing on all machines together.

    Every process calls this with its own Shards. One part alone is allowed where all have the same one, by
    its name.
    """
    of_all = processes.gather_objects(_named(shards))
    betons = {beton.identity: beton for _, _, betons in of_all for beton in betons}  # machines may share some
    if len(betons) == 1 and all(is_name for _, is_name, _ in of_all):
        return
    _check_parts(of_all[0][0], list(betons.values()), " on all machines together" if len(of_all) > 1 else "")


def _named(shards):
    """What one process names: (text, whether it is the name of one beton, its betons)."""
    return shards.where, Path(shards.where).exists(), _betons(shards.paths, shards.manifests)


def _find(where):
    if Path(where).exists():  # a name with a comma or an asterisk in it
        return [Path(where)]
    paths = []
    for part in filter(None, map(str.strip, where.split(","))):
        found = sorted(glob.glob(part)) if glob.has_magic(part) else [part]
        if not found:
            raise UserError(
                f"{part}: no file has such a name; give a beton, several separated by commas, or a glob"
            )
        paths += [Path(name) for name in found if not (glob.has_magic(part) and name.endswith(".json"))]
    if not paths:
        raise UserError(
            f"{where!r} names no beton; give a beton, several separated by commas, or a glob such as"
            " 'train-*.beton'"
        )
    resolved = [path.resolve() for path in paths]
    for k, path in enumerate(resolved):
        if path in resolved[:k]:
            raise UserError(f"{paths[k]} is named twice in {where!r}; every image would come twice")
    return paths


@dataclass(frozen=True)
class _Beton:
    """What a beton is a part of. identity: the same for copies. num_images: with those that were left out."""

    path: str
    identity: str
    part: tuple | None
    order: object
    num_images: int


def _betons(paths, manifests):
    return [
        _Beton(
            str(path),
            manifest.identity,
            manifest.part,
            manifest.order,
            manifest.num_samples + len(manifest.skipped),
        )
        for path, manifest in zip(paths, manifests)
    ]


def _check_not_twice(betons):
    """Raises ManifestError where two betons are the same part."""
    seen = {}
    for beton in betons:
        before = seen.setdefault(beton.identity, beton)
        if beton.part and before is not beton:
            raise ManifestError(
                f"{before.path} and {beton.path} are both part {_of(beton.part)}, and equal; every image of"
                " it would come twice"
            )


def _check_parts(where, betons, whose=""):
    """Raises ManifestError unless the parts among the betons are complete and of one conversion."""
    counts = Counter(beton.part for beton in betons if beton.part)
    for n in {n for _, n in counts}:
        num_sets = max(counts[i, n] for i in range(1, n + 1))  # of parts, as of several data sets
        missing = [(i, n) for i in range(1, n + 1) if counts[i, n] < num_sets]
        if missing:
            shown = ", ".join(map(_of, missing[:_MAX_SHOWN])) + (", ..." if len(missing) > _MAX_SHOWN else "")
            raise ManifestError(
                f"{where}: part {shown} is missing{whose}; write it with --cfg.part={missing[0][0]}/{n}, or"
                " name a single file to use one part alone"
            )
        if num_sets == 1:
            _check_one_conversion([beton for beton in betons if beton.part and beton.part[1] == n], n)


def _check_one_conversion(parts, n):
    """Raises ManifestError where n parts cannot be of the same images.

    Part i holds images i, i + n, ... of all, counted from 1.
    """
    sizes = {beton.part[0]: beton.num_images for beton in parts}
    total = sum(sizes.values())
    same_images = all(size == len(range(i - 1, total, n)) for i, size in sizes.items())
    if same_images and all(beton.order == parts[0].order for beton in parts):
        return
    shown = "; ".join(
        f"{beton.path}: part {_of(beton.part)}, {beton.num_images:,} images in the order {beton.order}"
        for beton in parts[:_MAX_SHOWN]
    )
    raise ManifestError(
        f"these parts were not made from the same images in the same order ({shown}"
        f"{'; ...' if n > _MAX_SHOWN else ''}); write all parts with the same settings from the same images"
    )


def _of(part):
    return f"{part[0]} of {part[1]}"


def _merge(manifests):
    """The manifest of all samples together; that of a single shard is unchanged."""
    if len(manifests) == 1:
        return manifests[0]
    return replace(
        manifests[0],
        class_counts=tuple(np.sum([m.class_counts for m in manifests], 0).tolist()),
        num_samples=sum(m.num_samples for m in manifests),
        file_size=sum(m.file_size for m in manifests),
        tables_sha256=hashlib.sha256("".join(m.tables_sha256 for m in manifests).encode()).hexdigest(),
        writer=manifests[0].writer if all(m.writer == manifests[0].writer for m in manifests) else {},
        skipped=sum((m.skipped for m in manifests), ()),
        checksums=(),  # blocks begin anew with each file
        class_words=next((m.class_words for m in manifests if m.class_words), ()),
        order="unknown",
        part=None,
    )
