"""The table, of pictures: what models that see learn from them, and how large a picture may be."""

from __future__ import annotations

from math import prod
from typing import Annotated, Any

from pydantic import BeforeValidator

from tuner.config.knobs import OptionalText, Section, knob


def _pixels(value: Any) -> Any:
    """A count of pixels, also as 768*768, which is how LLaMA-Factory's board writes it."""
    parts = value.split("*") if isinstance(value, str) else []
    return prod(map(int, parts)) if len(parts) > 1 and all(p.strip().isdecimal() for p in parts) else value


Pixels = Annotated[int, BeforeValidator(_pixels)]


class Pictures(Section):
    title = "Pictures"
    icon = ":material/image:"

    media_dir: OptionalText = knob(
        None,
        "The folder that the paths of pictures begin in, and that none may leave; empty takes --dataset_dir.",
        advanced=True,
    )
    image_max_pixels: Pixels = knob(
        768 * 768,
        "A larger picture is shrunk to so many pixels, its proportions kept.",
        ge=1,
        advanced=True,
        unit="pixels",
        raised="small things and small print can be seen; more tokens a picture.",
        lowered="fewer tokens a picture, less memory, faster.",
        usual="262144 (512*512) to 1048576",
    )
    image_min_pixels: Pixels = knob(
        32 * 32,
        "A smaller picture is enlarged to so many pixels, its proportions kept.",
        ge=1,
        advanced=True,
        unit="pixels",
        usual="1024",
    )
    image_do_pan_and_scan: bool = knob(
        False,
        "Show a long picture as a whole and in squares cut out of it, for Gemma 3.",
        advanced=True,
        raised="details of long pictures can be seen; more tokens a picture.",
    )
    freeze_vision_tower: bool = knob(
        True, "Leave the part of the model that looks at pictures as it is.", advanced=True
    )
    freeze_multi_modal_projector: bool = knob(
        True,
        "Leave the layers as they are that turn what was seen into what the language model reads.",
        advanced=True,
    )
    freeze_language_model: bool = knob(
        False,
        "Leave the language model as it is, and train only what sees.",
        advanced=True,
    )
