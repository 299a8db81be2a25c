"""One image file to 8-bit RGB: what can't be decoded faithfully is refused, naming the file."""

from __future__ import annotations

import stat
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from deap_prune.errors import DataError

MOST_PIXELS = 100_000_000
"""Size limit of an image, before and after it is resized."""

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


def read_image(path: str) -> Any:
    """A PIL image in RGB, rotated as its EXIF data says; 16-bit grey values are scaled to 8 bits.

    Raises:
        DataError: If the file is no image, is broken or too large, or has values of an unknown range (32-bit, float).
    """
    from PIL import Image, ImageOps

    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise DataError(f"cannot read the image {path!r}: it is no regular file; remove it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                _check_size(path, opened.width, opened.height)
                opened.load()
                image = ImageOps.exif_transpose(opened)
        return _as_rgb(path, image, opened.format)
    except DataError:
        raise
    except Exception as error:  # decoders raise many kinds
        raise DataError(
            f"cannot read the image {path!r}: {error or type(error).__name__}; repair or remove it"
        ) from error


def check_shape(path: str, width: int, height: int, shorter: int) -> None:
    """Check the size of an image after its shorter side is resized.

    Raises:
        DataError: If it is too large (a long, thin image).
    """
    longer = shorter * max(width, height) / max(1, min(width, height))
    if longer * shorter > MOST_PIXELS:
        raise DataError(f"the image {path!r} of {width} x {height} pixels is too long and thin to resize; remove it")


def _check_size(path: str, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise DataError(
            f"the image {path!r} has {width} x {height} pixels; at most {MOST_PIXELS:,} are decoded: scale it down"
        )


def _as_rgb(path: str, image: Any, file_format: str | None) -> Any:
    from PIL import Image

    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and file_format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"the image {path!r} has values from {values.min()} to {values.max()}; give 8 or 16 bits")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "32-bit whole" if image.mode == "I" else "float"
        raise DataError(f"the image {path!r} holds {kind} numbers, of no known range; convert it to 8 or 16 bits")
    if image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
