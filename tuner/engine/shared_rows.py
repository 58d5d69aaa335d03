"""A run's rows, encoded once: its first process writes them down, the others read the same memory.

The others also wait for it before they look for the model: what must be downloaded or merged first is done once.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from tuner.config.config import Config
from tuner.data.decision_rows import Parser
from tuner.data.decisions import questions_of
from tuner.data.prepare import Prepared, prepare
from tuner.data.report import Report
from tuner.data.rows import Rows
from tuner.data.stream import Stream
from tuner.data.template_choice import template_of
from tuner.data.tokens import Tokenizer
from tuner.engine.live import LiveRun
from tuner.jobs import ranks

READY, NAMES = "ready", "names.json"


def wait_for_the_first(run: LiveRun) -> None:
    """In the others: until the first process has found the model and encoded the rows. They end with it if it fails."""
    while run.quiet.is_set() and not (ranks.folder(run.run) / READY).exists():
        time.sleep(0.05)


def let_others_begin(run: LiveRun, config: Config) -> None:
    """In the first: what is shared is there."""
    if config.processes > 1 and not run.quiet.is_set():
        (ranks.folder(run.run) / READY).touch()


def prepared(config: Config, words: Tokenizer, run: LiveRun) -> Prepared:
    """The rows of a run: encoded by its first process, read by the others. Streamed ones are read by each."""
    folder = ranks.folder(run.run) / "rows"
    if run.quiet.is_set() and folder.is_dir():
        return _read(folder, config, words)
    made = prepare(config, words, run.progress, _parser(config))
    if config.processes > 1 and not run.quiet.is_set() and not isinstance(made.train, Stream):
        _write(folder, made)
    return made


def _parser(config: Config) -> Parser:
    """What reads questions: transformers' own parser has its say, which other stages need not load for this."""
    if config.kind.rows != "decisions":
        return questions_of
    from tuner.models.questions import parsed_by_transformers

    return parsed_by_transformers


def _write(folder: Path, made: Prepared) -> None:
    folder.mkdir()
    (folder / NAMES).write_text(json.dumps(list(made.eval)), encoding="utf-8")
    for number, rows in enumerate([made.train, *made.eval.values()]):
        rows.save(folder / str(number))


def _read(folder: Path, config: Config, words: Tokenizer) -> Prepared:
    names = json.loads((folder / NAMES).read_text(encoding="utf-8"))
    train, *held_out = [Rows.saved(folder / str(number)) for number in range(1 + len(names))]
    template = template_of(config, words)
    report = Report(stage=config.stage, template=template.name, cutoff_len=config.cutoff_len)
    return Prepared(train, dict(zip(names, held_out, strict=True)), report, template=template)
