"""The switch that takes the studio off the hub, for pages: a line of settings.yaml."""

from __future__ import annotations

import re

from tuner.config.settings import go_offline, path
from tuner.runs.files import replace_text

_OFFLINE_LINE = re.compile(r"(?m)^offline:.*$")


def set_offline(wanted: bool) -> None:
    """Write the switch into the file, whose other lines stay as they are. Raises OSError."""
    kept = path().read_text(encoding="utf-8") if path().exists() else ""
    line = f"offline: {str(wanted).lower()}"
    text, changed = _OFFLINE_LINE.subn(line, kept)
    replace_text(path(), text if changed else "\n".join(filter(None, (kept.rstrip(), line))) + "\n")
    go_offline()
