"""The part of a model that sees: its image processor, what its pictures become, and that it stays in step among ranks."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tuner.config.config import Config
from tuner.config.vision import Family, family, part_of, takes_pictures
from tuner.data.pictures.opening import load
from tuner.models.llama_family import causal_lm

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedModel

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""What a model's folder has beside the tokenizer's files where it takes pictures."""


def parts_of(model: Any) -> Family | None:
    """How a loaded model's parts are called; None where it takes no pictures."""
    return family(causal_lm(model).config.to_dict())


def tower_of(model: Any) -> str:
    """The name of the module that reads pixels. Raises TypeError for a model that takes no pictures."""
    named = parts_of(model)
    if named is None:
        raise TypeError(f"{type(model).__name__} takes no pictures")
    return named.tower


def frozen_modules(config: Config, model: Any) -> str | None:
    """A pattern over whole names of modules that get no adapter: those of the parts that are left as they are, and what cuts
    a picture into patches, which is no matrix. None for a model without pictures."""
    named = parts_of(model)
    if named is None:
        return None
    frozen = frozen_parts(config)
    left = [rf"{re.escape(named.tower)}\..*patch_embed.*"]
    if "tower" in frozen:
        left.append(_all_of(named.tower, but=named.projector))
    if "projector" in frozen:
        left.append(_all_of(named.projector))
    if "language" in frozen:
        left += map(_all_of, named.language)
    return "|".join(left)


def _all_of(module: str, but: str = "") -> str:
    """A pattern of the modules in this one, but for those in another."""
    inside = but.removeprefix(f"{module}.") if but.startswith(f"{module}.") else ""
    without = rf"(?!{re.escape(inside)}(\.|$))" if inside else ""
    return rf"{re.escape(module)}\.{without}.*" if inside else rf"{re.escape(module)}(\..*)?"


def frozen_parts(config: Config) -> frozenset[str]:
    """The parts that a config leaves as they are."""
    said = {
        "tower": config.freeze_vision_tower,
        "projector": config.freeze_multi_modal_projector,
        "language": config.freeze_language_model,
    }
    return frozenset(part for part, frozen in said.items() if frozen)


def freeze(config: Config, model: PreTrainedModel) -> None:
    """Freeze the weights of the parts that a config leaves as they are."""
    named = parts_of(model)
    if named is None:
        return
    for name, weight in model.named_parameters():
        if part_of(named, name) in frozen_parts(config):
            weight.requires_grad_(False)


@lru_cache(maxsize=4)
def image_processor(folder: Path) -> Any:
    """A model's image processor without torchvision, alone: the whole processor of some models wants torchvision for videos.

    It is the one over Pillow on every machine, so that a picture has the same pixels on each of them.
    """
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder, backend="pil")


def copy_processor(source: Path, folder: Path) -> None:
    """A model's processor settings beside weights or an adapter made from it, where they are not there yet."""
    for name in PROCESSOR_FILES:
        if (source / name).is_file() and not (folder / name).exists():
            shutil.copyfile(source / name, folder / name)


