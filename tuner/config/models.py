"""What a model's name or folder says about it before anything is loaded: family, template, where models lie.

Nothing here imports torch or transformers: the form asks these questions at every keystroke.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from tuner import paths
from tuner.config.knobs import ConfigError, Problem
from tuner.text.lookup import tr

LegacyKind = Literal["qwen", "internlm2"]

_TABLE = Path(__file__).with_name("models.yaml")
_CHAT = r"(?:^|[-_.])(?:chat|instruct|it|distill|thinking)(?:[-_.]|$)"
_LEGACY: dict[tuple[str, str], LegacyKind] = {
    ("qwen", "QWenLMHeadModel"): "qwen",
    ("internlm2", "InternLM2ForCausalLM"): "internlm2",
}
_SEARCH_DEPTH = 3
_SEARCH_LIMIT = 5000  # folders looked into: a root may turn out to be a home directory


class ModelError(ConfigError):
    """A model that cannot be used as it is; built from the one sentence that says what to do."""

    def __init__(self, sentence: str):
        super().__init__([Problem("model_name_or_path", sentence)])


@dataclass(frozen=True)
class ModelEntry:
    """A model of the table; `name` is the hub id without its owner, template None means its tokenizer's own."""

    name: str
    hub_id: str
    family: str
    template: str | None


@dataclass(frozen=True)
class _Family:
    name: str
    template: str | None
    match: re.Pattern[str]
    chat: re.Pattern[str]
    hub_ids: tuple[str, ...]

    def template_of(self, model: str) -> str | None:
        return self.template if self.chat.search(model) else "default"


# ---------------------------------------------------------------- the table


def known_models() -> list[ModelEntry]:
    """Every model of the table, in its order."""
    return [
        ModelEntry(model_name(hub_id), hub_id, family.name, template_for(hub_id))
        for family in _families()
        for hub_id in family.hub_ids
    ]


def template_for(model_name_or_path: str) -> str | None:
    """The template that goes with a hub id or folder name; None: take the tokenizer's own chat template.

    A base model of a known family gets "default", as in LLaMA-Factory 0.9.5; an unknown name gets None.
    """
    name = model_name(model_name_or_path)
    for family in _families():
        if family.match.match(name):
            return family.template_of(name)
    return None


def model_name(model_name_or_path: str) -> str:
    """The model's own name: the last part of a hub id or path, seen through the hub caches' folder names."""
    parts = [part for part in re.split(r"[/\\]+", model_name_or_path.strip()) if part]
    for part in reversed(parts):
        if part.startswith("models--"):  # .../models--Qwen--Qwen2.5-7B/snapshots/<commit>
            return part.split("--")[-1]
    # ModelScope's cache writes a dot as three underscores.
    return parts[-1].replace("___", ".") if parts else ""


@cache
def _families() -> tuple[_Family, ...]:
    rows = yaml.safe_load(_TABLE.read_text(encoding="utf-8"))
    return tuple(
        _Family(
            name=row["family"],
            template=row["template"],
            match=re.compile(row["match"], re.IGNORECASE),
            chat=re.compile(row.get("chat", _CHAT), re.IGNORECASE),
            hub_ids=tuple(hub_id for line in row.get("models", ()) for hub_id in _expand(line)),
        )
        for row in rows
    )


def _expand(line: str) -> Iterator[str]:
    """'a-{1,2}' -> 'a-1', 'a-2'."""
    brace = re.search(r"\{([^{}]*)\}", line)
    if brace is None:
        yield line
        return
    for choice in brace.group(1).split(","):
        yield from _expand(line[: brace.start()] + choice + line[brace.end() :])


# ---------------------------------------------------------------- models on this machine


def model_roots() -> list[Path]:
    """Where models usually lie: the studio's own folders, then `models` in it, at home and at the root."""
    studio = paths.home()
    own = [paths.datasets(), paths.models(), studio / "saves", studio / "models"]
    return [*own, Path.home() / "models", Path("/models")]


def local_models(roots: Sequence[Path]) -> list[Path]:
    """Folders under `roots`, three levels deep, with a config.json and weights this studio reads; sorted.

    Hidden folders and checkpoint-* folders are passed over, links are not followed.
    """
    found: set[Path] = set()
    for root in roots:
        found.update(folder for folder in _folders(root) if is_model_folder(folder))
    return sorted(found)


def is_model_folder(folder: Path) -> bool:
    """True for a folder with config.json and safetensors; .bin shards count for the legacy kinds only."""
    if not (folder / "config.json").is_file():
        return False
    if _has_file(folder, "*.safetensors"):
        return True
    return legacy_kind(folder) is not None and _has_file(folder, "*.bin")


