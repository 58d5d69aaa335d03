"""`tuner export` here and now, or with --queue in the queue."""

from __future__ import annotations

import sys

from tuner import samples
from tuner.cli.knob_help import knob_help
from tuner.cli.using import asks_for_help, read
from tuner.cli.words import OK
from tuner.config.export import ExportConfig
from tuner.config.run_sections import Export


def export(words: list[str]) -> int:
    """Export a model or an adapter: merged, as GGUF, or uploaded; LLaMA-Factory's merge files work unchanged."""
    from tuner.cli.training import run_here
    from tuner.jobs import exporting, submit

    if asks_for_help(words):
        print(knob_help("export", ExportConfig, own=Export))
        return OK
    queued, words = "--queue" in words, [word for word in words if word != "--queue"]
    config = read(ExportConfig, words)
    samples.lay_out_for(config.model_name_or_path)
    exporting.check(config)
    print(f"tuner: {exporting.told(exporting.estimate(config))}", file=sys.stderr)
    if not queued:
        return run_here(config)
    print(submit.submit(config).id)
    return OK
