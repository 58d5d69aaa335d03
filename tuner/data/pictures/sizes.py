"""How many tokens a model makes of a picture, from the files in its folder: as its processor does, without transformers.

Each class is one family's processor; tests hold them to transformers' own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from tuner.config.vision import takes_pictures
from tuner.data.pictures.opening import PictureError
from tuner.text.lookup import mark, tr

Settings = Mapping[str, Any]


class Pieces(NamedTuple):
    """What stands for a picture: a text in which every run of the picture's token is one, and how long each run is."""

    text: str
    runs: tuple[int, ...]


@dataclass(frozen=True)
class PictureTokens:
    """How a family of models writes pictures. `settings` are its processor's; sizes are those that `opening.load` gives."""

    settings: Settings
    pan_and_scan: bool = False

    models: ClassVar[tuple[str, ...]]
    """The model types of config.json."""
    marker: ClassVar[str]
    """What the model's own chat template writes for a picture."""
    token: ClassVar[str]
    """The token that the model replaces by what it saw."""
    frame: ClassVar[tuple[str, ...]] = ()
    """Other tokens that belong to a picture."""

    def pieces(self, width: int, height: int) -> Pieces:
        """What stands for a picture of this size, in pixels. Raises PictureError for one that the processor refuses."""
        raise NotImplementedError

    def text(self, width: int, height: int) -> str:
        """What replaces the marker: all tokens of a picture, as text. Raises PictureError."""
        text, runs = self.pieces(width, height)
        first, *rest = text.split(self.token)
        return first + "".join(self.token * run + part for run, part in zip(runs, rest, strict=True))

    def count(self, width: int, height: int) -> int:
        """How many of the picture's own token there are. Raises PictureError."""
        return sum(self.pieces(width, height).runs)

    def _number(self, name: str, otherwise: Any) -> Any:
        value = self.settings.get(name)
        return otherwise if value is None else value


class Qwen2Vl(PictureTokens):
    """Qwen2-VL and Qwen2.5-VL: patches of 14 pixels, four to a token, as many as the picture has."""

    models: ClassVar[tuple[str, ...]] = ("qwen2_vl", "qwen2_5_vl")
    marker = "<|vision_start|><|image_pad|><|vision_end|>"
    token = "<|image_pad|>"  # noqa: S105
    frame = ("<|vision_start|>", "<|vision_end|>")
    patch: ClassVar[int] = 14

    def pieces(self, width: int, height: int) -> Pieces:
        factor = self._number("patch_size", self.patch) * self._number("merge_size", 2)
        rows, columns = _smart_resize(height, width, factor, *self._bounds())
        return Pieces(self.marker, (rows * columns,))

    def _bounds(self) -> tuple[int, int]:
        """Fewest and most pixels, by the processor's own settings, of which the older names win."""
        size = self.settings.get("size") or {}
        least = self._number("min_pixels", size.get("shortest_edge", 56 * 56))
        return least, self._number("max_pixels", size.get("longest_edge", 28 * 28 * 1280))


class Qwen3Vl(Qwen2Vl):
    """Qwen3-VL: the same with patches of 16 pixels."""

    models = ("qwen3_vl",)
    patch = 16


def _smart_resize(height: int, width: int, factor: int, least: int, most: int) -> tuple[int, int]:
    """Rows and columns of tokens (transformers' smart_resize, qwen2_vl)."""
    if max(height, width) > 200 * min(height, width):
        said = tr(
            "{width} by {height} pixels; one side is over 200 times the other", width=width, height=height
        )
        raise PictureError(LONG, said)
    rows, columns = round(height / factor), round(width / factor)
    if rows * columns * factor * factor > most:
        beta = math.sqrt(height * width / most)
        return max(1, math.floor(height / beta / factor)), max(1, math.floor(width / beta / factor))
    if rows * columns * factor * factor < least:
        beta = math.sqrt(least / (height * width))
        return math.ceil(height * beta / factor), math.ceil(width * beta / factor)
    return rows, columns


