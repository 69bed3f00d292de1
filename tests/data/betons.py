"""Small betons made by hand, with what the writer does not vary: the size of a page."""

import io

import numpy as np
from PIL import Image

from llc.data import beton


def write_small_beton(path, pictures, labels, modes, page_size=1 << 15):
    """pictures: uint8 [h, w, 3] arrays; modes: beton.RAW or beton.JPG of each. No manifest is written. Returns `path`."""
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
    """Overwrites the data of a JPEG sample but for its first bytes."""
    tables = beton.read_tables(path)
    assert tables.images["mode"][index] == beton.JPG
    with open(path, "r+b") as file:
        file.seek(int(tables.images["data_ptr"][index]) + 2)
        file.write(b"\x00" * (int(tables.sizes[index]) - 2))
