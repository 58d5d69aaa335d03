"""A run as Python: a script that does what `tuner train` does with the same values."""

from __future__ import annotations

from pathlib import Path
from pprint import pformat

from tuner.config.run_config import RunConfig, as_plain

_SCRIPT = """\
import os

os.environ.setdefault("TUNER_HOME", {home!r})  # where data, models and runs lie

from tuner.cli.training import run_here
from tuner.config.config import make

config = make(
{values}
)

if __name__ == "__main__":
    raise SystemExit(run_here(config))  # waits for its turn, trains, registers the adapter
"""


def script(config: RunConfig, home: Path) -> str:
    """Python that runs `config` in the studio at `home` and ends with the worker's exit code. Secrets are in it as in the
    command: only what was typed."""
    values = {name: as_plain(value) for name, value in config.changed().items()}
    lines = pformat(values, indent=4, width=88, sort_dicts=False).replace("{   ", "{\n    ", 1)
    body = lines.removesuffix("}") + ",\n}" if values else "{}"
    return _SCRIPT.format(
        home=str(home), values="\n".join(f"    {line}" if line else "" for line in body.split("\n"))
    )