class Gemma3(PictureTokens):
    """Gemma 3: every picture is one square of 256 tokens; a long one, on demand, several."""

    models = ("gemma3",)
    marker = "<start_of_image>"
    token = "<image_soft_token>"  # noqa: S105
    frame = ("<start_of_image>", "<end_of_image>")

    def pieces(self, width: int, height: int) -> Pieces:
        square = f"\n\n<start_of_image>{self.token}<end_of_image>\n\n"
        length, crops = self._number("image_seq_length", 256), self._crops(width, height)
        if not crops:
            return Pieces(square, (length,))
        text = (
            f"Here is the original image {square} and here are some crops to help you see better "
            + " ".join([square] * crops)
        )
        return Pieces(text, (length,) * (crops + 1))

    def _crops(self, width: int, height: int) -> int:
        """How many squares are cut out of a picture (transformers' pan_and_scan, gemma3)."""
        if not self.pan_and_scan:
            return 0
        long, short = max(width, height), min(width, height)
        least = self._number("pan_and_scan_min_crop_size", 256)
        if long / short < self._number("pan_and_scan_min_ratio_to_activate", 1.2):
            return 0
        crops = min(long // least, math.floor(long / short + 0.5))
        crops = min(self._number("pan_and_scan_max_num_crops", 4), max(2, crops))
        return crops if min(math.ceil(long / crops), short) >= least else 0


class Idefics3(PictureTokens):
    """Idefics3 and SmolVLM: the picture in squares, row by row, and once as a whole."""

    models = ("idefics3", "smolvlm")
    marker = "<image>"
    token = "<image>"  # noqa: S105
    frame = ("<fake_token_around_image>", "<global-img>")

    def pieces(self, width: int, height: int) -> Pieces:
        length, (rows, columns) = self._number("image_seq_len", 169), self._squares(width, height)
        fake, whole = self.frame
        squares = "".join(
            "".join(f"{fake}<row_{r + 1}_col_{c + 1}>{self.token}" for c in range(columns)) + "\n"
            for r in range(rows)
        )
        text = (squares and squares + "\n") + f"{fake}{whole}{self.token}{fake}"
        return Pieces(text, (length,) * (rows * columns + 1))

    def _squares(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of squares, 0 for a picture that is one (transformers' `_preprocess`, which its own
        `get_number_of_image_patches` does not always agree with)."""
        if not self._number("do_image_splitting", True):
            return 0, 0
        side = self._number("max_image_size", {"longest_edge": 364})["longest_edge"]
        if self._number("do_resize", True):
            width, height = self._resized(width, height)
        columns, rows = _cells(width, height, side)
        return (rows, columns) if rows > 1 or columns > 1 else (0, 0)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """The size after the longer side was made as long as the settings say, and no longer than 4096."""
        longest = self._number("size", {"longest_edge": 4 * 364})["longest_edge"]
        width, height = _as_long(width, height, longest)
        width, height = (width, height + height % 2) if width == longest else (width + width % 2, height)
        return _as_long(width, height, MOST_SIDE) if max(width, height) > MOST_SIDE else (width, height)


MOST_SIDE = 4096


def _as_long(width: int, height: int, longest: int) -> tuple[int, int]:
    """A size whose longer side is `longest`. (The ratio is made first, for its rounding is the processor's.)"""
    ratio = width / height
    if width >= height:
        return longest, max(int(longest / ratio), 1)
    return max(int(longest * ratio), 1), longest


def _cells(width: int, height: int, side: int) -> tuple[int, int]:
    """How many squares a picture is wide and high, once its longer side is a whole number of them."""
    ratio = width / height
    if width >= height:
        columns = math.ceil(width / side)
        return columns, math.ceil(int(columns * side / ratio) / side)
    rows = math.ceil(height / side)
    return math.ceil(int(rows * side * ratio) / side), rows


LONG = mark("picture too long for its width")
FAMILIES: tuple[type[PictureTokens], ...] = (Qwen2Vl, Qwen3Vl, Gemma3, Idefics3)
BY_MODEL = {model: family for family in FAMILIES for model in family.models}


def picture_tokens(folder: Path, pan_and_scan: bool = False) -> PictureTokens | None:
    """How the model in a folder writes pictures; None for one that reads text alone."""
    config = _json(folder / "config.json")
    if not takes_pictures(config):
        return None
    return BY_MODEL[config["model_type"]]({**_of_the_model(config), **_settings(folder)}, pan_and_scan)


def _of_the_model(config: Mapping[str, Any]) -> dict[str, int]:
    """How many tokens a square picture is by config.json, for folders without a processor's settings that say it."""
    tower = config["vision_config"]
    known = {"image_seq_length": config.get("mm_tokens_per_image")}
    with suppress(KeyError, TypeError, ZeroDivisionError):
        side = tower["image_size"] // tower["patch_size"]
        known["image_seq_len"] = side**2 // config["scale_factor"] ** 2
    return {name: value for name, value in known.items() if isinstance(value, int)}


def _settings(folder: Path) -> Settings:
    """The processor's settings: its own, and its image processor's, which newer folders keep inside."""
    processor = _json(folder / "processor_config.json")
    apart = _json(folder / "preprocessor_config.json")
    return {**processor, **apart, **(processor.get("image_processor") or {})}


def _json(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}
