"""Writes ffcv_written.beton.gz and ffcv_decoded.npz anew, with FFCV 1.0.2's own writer and loader.

    python -m tests.data.make_ffcv_beton

The tests read them where FFCV is not installed. Labels are LABELS; the pictures are those of `picture`.
"""

import gzip
import tempfile
from pathlib import Path

import numpy as np

from tests.data.betons import FFCV_DECODED, FFCV_WRITTEN

LABELS = (1, 2, 3, 1, 2, 3, 1, 0)
RESOLUTION, CROP_RATIO = 24, 0.875  # of the crops in ffcv_decoded.npz


def picture(i):
    """Picture i, uint8 [33 + i, 40, 3]: integer arithmetic alone, so that it is the same everywhere."""
    y, x = np.mgrid[: 33 + i, :40]
    return (
        np.stack([5 * x + 20 * i, 6 * y, 255 - 2 * x - 3 * y - 5 * i], axis=-1).clip(0, 255).astype(np.uint8)
    )


def main():
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.writer import MIN_PAGE_SIZE, DatasetWriter

    np.random.seed(0)  # FFCV draws from it which pictures become JPEG
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ffcv_written.beton")
        fields = {
            "image": RGBImageField(write_mode="proportion", compress_probability=0.5),
            "label": IntField(),
        }
        writer = DatasetWriter(str(path), fields, page_size=MIN_PAGE_SIZE, num_workers=1)
        writer.from_indexed_dataset([(picture(i), label) for i, label in enumerate(LABELS)], chunksize=2)
        crop = CenterCropRGBImageDecoder((RESOLUTION, RESOLUTION), CROP_RATIO)
        loader = Loader(
            str(path),
            batch_size=len(LABELS),
            num_workers=1,
            order=OrderOption.SEQUENTIAL,
            drop_last=False,
            pipelines={"image": [crop], "label": [IntDecoder()]},
        )
        images, labels = next(iter(loader))
        np.savez_compressed(FFCV_DECODED, images=images, labels=labels.reshape(-1))
        FFCV_WRITTEN.write_bytes(gzip.compress(path.read_bytes(), mtime=0))


if __name__ == "__main__":
    main()
