"""Importing transformers and PEFT in half the time: what a run does not need is left out.

transformers reads the source of all its models at each start, some three thousand files, to learn what they export.
What came of it is kept in the user's cache, for this version in this place. And it and PEFT import whatever they find
installed, be it pandas for tables or scipy for the losses of object detection.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from tuner import paths, process
from tuner.config import libraries
from tuner.config.config import Config
from tuner.config.models import read_config
from tuner.plan.facts import place
from tuner.runs.files import replacing

Structure = dict[frozenset[str], dict[str, set[str]]]
"""What modules export, by the libraries that they need."""
UNUSED = ("datasets", "pandas", "scipy", "sklearn")
"""transformers' Trainer tells data sets of `datasets` from others, and its rows here are never such."""


def begin() -> None:
    """Import what every stage of a training run builds on."""
    if "transformers" not in sys.modules:
        sys.meta_path.insert(0, _Remembering())
    with process.importing(), absent(UNUSED):
        import peft  # noqa: F401
        import transformers.trainer  # noqa: F401


@contextmanager
def without_bitsandbytes(config: Config) -> Iterator[None]:
    """A run in this block does without the library if it can: PEFT imports it for any adapter, and much of torch with it."""
    if _may_need_bitsandbytes(config):
        yield
        return
    try:
        with absent(["bitsandbytes"]):
            yield
    finally:
        if answers := sys.modules.get("peft.import_utils"):  # another run in this process may need it
            answers.is_bnb_available.cache_clear()
            answers.is_bnb_4bit_available.cache_clear()


@contextmanager
def absent(names: Sequence[str]) -> Iterator[None]:
    """Let libraries look as if they were not installed to whoever asks in this block; those imported before stay."""
    hidden: dict[str, Any] = {name: None for name in names if name not in sys.modules}
    sys.modules.update(hidden)  # None is how Python spells "there is none"
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _may_need_bitsandbytes(config: Config) -> bool:
    """Whether the config or its model asks for the library, or the model is not here to be looked at."""
    said = read_config(place(str(config.model_name_or_path)))
    asked = {library.module for library in libraries.asked(config)}
    return not said or "quantization_config" in said or "bitsandbytes" in asked


class _Remembering(MetaPathFinder):
    """Waits for the module of transformers that finds out what its models export, and lets it remember."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "transformers.utils.import_utils":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            run: Any = spec.loader
            run.exec_module = _then_remember(run.exec_module)
        return spec


def _then_remember(execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    def exec_module(module: ModuleType) -> None:
        execute(module)
        if found := getattr(module, "define_import_structure", None):
            module.define_import_structure = lru_cache(remembered(found))  # type: ignore[attr-defined]

    return exec_module


def remembered(
    find: Callable[[str | Path, str | None], Structure],
) -> Callable[[str | Path, str | None], Structure]:
    """`find`, which is given a folder of a package and a prefix, with its answers for all models kept on disk."""

    def known(module_path: str | Path, prefix: str | None = None) -> Structure:
        folder = Path(module_path) if Path(module_path).is_dir() else Path(module_path).parent
        if folder.name != "models" or not _is_installed(folder):
            return find(module_path, prefix)
        kept = paths.user_cache() / f"transformers-{version('transformers')}-{prefix or 'alone'}.json"
        mark = f"{folder} {folder.stat().st_mtime_ns}"
        with suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(kept.read_text(encoding="utf-8"))
            if said["of"] == mark:
                return _from_plain(said["exports"])
        found = find(module_path, prefix)
        _keep(kept, json.dumps({"of": mark, "exports": _to_plain(found)}))
        return found

    return known


def _is_installed(folder: Path) -> bool:
    """Whether files change with the version only, as they do not in a checkout."""
    return bool({"site-packages", "dist-packages"} & set(folder.parts))


def _to_plain(found: Structure) -> list[Any]:
    return [[sorted(needs), {m: sorted(n) for m, n in names.items()}] for needs, names in found.items()]


def _from_plain(said: list[Any]) -> Structure:
    return {frozenset(needs): {m: set(n) for m, n in names.items()} for needs, names in said}


def _keep(file: Path, content: str) -> None:
    with suppress(OSError):  # it is looked up again then
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as fresh:
            fresh.write_text(content, encoding="utf-8")
