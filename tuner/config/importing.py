"""The knobs of a run that takes in an adapter which was trained elsewhere."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from tuner.config.knobs import OptionalText, Section, knob
from tuner.config.run_config import RunConfig


class Importing(Section):
    title = "Import"
    icon = ":material/input:"

    adapter_name_or_path: OptionalText = knob(
        None, "The folder that PEFT wrote: adapter_config.json and safetensors."
    )
    model_name_or_path: OptionalText = knob(
        None, "The model that it was trained on: a folder or a hub name; empty takes the one that it names."
    )
    adapter_name: OptionalText = knob(None, "What it is called here; empty takes the folder's name.")
    use_cpu: bool = knob(True, "Take no GPU; none is needed.", shown=False)


class ImportConfig(RunConfig, Importing):
    """What is taken in, and what it belongs to."""

    of_kind: ClassVar[str] = "import"

    @property
    def called(self) -> str:
        """What the version and its run are called."""
        return self.adapter_name or Path(str(self.adapter_name_or_path)).name


def base_of(folder: Path) -> str:
    """The base model that an adapter names; empty where it names none."""
    with suppress(OSError, ValueError, AttributeError):
        said = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return str(said.get("base_model_name_or_path") or "")
    return ""
