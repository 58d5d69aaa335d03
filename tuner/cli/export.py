"""`tuner export` here and now; with --queue it waits its turn as every run does."""

from __future__ import annotations

import sys

from tuner import samples
from tuner.cli.words import OK
from tuner.config.export import ExportConfig
from tuner.config.inference import read_words


def export(words: list[str]) -> int:
    """Export a model or an adapter: merged, as GGUF, or uploaded; LLaMA-Factory's merge files work unchanged."""
    from tuner.cli.training import run_here
    from tuner.jobs import exporting, submit

    queued, words = "--queue" in words, [word for word in words if word != "--queue"]
    config, unused = read_words(ExportConfig, words)
    samples.lay_out_for(config.model_name_or_path)
    exporting.check(config)
    if unused:
        print(
            f"tuner: {', '.join(f'--{name}' for name in unused)} of training says nothing here.",
            file=sys.stderr,
        )
    print(f"tuner: {exporting.told(exporting.estimate(config))}", file=sys.stderr)
    if not queued:
        return run_here(config)
    print(submit.submit(config).id)
    return OK
