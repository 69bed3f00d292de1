"""Small betons with other page sizes than the writer's, and a reader that shares no code with llc."""

import gzip
import io
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from llc.data import beton

# Packed, because its pages of 2 MiB, the smallest that FFCV writes, are mostly zeros.
FFCV_WRITTEN = Path(__file__).with_name("ffcv_written.beton.gz")
FFCV_DECODED = Path(__file__).with_name("ffcv_decoded.npz")  # what FFCV's own loader makes of it


def write_small_beton(path, pictures, labels, modes, page_size=1 << 15):
    """Writes a beton without a manifest and returns `path`.

    pictures: uint8 [h, w, 3] arrays; modes: beton.RAW or beton.JPG of each.
    """
    data = [
        picture.tobytes() if mode == beton.RAW else jpeg(picture) for picture, mode in zip(pictures, modes)
    ]
    metadata, table = np.zeros(len(data), beton.METADATA_TYPE), np.zeros(len(data), beton.ALLOC_TYPE)
    place = -(-(beton.METADATA_START + metadata.nbytes) // page_size) * page_size
    for i, (picture, encoded) in enumerate(zip(pictures, data)):
        assert len(encoded) <= page_size
        if place % page_size + len(encoded) > page_size:
            place = -(-place // page_size) * page_size
        metadata["f0"][i] = modes[i], picture.shape[1], picture.shape[0], place
        table[i] = i, place, len(encoded)
        place += len(encoded)
    metadata["f1"] = labels
    head = np.frombuffer(beton.header_bytes(len(data), -(-place // page_size) * page_size), np.uint8).copy()
    head[: beton.HEADER_TYPE.itemsize].view(beton.HEADER_TYPE)["page_size"] = page_size
    with open(path, "wb") as file:
        file.write(head.tobytes() + metadata.tobytes())
        for row, encoded in zip(table, data):
            file.seek(int(row["ptr"]))
            file.write(encoded)
        file.seek(-(-place // page_size) * page_size)
        file.write(table.tobytes())
    return path


def jpeg(picture, quality=90):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return file.getvalue()


def damage(path, index):
    """Overwrites the data of a JPEG sample except its first bytes."""
    tables = beton.read_tables(path)
    assert tables.images["mode"][index] == beton.JPG
    with open(path, "r+b") as file:
        file.seek(int(tables.images["data_ptr"][index]) + 2)
        file.write(b"\x00" * (int(tables.sizes[index]) - 2))


@dataclass(frozen=True)
class StoredSample:
    """A sample as the file holds it. mode: 0 for JPEG, 1 for raw pixels; data: bytes."""

    mode: int
    width: int
    height: int
    start: int
    label: int
    data: bytes

    def pixels(self, mode=None):
        """uint8 [height, width, 3]; a JPEG is decoded by Pillow and converted to `mode`, if that is given."""
        if self.mode == 1:
            return np.frombuffer(self.data, np.uint8).reshape(self.height, self.width, 3)
        image = Image.open(io.BytesIO(self.data))
        pixels = np.asarray(image if mode is None else image.convert(mode))
        assert pixels.shape == (self.height, self.width, 3)
        return pixels


def stored_samples(path):
    """The StoredSamples of a beton, in order.

    They are read from the format's description alone, by nothing of llc's and nothing of FFCV's.
    """
    content = Path(path).read_bytes()
    version, num_fields, page_size, num_samples, table_start = struct.unpack_from("<HHIQQ", content)
    assert (version, num_fields) == (2, 2)
    table = struct.iter_unpack("<QQQ", content[table_start:])
    sizes = {start: size for _, start, size in table}
    assert len(sizes) == num_samples
    samples, row = [], struct.Struct("<BHHQ3xq")
    for i in range(num_samples):
        mode, width, height, start, label = row.unpack_from(content, 24 + num_fields * 1041 + i * row.size)
        assert start // page_size == (start + sizes[start] - 1) // page_size
        samples.append(StoredSample(mode, width, height, start, label, content[start : start + sizes[start]]))
    return samples


def written_by_ffcv(folder):
    """Unpacks the beton that FFCV's own writer made (make_ffcv_beton.py) into `folder`.

    Returns its path.
    """
    path = Path(folder) / "ffcv_written.beton"
    path.write_bytes(gzip.decompress(FFCV_WRITTEN.read_bytes()))
    return path
