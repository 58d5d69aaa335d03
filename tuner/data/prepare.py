"""From a config to rows of ids: the one call that every stage makes, and the path that the data report takes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tuner import private
from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem
from tuner.data import tokenized_cache
from tuner.data.catalog import pick, pick_eval
from tuner.data.decision_rows import Parser, measuring
from tuner.data.decision_rows import encoder as encoder_of
from tuner.data.decisions import questions_of
from tuner.data.encode import Encoder, packs
from tuner.data.entries import Entry
from tuner.data.mix import Ints, kept_aside, mix, split
from tuner.data.pack import groups, pack
from tuner.data.reading import Reader, ReadSet, Source
from tuner.data.report import Progress, Report, steps
from tuner.data.rows import Rows
from tuner.data.stream import Stream
from tuner.data.template_choice import template_of
from tuner.data.templates import Template
from tuner.data.tokens import Tokenizer
from tuner.text.lookup import tr
from tuner.text.message import message

FIRST_LOOK = 200
"""Rows of each set that a streamed run looks at before it begins."""


@dataclass(frozen=True)
class DataInput:
    """A data set as a run's record names it: where it came from, what exactly it was, and how many rows were used."""

    name: str
    source: str
    digest: str
    rows: int


@dataclass
class Prepared:
    """What a stage trains on.

    `train` is a sequence of rows, or a `Stream` to iterate over when the config streams. `eval` has one set under "",
    or each by its name with eval_on_each_dataset.
    """

    train: Any
    eval: dict[str, Sequence[dict[str, Any]]]
    report: Report
    inputs: list[DataInput] = field(default_factory=list)
    template: Template | None = None


def prepare(
    config: Config, tokenizer: Tokenizer, progress: Progress | None = None, parse: Parser = questions_of
) -> Prepared:
    """Read, convert, render, tokenise, cut, mix and split the data of a config; `parse` reads questions of records.

    Raises ConfigError when a set cannot be read or fits the stage ill, or when nothing is left to train on.
    """
    folder = tokenized_cache.folder_of(config)
    if (
        folder
        and tokenized_cache.holds_rows(folder)
        and not (config.overwrite_cache and tokenized_cache.ours(folder))
    ):
        return _from_disk(folder, config, tokenizer)
    if folder:
        tokenized_cache.claim(folder)
    if config.streaming:
        return _streamed(config, tokenizer, progress, parse)
    prepared = read_all(config, tokenizer, progress, keep=True, parse=parse)
    if folder:
        parts = {"train": prepared.train} | {
            name or "validation": rows for name, rows in prepared.eval.items()
        }
        about: dict[str, Any] = {
            "stage": config.stage,
            "template": prepared.report.template,
            "tokenizer": tokenizer.digest,
        }
        about["pictures"] = _picture_sizes(config)
        with private.as_the_person():
            tokenized_cache.write(folder, parts, about)
    return prepared


def read_all(
    config: Config,
    tokenizer: Tokenizer,
    progress: Progress | None,
    keep: bool,
    spread: int = 0,
    parse: Parser = questions_of,
) -> Prepared:
    """As `prepare`; without `keep` rows are counted and let go, and an empty result is a report like any other.

    With `spread`, which is for reports, only so many rows of each set are read, evenly from all of it.
    """
    encoder, train, aside = opened(config, tokenizer, parse)
    weight = 1 / (len(train) + len(aside) or 1)
    reader = Reader(encoder, progress, keep, spread)
    sets = [reader.read(entry, i * weight, weight) for i, entry in enumerate(train)]
    report = reader.tally.done()
    if keep and train and not report.kept:
        raise ConfigError([Problem("dataset", report.why_nothing())])
    tester = Reader(measuring(encoder), progress, keep, spread)
    tested = [tester.read(e, (len(train) + i) * weight, weight) for i, e in enumerate(aside)]
    if tested:
        report.evaluation = tester.tally.done()
    order, learn, away = _orders(config, sets)
    _count(config, report, reader, tester, order, learn, away)
    prepared = Prepared([], {}, report, template=encoder.template)
    if report.sampled:
        report.say_sampled()
    if keep:
        _fill(prepared, config, sets, tested, learn, away)
    if progress:
        progress(1.0, message("doing.rows_ready", kept=report.kept, read=report.read))
    return prepared


def report_of(
    config: Config, tokenizer: Tokenizer, progress: Progress | None = None, spread: int = 0
) -> Report:
    """The report of a config's data, by the very path that training takes. Raises ConfigError when nothing can be read.

    With `spread` only so many rows of each set are read, evenly from all of it; the report says so.
    """
    return read_all(config, tokenizer, progress, keep=False, spread=spread).report


