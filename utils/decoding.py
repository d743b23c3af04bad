"""How the bytes of an image file become 8-bit RGB, for all that reads or packs images.

- Images of 8 bits are what Pillow makes of them.
- Integers are divided by the range of their type: 16 bits by 65535, signed ones by 32767. Those of
  32 bits are divided by the narrowest of 255, 65535 and their type's range that holds all values of
  the image, since under a wider one it would be black.
- Floats are from 0 to 1; an image with others is refused: nothing says what they mean.
- What is transparent is put on white.
- The orientation that EXIF names is applied.
"""

from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from utils.json_file import one_line

# TIFF and EXIF tags.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT, _ORIENTATION = 258, 262, 339, 274
_WHITE_IS_ZERO, _SIGNED = 0, 2

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(ValueError):
    """A file that is no image, is broken, or has values of no known range; says which."""


def decode(file: BinaryIO) -> Image.Image:
    """The image in a file, upright, as 8-bit RGB.

    Raises:
        UnreadableImage: it cannot be decoded.
        OSError: the file itself cannot be read; it has an `errno`.
    """
    try:
        with Image.open(file) as image:
            image.load()
            return _upright(_as_rgb(image), image)
    except MemoryError:
        raise
    except UnidentifiedImageError:  # whose text is about Python's objects
        raise UnreadableImage("no image of a known format") from None
    except Exception as error:  # broken files make Pillow raise errors of many types
        if getattr(error, "errno", None):
            raise
        raise UnreadableImage(one_line(error) or type(error).__name__) from None


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _of_wide_values(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _of_wide_values(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, as RGB."""
    values = np.asarray(image)
    shares = _checked_floats(values) if image.mode == "F" else _shares(values, image)
    if _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO:  # which Pillow knows of 8 bits only
        shares = 1 - shares
    pixels = np.rint(255 * shares).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        pixels[values == transparent] = 255
    return Image.fromarray(pixels).convert("RGB")


def _checked_floats(values: np.ndarray) -> np.ndarray:
    if not (values.min() >= 0 and values.max() <= 1):  # NaN is neither
        found = f"{values.min():g} to {values.max():g}"
        raise ValueError(f"its floats are {found}; allowed are 0 to 1")
    return values.astype(np.float64)


def _shares(values: np.ndarray, image: Image.Image) -> np.ndarray:
    """Integers as shares of their range."""
    bits, signed = _tag(image, _BITS) or 16, _tag(image, _SAMPLE_FORMAT) == _SIGNED
    if bits == 32 and not signed:
        values = values.view(np.uint32)  # Pillow shows the upper half of the range as negative
    if values.min() < 0:
        raise ValueError(f"its integers begin at {values.min()}; allowed are those from 0")
    largest = 2 ** (bits - signed) - 1
    ranges = (255, 65535, largest) if bits == 32 else (largest,)
    return values / next(most for most in ranges if values.max() <= most)


def _tag(image: Image.Image, number: int) -> int | None:
    """The first value of a TIFF tag; None where the image has none, as one that is no TIFF."""
    value = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) else value


def _upright(rgb: Image.Image, image: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION))
    except Exception:  # broken EXIF in an image that is none the worse for it
        return rgb
    return rgb if turn is None else rgb.transpose(turn)
