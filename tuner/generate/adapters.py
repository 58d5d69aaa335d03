"""Which adapter on a base answers: switched between steps, and off for the base alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tuner.models.adapter_loading import put_on

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BASE = ""
"""The name under which the base answers, every adapter off."""


class Switch(Protocol):
    """Makes a model answer as the adapter of a name."""

    def use(self, name: str) -> None: ...


class AsItIs:
    """A model that answers as it stands, whatever is on it."""

    def use(self, name: str) -> None:
        """There is nothing to switch."""


class Adapters:
    """The adapters of one base by name, read when they are first asked. PEFT's layers skip them for the base, which then
    answers exactly as without them."""

    def __init__(self, base: PreTrainedModel):
        self.base = base.requires_grad_(
            False
        )  # nothing is trained here, and frozen weights may be put together
        self.model: Any = base
        self.folders: dict[str, Path] = {}
        self.read: list[str] = []
        self.now: str | None = None

    def know(self, name: str, folder: Path) -> None:
        """Say where an adapter's files are."""
        self.folders.setdefault(name, folder)

    def use(self, name: str) -> None:
        """Answer as this adapter from here on; BASE is the base alone. Raises ConfigError for one that does not fit."""
        if name == self.now:
            return
        if name != BASE and name not in self.read:
            self._read(name)
        if self.read:
            self._switch(name)
        self.now = name

    def _read(self, name: str) -> None:
        self.now = None
        try:
            self.model = put_on(self.model, self.folders[name], name=_key(name))
        except Exception:
            self._forget(name)
            raise
        self.model.eval()
        self.read.append(name)

    def _forget(self, name: str) -> None:
        """Take off what was put on of an adapter that does not fit: the base must stay what it was."""
        if not self.read:
            _strip(self.base)
        elif _key(name) in self.model.peft_config:
            self.model.delete_adapter(_key(name))

    def _switch(self, name: str) -> None:
        if name == BASE:
            self.model.base_model.disable_adapter_layers()
            return
        self.model.base_model.enable_adapter_layers()
        self.model.set_adapter(_key(name), inference_mode=True)


def _strip(model: Any) -> None:
    """Put the layers back that PEFT wrapped."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    vars(model).pop("peft_config", None)
    wrapped = [(name, m) for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)]
    for name, layer in wrapped:
        if not any(name.startswith(f"{other}.") for other, _ in wrapped):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, layer.get_base_layer())


def _key(name: str) -> str:
    """A name that torch takes for a module's: without dots."""
    return "a" + name.replace(".", "_")