def opened(
    config: Config, tokenizer: Tokenizer, parse: Parser = questions_of
) -> tuple[Encoder, list[Entry], list[Entry]]:
    """The encoder, the sets to learn from and those to measure on. Raises ConfigError."""
    template = template_of(config, tokenizer)
    train, aside = pick(config), pick_eval(config)
    problems = [
        Problem(knob, said)
        for knob, entries in (("dataset", train), ("eval_dataset", aside))
        for entry in entries
        if (said := entry.fits(config.stage))
    ]
    encoder = encoder_of(config, template, tokenizer, parse)
    problems += [
        Problem(knob, unseen(entry, str(config.model_name_or_path)))
        for knob, entries in (("dataset", train), ("eval_dataset", aside))
        for entry in entries
        if not encoder.pictures and entry.pictures and not entry.media
    ]
    if config.train_on_prompt and template.eos_between:
        sentence = tr(
            "--train_on_prompt does not work with --template {name}, whose answers end where the next "
            "turn begins; leave it off.",
            name=template.name,
        )
        problems.append(Problem("train_on_prompt", sentence, {"train_on_prompt": False}))
    if problems:
        raise ConfigError(problems)
    return encoder, train, aside


def unseen(entry: Entry, model: str) -> str:
    """What is said of a set with pictures where the model reads text alone."""
    return tr(
        "{name} holds pictures, and {model} reads text alone; choose a model that sees (Qwen2.5-VL, Qwen3-VL, Gemma 3, "
        "SmolVLM), or a set of text.",
        name=entry.name,
        model=model,
    )


def _shares(config: Config) -> list[float] | None:
    return [float(s) for s in config.interleave_probs.split(",")] if config.interleave_probs else None


def _orders(config: Config, sets: Sequence[ReadSet]) -> tuple[Ints, Ints, Ints]:
    """The order of all rows, of those learnt from, and the rows kept aside, each numbered through all sets.

    A row kept aside is nowhere in what is learnt, also when mixing repeats it.
    """
    order = mix([s.count for s in sets], config.mix_strategy, _shares(config), config.seed)
    rows = np.unique(order) if config.mix_strategy != "concat" else order
    _, aside = split(len(rows), config.val_size, config.seed)
    away = rows[aside]
    return order, order[~np.isin(order, away)] if len(away) else order, away


