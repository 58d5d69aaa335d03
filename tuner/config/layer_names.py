"""Which layers a model has, read from the heads of its weight files: in milliseconds, without torch or the weights.

Only for models whose files name their layers as transformers does; of others nothing is known before they are built.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.config.knobs import Problem, nearest
from tuner.text.lookup import tr

if TYPE_CHECKING:
    from tuner.config.config import Config

PLAIN = frozenset(
    {
        "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "phi3", "starcoder2", "gpt_neox", "olmo2", "granite",
        "smollm3", "stablelm", "cohere",
    }
)  # fmt: skip
"""Model types whose weights are named in the file as the modules are in the model."""
PATTERN = re.compile(r"[\\^$*+?()\[\]|]")
"""What makes a single name of lora_target a regular expression over whole names, as PEFT takes it."""


def problems(config: Config, folder: Path, model_type: str) -> Iterator[Problem]:
    """Names of layers that the model in `folder` does not have, each in one sentence."""
    if model_type not in PLAIN or config.finetuning_type not in ("lora", "oft"):
        return
    stamps = tuple((str(f), f.stat().st_mtime_ns) for f in sorted(folder.glob("*.safetensors")))
    names = _modules(stamps)
    if not names:
        return
    knob = (
        "oft_target" if config.finetuning_type == "oft" and config.oft_target != ("all",) else "lora_target"
    )
    asked = getattr(config, knob)
    if asked != ("all",):
        yield from unknown(knob, asked, names, linear(names))
    yield from unknown("additional_target", config.additional_target, set(names) | {"lm_head", "score"}, None)


def unknown(
    knob: str, asked: tuple[str, ...], modules: dict[str, int] | set[str], shown: list[str] | None
) -> Iterator[Problem]:
    """One problem for each name that fits no module; `shown` are those to choose from."""
    choices = sorted({name.rsplit(".", 1)[-1] for name in modules if name}) if shown is None else shown
    for name in asked:
        if fits(name, modules, alone=len(asked) == 1 and knob != "additional_target"):
            continue
        near = nearest(name, choices)
        hint = (
            tr("did you mean {near}?", near=near)
            if near
            else tr("it has {choices}.", choices=", ".join(choices))
        )
        rest = [near if other == name else other for other in asked]
        mend = {knob: rest if near else ["all"]} if knob != "additional_target" or near else {}
        yield Problem(
            knob,
            tr("--{knob} {name} is no layer of this model; {hint}", knob=knob, name=name, hint=hint),
            mend,
        )


def fits(name: str, modules: dict[str, int] | set[str], alone: bool) -> bool:
    """Whether a name, or alone a pattern, means a module, as PEFT looks for it."""
    if alone and PATTERN.search(name):
        try:
            return any(re.fullmatch(name, module) for module in modules)
        except re.error:
            return False
    return any(module == name or module.endswith(f".{name}") for module in modules)


def linear(modules: dict[str, int]) -> list[str]:
    """The last names of matrices inside the layers."""
    return sorted(
        {n.rsplit(".", 1)[-1] for n, dims in modules.items() if dims == 2 and ".layers." in f".{n}."}
    )


@lru_cache(maxsize=16)
def _modules(stamps: tuple[tuple[str, int], ...]) -> dict[str, int]:
    """Every module that has weights, and those it is inside of: its name and how many dimensions its weight has."""
    found: dict[str, int] = {}
    for file, _ in stamps:
        try:
            with Path(file).open("rb") as raw:
                (size,) = struct.unpack("<Q", raw.read(8))
                header = json.loads(raw.read(min(size, 100 << 20)))
        except (OSError, ValueError, struct.error):
            return {}
        for name, row in header.items():
            if name == "__metadata__":
                continue
            module, _, leaf = name.rpartition(".")
            found[module] = len(row["shape"]) if leaf == "weight" else found.get(module, 0)
            while module := module.rpartition(".")[0]:
                found.setdefault(module, 0)
    return found