@dataclass(frozen=True)
class Sight:
    """How rows' pictures become what a model takes beside ids: `pixel_values`, their grids or masks, kinds of tokens.

    The processor of `folder` gets, where `nested`, a list of pictures for each row, else one for all; `types` is what the model calls the kinds of
    tokens, empty where it needs none; `options` go to each call of the processor.
    """

    folder: Path
    nested: bool
    types: str
    image_token: int
    takes: frozenset[str]
    max_pixels: int
    min_pixels: int
    options: Mapping[str, Any]

    def __call__(self, pictures: Sequence[Sequence[str]], ids: Tensor) -> dict[str, Tensor]:
        """What is added to a batch of rows with these pictures and ids [B, T]; a row may have none."""
        return {**self.pixels(pictures), **self.kinds(ids)}

    def open(self, path: str) -> Image:
        """A picture as it is shown to the model."""
        picture: Image = load(path, self.max_pixels, self.min_pixels)
        return picture

    def pixels(self, pictures: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """The processor's tensors of the pictures in these files, a list for each row; nothing where no row has one."""
        return self.processed([[self.open(path) for path in row] for row in pictures])

    def processed(self, pictures: Sequence[Sequence[Image]]) -> dict[str, Tensor]:
        """The same of pictures that are open."""
        flat = [picture for row in pictures for picture in row]
        if not flat:
            return {}
        given = [list(row) for row in pictures] if self.nested else flat
        made = image_processor(self.folder)(images=given, return_tensors="pt", **self.options)
        return {name: value for name, value in made.items() if name in self.takes}

    def kinds(self, ids: Tensor) -> dict[str, Tensor]:
        """1 for a picture's token and 0 for text [B, T], under the model's name for it."""
        return {self.types: (ids == self.image_token).long()} if self.types else {}


_TYPES = ("mm_token_type_ids", "token_type_ids")


def sight_of(model: Any, folder: Path, config: Config) -> Sight | None:
    """How a loaded model's pictures are made ready; None where it takes none."""
    inner = causal_lm(model)
    if parts_of(inner) is None:
        return None
    takes = frozenset(inspect.signature(type(inner).forward).parameters)
    kind = inner.config.model_type
    return Sight(
        folder=folder,
        nested=kind in ("smolvlm", "idefics3"),
        types=next((name for name in _TYPES if name in takes), ""),
        image_token=int(inner.config.image_token_id),
        takes=takes,
        max_pixels=config.image_max_pixels,
        min_pixels=config.image_min_pixels,
        options={"do_pan_and_scan": config.image_do_pan_and_scan} if kind == "gemma3" else {},
    )


def sees(folder: Path) -> bool:
    """Whether the model of a folder takes pictures."""
    try:
        return takes_pictures(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False


def seeing_is_learnt(model: Any) -> bool:
    """Whether anything is trained of the parts that see."""
    inner, named = causal_lm(model), parts_of(model)
    return named is not None and any(
        w.requires_grad for n, w in inner.named_parameters() if part_of(named, n) != "language"
    )


def look_without_gradients(model: Any) -> None:
    """Keep nothing of a look at pictures for the backward pass, which no weight there wants: recomputing layers would ask
    for it, because it lets every input have a gradient."""
    base = causal_lm(model).base_model
    base.get_image_features = torch.no_grad()(base.get_image_features)


def keep_in_step(model: Any, sight: Sight) -> None:
    """Let a batch without pictures have a gradient of nothing for what looks at them, where that is trained.

    Among several processes each waits for the others' gradients: one without would make all wait for ever. A grey square is
    looked at, and counts nothing.
    """
    inner = causal_lm(model)

    def beside(module: nn.Module, given: Any, named_given: dict[str, Any], output: Any) -> Any:
        if torch.is_grad_enabled() and module.training and named_given.get("pixel_values") is None:
            output.last_hidden_state = output.last_hidden_state + 0.0 * _seen(inner, _blank(sight))
        return output

    inner.base_model.register_forward_hook(beside, with_kwargs=True)


def _blank(sight: Sight) -> dict[str, Tensor]:
    from PIL import Image

    return sight.processed([[Image.new("RGB", (56, 56), (127, 127, 127))]])


def _seen(inner: Any, pixels: Mapping[str, Tensor]) -> Tensor:
    """The sum of all that a model makes of pixels (scalar)."""
    device = next(inner.parameters()).device
    made = inner.base_model.get_image_features(
        **{name: value.to(device) for name, value in pixels.items()}, return_dict=True
    )
    parts = [*_tensors(made.pooler_output), *_tensors(getattr(made, "deepstack_features", None))]
    return torch.stack([part.float().sum() for part in parts]).sum()


def _tensors(value: Any) -> list[Tensor]:
    if value is None:
        return []
    return [value] if isinstance(value, Tensor) else list(value)