def _count(
    config: Config, report: Report, reader: Reader, tester: Reader, order: Ints, learn: Ints, away: Ints
) -> None:
    """Everything in the report that follows from the order of rows."""
    tokens, prints = reader.tally.tokens(), reader.tally.prints()
    report.eval_rows = len(away) + tester.tally.report.kept
    report.epoch_tokens = int(tokens[learn].sum())
    report.examples = report.train_rows = len(learn)
    if packs(config) and len(learn):
        whole = -(-report.epoch_tokens // config.cutoff_len)
        report.train_rows = (
            whole if config.kind.rows == "text" else len(groups(tokens[learn].tolist(), config.cutoff_len))
        )
    report.steps = steps(config, report.train_rows)
    measured = np.concatenate((prints[away], tester.tally.prints()))
    report.overlap = int(np.isin(measured, prints[learn]).sum())


def _fill(
    prepared: Prepared, config: Config, sets: list[ReadSet], tested: list[ReadSet], learn: Ints, away: Ints
) -> None:
    """The rows themselves, mixed, split and packed."""
    inputs = [DataInput(s.entry.name, s.entry.source, digest(s.entry), s.count) for s in (*sets, *tested)]
    rows = joined([s.rows for s in sets])
    parts: dict[str, Rows] = {}
    if len(away):
        parts[""] = rows.take(away)
    if tested and config.eval_on_each_dataset:
        parts.update({s.entry.name: s.rows for s in tested if s.count})
    elif tested:
        parts[""] = joined([s.rows for s in tested])
    train = rows.take(learn)
    if packs(config):
        train, parts = pack(train, config), {name: pack(part, config) for name, part in parts.items()}
        prepared.report.train_rows = len(train)
        prepared.report.steps = steps(config, len(train))
    if not any(
        rows.any("images") for rows in (train, *parts.values())
    ):  # talks to a model that sees, of words alone
        train, parts = train.without("images"), {name: part.without("images") for name, part in parts.items()}
    prepared.train, prepared.eval, prepared.inputs = train, dict(parts), inputs


def joined(parts: Sequence[Rows]) -> Rows:
    """Several sets of rows, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    whole = Rows()
    for part in parts:
        whole.extend(part)
    return whole


# --- tokenised before, and streamed --------------------------------------------------------------------------------


def _from_disk(folder: Path, config: Config, tokenizer: Tokenizer) -> Prepared:
    """Rows that were tokenised before. They are taken as they are; a note says when they were made otherwise."""
    train, evaluation, about = tokenized_cache.read(folder, config)
    template = template_of(config, tokenizer)
    report = Report(stage=config.stage, template=template.name, cutoff_len=config.cutoff_len)
    report.read = report.kept = report.train_rows = report.examples = len(train)
    report.eval_rows = sum(map(len, evaluation.values()))
    report.steps = steps(config, len(train))
    report.notes.append(
        tr(
            "The rows were tokenised before and are read from {folder}; other data knobs have no effect.",
            folder=folder,
        )
    )
    if config.overwrite_cache:
        report.notes.append(
            tr(
                "{folder} was written by another program, so that --overwrite_cache leaves it as it is.",
                folder=folder,
            )
        )
    if about.get("tokenizer") not in (None, tokenizer.digest):
        report.notes.append(
            tr(
                "The rows of {folder} were made with another tokenizer; empty the folder to make them anew.",
                folder=folder,
            )
        )
    report.notes += _stale_pictures(folder, config, about, train)
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*.arrow")):
        whole.update(_file_digest(path))
    inputs = [DataInput(folder.name, str(folder), whole.hexdigest(), len(train))]
    return Prepared(train, dict(evaluation), report, inputs, template)


def _picture_sizes(config: Config) -> list[int]:
    """What decides of a picture's tokens beside its file and the model."""
    return [config.image_max_pixels, config.image_min_pixels, int(config.image_do_pan_and_scan)]


def _stale_pictures(folder: Path, config: Config, about: Mapping[str, Any], train: Rows) -> Iterator[str]:
    """A note where rows that were tokenised before count other tokens than their pictures have now.

    Raises ConfigError where a picture is gone.
    """
    if "images" not in train.keys:
        return
    if about.get("pictures") not in (None, _picture_sizes(config)):
        yield tr(
            "The rows of {folder} were made for pictures of another size; empty the folder to make them anew.",
            folder=folder,
        )
    made = (folder / tokenized_cache.ABOUT).stat().st_mtime_ns if about else None
    for path in dict.fromkeys(path for row in train for path in row["images"]):
        try:
            changed = Path(path).stat().st_mtime_ns
        except OSError as error:
            said = tr("The rows of {folder} name the picture {path}, which is gone; empty the folder to make them anew.",
                      folder=folder, path=path)  # fmt: skip
            raise ConfigError([Problem("tokenized_path", said)]) from error
        if made is not None and changed > made:
            said = tr("The picture {path} has changed since the rows of {folder} were made; empty the folder to make them anew.",
                      path=path, folder=folder)  # fmt: skip
            raise ConfigError([Problem("tokenized_path", said)])


def _streamed(config: Config, tokenizer: Tokenizer, progress: Progress | None, parse: Parser) -> Prepared:
    """A stream of rows, after a look at the first of each set."""
    encoder, train, aside = opened(config, tokenizer, parse)
    held = kept_aside(None, config.val_size)
    first = config.with_values(max_samples=FIRST_LOOK)
    look = Reader(encoder_of(first, encoder.template, tokenizer, parse), progress)
    sets = [look.read(entry, 0.0, 0.0) for entry in train]
    report = look.tally.done()
    if not report.kept:
        raise ConfigError([Problem("dataset", report.why_nothing())])
    report.steps = config.max_steps
    report.notes.append(
        tr(
            "The data is streamed; this report is about the first {first_look} rows of each set.",
            first_look=FIRST_LOOK,
        )
    )

    def open_sets() -> list[Iterable[dict[str, Any]]]:
        return [_Passes(entry, encoder) for entry in train]

    stream = Stream(
        open_sets,
        strategy=config.mix_strategy,
        shares=_shares(config),
        buffer_size=config.buffer_size,
        seed=config.seed,
        skip=held,
    )
    evaluation: dict[str, Sequence[dict[str, Any]]] = {}
    if held:
        evaluation[""] = list(islice(stream.in_order(), held))
    tester = Reader(measuring(encoder), progress)
    tested = [tester.read(entry) for entry in aside]
    if config.eval_on_each_dataset:
        evaluation.update({s.entry.name: s.rows for s in tested if s.count})
    elif tested:
        evaluation[""] = joined([s.rows for s in tested])
    report.eval_rows = sum(map(len, evaluation.values()))
    inputs = [DataInput(s.entry.name, s.entry.source, digest(s.entry), 0) for s in (*sets, *tested)]
    return Prepared(stream, evaluation, report, inputs, encoder.template)


@dataclass
class _Passes:
    """One set's encoded rows, read anew at each pass."""

    entry: Entry
    encoder: Encoder

    def __iter__(self) -> Any:
        rows = (e.row for e in Reader(self.encoder).encoded(Source(self.entry, self.encoder.config)))
        return _packed_stream(rows, self.encoder.config) if packs(self.encoder.config) else rows


def _packed_stream(rows: Iterable[dict[str, Any]], config: Config) -> Any:
    """Rows packed within blocks of a thousand."""
    source = iter(rows)
    while block := list(islice(source, config.preprocessing_batch_size)):
        whole = Rows()
        for row in block:
            whole.append(row)
        yield from pack(whole, config)


# --- what exactly was trained on -----------------------------------------------------------------------------------


def digest(entry: Entry) -> str:
    """What names the content of a set: sha256 over its files; for a hub set over its description."""
    found = hashlib.sha256()
    for path in entry.files():
        found.update(_file_digest(path))
    if not entry.local:
        found.update(repr((entry.source, entry.subset, entry.split, entry.folder)).encode())
    return found.hexdigest()


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
