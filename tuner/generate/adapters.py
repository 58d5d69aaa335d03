"""Which adapter on a base answers: switched between steps, and off for the base alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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
    """The adapters that were put on one base, by name. PEFT's layers skip them for the base, which then answers exactly."""

    def __init__(self, model: PreTrainedModel):
        self.base = model
        self.model: Any = model
        self.names: list[str] = []
        self.now: str | None = None

    def add(self, name: str, folder: Path) -> None:
        """Read an adapter's folder. Raises what PEFT raises for one that does not fit the base."""
        from peft import PeftModel

        if name in self.names:
            return
        self.now = None
        if self.names:
            self.model.load_adapter(str(folder), adapter_name=_key(name), is_trainable=False)
        else:
            self.model = PeftModel.from_pretrained(self.base, str(folder), adapter_name=_key(name))
        self.model.eval()
        self.names.append(name)

    def use(self, name: str) -> None:
        """Answer as this adapter from here on; BASE is the base alone."""
        if name == self.now or not self.names:
            return
        if name == BASE:
            self.model.base_model.disable_adapter_layers()
        else:
            self.model.base_model.enable_adapter_layers()
            self.model.set_adapter(_key(name), inference_mode=True)
        self.now = name


def _key(name: str) -> str:
    """A name that torch takes for a module: none of its own dots."""
    return "".join(c if c.isalnum() or c in "-_@" else f"%{ord(c):x}" for c in name)