def hub_cache_models() -> list[str]:
    """Hub ids whose weights lie in the Hugging Face cache (HF_HUB_CACHE, HF_HOME), sorted."""
    return sorted(
        folder.name.removeprefix("models--").replace("--", "/")
        for folder in _listed(hub_cache_folder())
        if folder.name.startswith("models--")
        and any(is_model_folder(snapshot) for snapshot in _listed(folder / "snapshots"))
    )


def hub_cache_folder() -> Path:
    """The hub cache as huggingface_hub resolves it (its environment variables, in its order)."""
    env = os.environ
    home = env.get("HF_HOME") or str(Path(env.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    folder = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or str(Path(home) / "hub")
    return Path(os.path.expandvars(folder)).expanduser()


def _folders(root: Path) -> Iterator[Path]:
    level = [root]
    seen = 0
    for _ in range(_SEARCH_DEPTH + 1):
        yield from level
        seen += len(level)
        if seen > _SEARCH_LIMIT:
            return
        level = [child for folder in level for child in _listed(folder) if _worth_a_look(child)]


def _worth_a_look(folder: Path) -> bool:
    return not (folder.name.startswith((".", "checkpoint-")) or folder.is_symlink())


def _listed(folder: Path) -> list[Path]:
    """Sub-folders, or none where the folder is missing or may not be read."""
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir())
    except OSError:
        return []


def _has_file(folder: Path, pattern: str) -> bool:
    # is_file follows links: a hub cache entry whose blob is gone does not count.
    return any(path.is_file() for path in folder.glob(pattern))


# ---------------------------------------------------------------- models that bring code


def legacy_kind(folder: Path) -> LegacyKind | None:
    """Which checkpoint format of its own, with code of its own, this is: the first Qwen's, InternLM2's, or none."""
    config = read_config(folder)
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else ""
    return _LEGACY.get((str(config.get("model_type")), str(first)))


def needs_remote_code(folder: Path) -> str | None:
    """The sentence to show before code that ships with a model may run; None when it needs no such code."""
    config = read_config(folder)
    model_type = str(config.get("model_type", ""))
    if not config.get("auto_map") or model_type in native_model_types() or legacy_kind(folder):
        return None
    return tr(
        '{model_name} is of the type "{model_type}", which transformers does not know: loading it runs '
        "Python code that came with the model, with your rights on this machine; if you trust its author, "
        "say so with --trust_remote_code True.",
        model_name=model_name(str(folder)),
        model_type=model_type,
    )


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as it is on disk, before transformers rewrites it; {} when missing or not a JSON object."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


@cache
def native_model_types() -> frozenset[str]:
    """The model types the installed transformers knows, read from its source as text.

    Importing it costs seconds and a gigabyte; a list of our own would age.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    folder = Path(spec.submodule_search_locations[0]) / "models" / "auto"
    sources = (folder / name for name in ("auto_mappings.py", "configuration_auto.py"))
    text = "".join(path.read_text(encoding="utf-8") for path in sources if path.is_file())
    rows = re.findall(
        r'(?:\(\s*"([^"]+)",|"([^"]+)":)\s*"\w+Config"', text
    )  # ("llama", "LlamaConfig") or a dict's
    return frozenset(pair or keyed for pair, keyed in rows)


# ---------------------------------------------------------------- adapters

_TAKES_APART = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts that change the base's weights when the adapter is made; PEFT makes it again when it loads one."""


def adapter_refusal(folder: Path) -> str | None:
    """Why an adapter does not fit the base that it names, as the end of a sentence about it; None where it does.

    What such an adapter was trained on, the base without what was taken out, is not kept; PEFT decomposes the base again
    at loading, and a fast decomposition (pissa_niter_N) is random: it is another model every time.
    """
    try:
        start = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get(
            "init_lora_weights"
        )
    except (OSError, ValueError, AttributeError):
        return None  # whether there is one is another question
    if not str(start).lower().startswith(_TAKES_APART):
        return None
    there = folder / "pissa_converted"
    remedy = (
        tr("name {there}, which is converted.", there=there)
        if (there / "adapter_config.json").is_file()
        else tr(
            "convert it to plain LoRA where it was trained (PEFT: save_pretrained with "
            "path_initial_model_for_weight_conversion; LLaMA-Factory: --pissa_convert True)."
        )
    )
    return tr(
        "was started by {start}, which changed the model's weights, and does not fit the model as it is; {remedy}",
        start=start,
        remedy=remedy,
    )
