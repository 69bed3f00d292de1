"""Any image becomes upright 8-bit RGB."""
import io

import cv2
import numpy as np
from PIL import Image, ImageOps

from llc.errors import UserError


def load_rgb(source):
    """Reads an image (path, bytes or PIL image) -> uint8 [H, W, 3].

    Upright by its EXIF orientation; the first frame of an animation; transparency over white; 16 and 32 bit grey scaled, not
    clipped; palette, grey, CMYK, LAB and the like converted by Pillow. What Pillow cannot read (16-bit RGB TIFF) OpenCV may.
    Raises UserError naming the file when neither reads it.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source)
    name = "image in memory" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return _to_rgb(image)
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: refused: {error}") from error
    except Exception as error:  # Pillow's plugins raise anything from OSError to struct.error on broken files
        decoded = _read_with_opencv(source) if isinstance(error, Image.UnidentifiedImageError) else None
        if decoded is None:
            raise UserError(f"{name}: not a readable image: {error}") from error
        return decoded


def _to_rgb(image):
    image.seek(0)
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return np.repeat(_grey_to_8_bits(image)[..., None], 3, axis=2)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _grey_to_8_bits(image):
    values = np.asarray(image).astype(np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    if image.mode == "F":  # no range is agreed on: 0 to 1 where it fits, else 0 to 255 where it fits, else 16 bit
        top = values.max(initial=0.0)
        full = 1.0 if top <= 1 else 255.0 if top <= 255 else 65535.0
    else:                  # "I" is what Pillow makes of 16-bit files; real 32-bit greys get their own range
        full = max(65535.0, values.max(initial=0.0))
    return np.round(np.clip(values / full, 0, 1) * 255).astype(np.uint8)


def _read_with_opencv(source):
    data = np.frombuffer(source, np.uint8) if isinstance(source, bytes) else np.fromfile(source, np.uint8)
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    return None if decoded is None else np.ascontiguousarray(decoded[..., ::-1])
