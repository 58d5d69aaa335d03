"""The switch that takes the studio off the hub, for pages: a line of settings.yaml."""

from __future__ import annotations

import re
from contextlib import suppress

import yaml

from tuner.config.settings import go_offline, path
from tuner.runs.files import replace_text

_OFFLINE_LINE = re.compile(r"(?m)^offline:.*$")


def set_offline(wanted: bool) -> None:
    """Write the switch into the file, whose other lines stay as they are. Raises OSError."""
    kept = path().read_text(encoding="utf-8") if path().exists() else ""
    replace_text(path(), _with(kept, wanted))
    go_offline()


def _with(kept: str, wanted: bool) -> str:
    """The file's text with the switch. One that is not a name a line (JSON, say) is written anew, without its comments."""
    line = f"offline: {str(wanted).lower()}"
    text, changed = _OFFLINE_LINE.subn(line, kept)
    text = text if changed else "\n".join(filter(None, (kept.rstrip(), line))) + "\n"
    values = {**(yaml.safe_load(kept) or {}), "offline": wanted}
    with suppress(yaml.YAMLError):
        if yaml.safe_load(text) == values:
            return text
    return yaml.safe_dump(values, sort_keys=False)
