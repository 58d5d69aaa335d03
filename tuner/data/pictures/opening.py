"""The one way to open a picture: bounded before it is unpacked, upright, without transparency, in red, green and blue.

Nothing but the header is read to know a size. What is wrong with a file is a PictureError, never one of Pillow's own.
"""

from __future__ import annotations

import math
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from tuner.text.lookup import mark, tr

MOST_PIXELS = 64_000_000
"""A picture of more pixels is refused before it is unpacked: it would take 200 MB, and a bomb any amount."""
LARGEST_FILE = 256 << 20
"""Bytes: some formats are read whole to learn their size."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Pillow's other readers are never tried: some start programs, and none is a format that data sets use."""
ENDINGS = {
    "PNG": "png",
    "JPEG": "jpg",
    "MPO": "jpg",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
}
SIDEWAYS = range(5, 9)
"""Values of EXIF's Orientation that turn a picture by a quarter."""
ORIENTATION = 0x0112
FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow raises for a file that is no picture, or half of one."""


class PictureError(Exception):
    """A picture that cannot be used: the reason, the same for all of its kind, and what is special about this one."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{tr(reason)}: {detail}" if detail else tr(reason))
        self.reason, self.detail = reason, detail

    def __reduce__(self) -> tuple[type[PictureError], tuple[str, str]]:
        return PictureError, (
            self.reason,
            self.detail,
        )  # its text alone would not come back from another process


def fitted(width: int, height: int, max_pixels: int | None, min_pixels: int | None) -> tuple[int, int]:
    """The size of a picture within these bounds, its proportions kept: shrunk if it has more pixels than `max_pixels`,
    enlarged if it has fewer than `min_pixels` (LLaMA-Factory's `_preprocess_image`, mm_plugin.py)."""
    if max_pixels and width * height > max_pixels:
        width, height = _scaled(width, height, max_pixels)
    if min_pixels and width * height < min_pixels:
        width, height = _scaled(width, height, min_pixels)
    return width, height


def _scaled(width: int, height: int, pixels: int) -> tuple[int, int]:
    factor = math.sqrt(pixels / (width * height))
    return max(1, int(width * factor)), max(1, int(height * factor))


def size_of(
    path: str | Path, max_pixels: int | None = None, min_pixels: int | None = None
) -> tuple[int, int]:
    """Width and height of a picture as `load` gives it, from its header alone; kept until the file changes.

    Raises PictureError for what is no picture, has too many pixels, or ends too early.
    """
    found = _known(str(path), *_stamp(Path(path)))
    if isinstance(found, PictureError):
        raise found
    return fitted(*found, max_pixels, min_pixels)


def load(path: str | Path, max_pixels: int | None = None, min_pixels: int | None = None) -> Image.Image:
    """A picture as models see it: RGB, upright, transparent parts white, within these bounds. Raises PictureError."""
    size = size_of(path, max_pixels, min_pixels)
    with Path(path).open("rb") as file:
        picture = _seen(file, str(path))
    return picture if picture.size == size else picture.resize(size)


def kind_of(data: bytes) -> str:
    """The ending of the file that these bytes are, "png" or another of ENDINGS. Raises PictureError."""
    with _opened(BytesIO(data), "") as image:
        return ENDINGS[str(image.format)]


def _stamp(path: Path) -> tuple[int, int]:
    """When a file was changed, in nanoseconds, and its bytes. Raises PictureError where there is none to open."""
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise PictureError(MISSING, str(path)) from error
    if not stat.S_ISREG(found.st_mode):
        raise PictureError(NONE, tr("{path} is no file", path=path))
    if found.st_size > LARGEST_FILE:
        said = tr(
            "{path} has {size} MB; at most {most} are read",
            path=path,
            size=found.st_size >> 20,
            most=LARGEST_FILE >> 20,
        )
        raise PictureError(LARGE, said)
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=1 << 18)
def _known(path: str, changed: int, size: int) -> tuple[int, int] | PictureError:
    """What a file's header says, as long as the file stays as it is."""
    try:
        with Path(path).open("rb") as file:
            return _looked_at(file, path)
    except OSError as error:
        return PictureError(NONE, f"{path}: {error.strerror}")
    except PictureError as error:
        return error


def _looked_at(file: BinaryIO, path: str) -> tuple[int, int]:
    with _opened(file, path) as image:
        width, height = image.size
        turned = _orientation(image) in SIDEWAYS
    if not _whole(file):
        file.seek(0)
        _seen(file, path)  # which says where it ends, or that it is only odd at its end
    return (height, width) if turned else (width, height)


@contextmanager
def _opened(file: BinaryIO, path: str) -> Iterator[Image.Image]:
    """A picture of which no more than the header was read. Raises PictureError, for what goes wrong in the block too."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            _bounded(image.size, path)
            yield image
    except Image.DecompressionBombError as error:
        raise PictureError(LARGE, path) from error
    except FAULTS as error:
        first = str(error).partition("\n")[0]
        unknown = isinstance(error, UnidentifiedImageError)
        raise PictureError(NONE if unknown else BROKEN, path if unknown else f"{path}: {first}") from error


def _bounded(size: tuple[int, int], path: str) -> None:
    if min(size) < 1:
        raise PictureError(
            NONE, tr("{path} is {width} by {height} pixels", path=path, width=size[0], height=size[1])
        )
    if size[0] * size[1] > MOST_PIXELS:
        said = tr("{path} is {width} by {height} pixels", path=path, width=size[0], height=size[1])
        raise PictureError(LARGE, said)


def _orientation(image: Image.Image) -> int:
    """How EXIF says that a picture is to be turned; of a PNG only what stands before its pixels counts."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # getexif would unpack the whole picture to look behind it
    found = image.getexif().get(ORIENTATION, 1)
    return found if isinstance(found, int) else 1


def _seen(file: BinaryIO, path: str) -> Image.Image:
    with _opened(file, path) as image:
        turned = _orientation(image) != 1
        image.load()
        return _coloured(ImageOps.exif_transpose(image) if turned else image)


def _coloured(image: Image.Image) -> Image.Image:
    """A picture in red, green and blue."""
    if image.mode.startswith(
        ("I;16", "I", "F")
    ):  # 16 bits a pixel, of which Pillow would only cut off the light ones
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    clear = image.convert("RGBA")
    white = Image.new("RGBA", clear.size, "white")
    return Image.alpha_composite(white, clear).convert("RGB")


def _whole(file: BinaryIO) -> bool:
    """Whether a file ends as its format says; False where only unpacking tells."""
    file.seek(0)
    head = file.read(16)
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 64))
    tail = file.read()
    if head.startswith(b"\x89PNG"):
        return b"IEND" in tail
    if head.startswith(b"\xff\xd8"):
        return b"\xff\xd9" in tail
    if head.startswith(b"RIFF"):
        return size >= int.from_bytes(head[4:8], "little") + 8
    return head.startswith(b"GIF8") and tail.endswith(b";")


MISSING = mark("picture not found")
NONE = mark("not a picture")
BROKEN = mark("picture cut off or damaged")
LARGE = mark("picture too large")
