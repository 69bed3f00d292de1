"""The manifest beside every beton, `OUT.beton.json`: class names in label order, counts, the writer's settings, and what
verifies the file before FFCV maps it (FFCV crashes on a truncated beton, or serves garbage)."""
import dataclasses
import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, FieldDescType, HeaderType, get_metadata_type

from llc.errors import UserError
from llc.files import atomic_write

FORMAT = 1
# metadata of the two fields that a beton of images and labels has, in FFCV's order
METADATA_TYPE = get_metadata_type([RGBImageField(), IntField()])


@dataclasses.dataclass(frozen=True)
class Manifest:
    class_names: tuple
    num_samples: int
    class_counts: tuple
    file_size: int = 0            # bytes; 0 where the beton came without a manifest
    tables_sha256: str = ""       # of header, field descriptors, metadata and allocation table
    writer: dict = dataclasses.field(default_factory=dict)
    skipped: tuple = ()           # unreadable images left out

    @property
    def num_classes(self):
        return len(self.class_names)

    def save(self, beton):
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        text = json.dumps(content, indent=1, ensure_ascii=False).encode()
        atomic_write(manifest_path(beton), lambda file: file.write(text))


def manifest_path(beton):
    return Path(f"{beton}.json")


def load_manifest(beton):
    """The manifest of a beton, given either's path. A beton without one gets names "0", "1", ... from its labels, with a warning.

    Raises UserError when neither is there or the manifest is not one.
    """
    beton = Path(beton)
    path = beton if beton.suffix == ".json" else manifest_path(beton)
    if not path.exists() and path != beton:
        labels = read_tables(beton)[1]["f1"]
        warnings.warn(f"{beton} has no manifest ({path.name}): class names are taken to be 0 to {int(labels.max())}", stacklevel=2)
        counts = np.bincount(labels)
        return Manifest(tuple(map(str, range(len(counts)))), len(labels), tuple(counts.tolist()))
    try:
        content = json.loads(path.read_text())
        names, counts = content["class_names"], content["class_counts"]
        right = (content["format"] == FORMAT and all(isinstance(n, str) for n in names) and len(counts) == len(names) > 0
                 and all(isinstance(c, int) and c >= 0 for c in counts) and content["num_samples"] == sum(counts)
                 and isinstance(content["file_size"], int) and isinstance(content["tables_sha256"], str))
        if not right:
            raise ValueError("its values do not fit together")
        return Manifest(tuple(names), content["num_samples"], tuple(counts), content["file_size"], content["tables_sha256"],
                        dict(content["writer"]), tuple(content["skipped"]))
    except OSError as error:
        raise UserError(f"manifest {path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"manifest {path}: not a manifest of llc: {error!r}; write the beton again") from error


def read_tables(beton):
    """(header, metadata, sha256 over all tables) of a beton of images and labels. Raises UserError when it is not a whole one."""
    beton = Path(beton)
    try:
        size = beton.stat().st_size
        with open(beton, "rb") as file:
            head = file.read(HeaderType.itemsize)
            if len(head) < HeaderType.itemsize:
                raise UserError(f"{beton}: {size} bytes, too short for a beton")
            header = np.frombuffer(head, HeaderType)[0]
            if header["version"] != CURRENT_VERSION or header["num_fields"] != 2:
                raise UserError(f"{beton}: not a beton of images and labels (version {header['version']}, "
                                f"{header['num_fields']} fields)")
            num_samples, table = int(header["num_samples"]), int(header["alloc_table_ptr"])
            start = HeaderType.itemsize + 2 * FieldDescType.itemsize
            if num_samples < 1 or not start + num_samples * METADATA_TYPE.itemsize <= table <= size:
                raise UserError(f"{beton}: truncated or unfinished: its tables do not fit into {size} bytes; write it again")
            middle = file.read(2 * FieldDescType.itemsize + num_samples * METADATA_TYPE.itemsize)
            file.seek(table)
            tail = file.read()
    except OSError as error:
        raise UserError(f"beton {beton}: cannot be read: {error.strerror}") from error
    if len(tail) != num_samples * ALLOC_TABLE_TYPE.itemsize:
        raise UserError(f"{beton}: truncated: the allocation table has {len(tail)} bytes, "
                        f"{num_samples} samples need {num_samples * ALLOC_TABLE_TYPE.itemsize}")
    metadata = np.frombuffer(middle, METADATA_TYPE, offset=2 * FieldDescType.itemsize)
    return header, metadata, hashlib.sha256(head + middle + tail).hexdigest()


def verify(beton):
    """Checks a beton against its manifest, reading its tables alone, and returns the manifest. Raises UserError."""
    header, metadata, digest = read_tables(beton)
    manifest = load_manifest(beton)
    size = Path(beton).stat().st_size
    if manifest.file_size:
        if size != manifest.file_size:
            raise UserError(f"{beton}: has {size} bytes, its manifest says {manifest.file_size}: write or copy it again")
        if digest != manifest.tables_sha256:
            raise UserError(f"{beton}: its tables differ from what its manifest says: damaged, or the manifest of another file")
    pointers = metadata["f0"]["data_ptr"]
    if int(pointers.max()) >= size:
        raise UserError(f"{beton}: damaged: a sample lies behind the end of the file")
    return manifest


def check_same_classes(train, val, train_name, val_name):
    """Raises UserError unless two manifests agree on the class names and their order."""
    if train.class_names == val.class_names:
        return
    first = next((i for i, (a, b) in enumerate(zip(train.class_names, val.class_names)) if a != b), None)
    where = (f"label {first} is {train.class_names[first]!r} in one, {val.class_names[first]!r} in the other" if first is not None
             else f"{train.num_classes} classes in one, {val.num_classes} in the other")
    raise UserError(f"{train_name} and {val_name} disagree on the classes: {where}; "
                    f"write the second with --cfg.class_names_from={train_name}.json")
