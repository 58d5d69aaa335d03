"""An export, read aloud: what is exported is found, written aside in the form that was asked for, tried, and named."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tuner.config.export import ExportConfig
from tuner.export import folder, source
from tuner.export.forms import FORMS, Made
from tuner.export.source import Exported
from tuner.jobs import exporting
from tuner.jobs.live import Live, Outcome
from tuner.text.message import message, to_plain


def export(config: ExportConfig, live: Live) -> Outcome:
    """Export a model as its config says. Raises ConfigError, StoppedError."""
    exporting.check(config)
    began = time.monotonic()
    target = exporting.target(config)
    with live.phase("finding_model"):
        what = source.found(config)
    with folder.filled(target) as fresh:
        exporting.check(config)  # whoever had the folder until now may have filled it
        made = _form(config)(what, fresh, live)
        live.check()
        folder.record(fresh, _facts(what, fresh, made, time.monotonic() - began))
    if found := _metrics(made):
        live.measured(0, found)
    for said in made.notes:
        live.note(said)
    live.note(message("note.exported", folder=str(target)))
    if config.export_hub_model_id:
        with live.phase("uploading"):
            from tuner.export.hub import push

            live.note(message("note.pushed", address=push(target, config.export_hub_model_id)))
    return Outcome(files=(_kept(live, target),))


def _form(config: ExportConfig) -> Callable[[Exported, Path, Live], Made]:
    return FORMS["gptq" if config.export_quantization_bit else config.export_format]


def _facts(what: Exported, fresh: Path, made: Made, seconds: float) -> dict[str, object]:
    return {
        "format": what.asked.export_format,
        "outtype": made.outtype,
        "model": what.asked.model_name_or_path,
        "adapters": list(what.asked.adapter_name_or_path),
        "folder": str(exporting.target(what.asked)),
        "files": folder.files(fresh),
        "answers": made.answers,
        "tokenizer": made.tokenizer,
        "notes": [to_plain(said) for said in made.notes],
        "seconds": round(seconds, 1),
    }


def _metrics(made: Made) -> dict[str, float]:
    """The largest difference to the source, for the run's record."""
    found = [row["difference"] for row in made.answers if row["difference"] is not None]
    return {"export_difference": max(found)} if found else {}


def _kept(live: Live, target: Path) -> Path:
    """A copy of the export's record among the run's own files: the export itself may be moved away."""
    live.output.mkdir(parents=True, exist_ok=True)
    copy = live.output / exporting.RECORD
    copy.write_bytes((target / exporting.RECORD).read_bytes())
    return copy
