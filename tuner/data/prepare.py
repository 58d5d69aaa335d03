"""From a config to rows of ids: the one call that every stage makes, and the path that the data report takes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem
from tuner.data.catalog import Entry, pick, pick_eval
from tuner.data.encode import Draft, Encoded, Encoder, packs
from tuner.data.files import records
from tuner.data.formats import Dropped, convert
from tuner.data.mix import mix, sample, split
from tuner.data.pack import pack
from tuner.data.report import Place, Progress, Report, Tally, steps
from tuner.data.rows import Rows
from tuner.data.templates import Template, template_of
from tuner.data.tokens import Tokenizer


@dataclass(frozen=True)
class DataInput:
    """A data set as a run's record names it: where it came from, what exactly it was, and how many rows were used."""

    name: str
    source: str
    digest: str
    rows: int


@dataclass
class Prepared:
    """What a stage trains on. `eval` has one set under "", or each by its name with eval_on_each_dataset."""

    train: Sequence[dict[str, Any]]
    eval: dict[str, Sequence[dict[str, Any]]]
    report: Report
    inputs: list[DataInput] = field(default_factory=list)
    template: Template | None = None


def prepare(config: Config, tokenizer: Tokenizer, progress: Progress | None = None) -> Prepared:
    """Read, convert, render, tokenise, cut, mix and split the data of a config.

    Raises ConfigError when a set cannot be read or fits the stage ill, or when nothing is left to train on.
    """
    return read_all(config, tokenizer, progress, keep=True)


def read_all(config: Config, tokenizer: Tokenizer, progress: Progress | None, keep: bool) -> Prepared:
    """As `prepare`; without `keep` rows are counted and let go, and an empty result is a report like any other."""
    template = template_of(config, tokenizer)
    train, aside = pick(config), pick_eval(config)
    problems = [Problem("dataset", said) for e in (*train, *aside) if (said := e.fits(config.stage))]
    if problems:
        raise ConfigError(problems)
    work = _Work(config, Encoder(config, template, tokenizer), Tally(config, template.name), progress, keep)
    sets = [work.read(entry, i / (len(train) + len(aside))) for i, entry in enumerate(train)]
    report = work.tally.done()
    if keep and not report.kept:
        raise ConfigError([Problem("dataset", report.why_nothing())])
    work.tally = Tally(config, template.name)  # the report is about what is learnt from
    tested = [work.read(e, (len(train) + i) / (len(train) + len(aside))) for i, e in enumerate(aside)]
    prepared = _arranged(config, sets, tested, report, keep)
    prepared.template = template
    if progress:
        progress(1.0, f"{report.kept} of {report.read} rows are ready")
    return prepared


@dataclass
class _Set:
    entry: Entry
    rows: Rows
    count: int
    tokens: int


def _arranged(config: Config, sets: list[_Set], tested: list[_Set], report: Report, keep: bool) -> Prepared:
    """Mix the sets, keep rows aside, pack, and count what follows."""
    shares = [float(s) for s in config.interleave_probs.split(",")] if config.interleave_probs else None
    order = mix([s.count for s in sets], config.mix_strategy, shares, config.seed)
    learn, aside = split(len(order), config.val_size, config.seed)
    report.train_rows, report.eval_rows = len(learn), len(aside) + sum(s.count for s in tested)
    report.steps = steps(config, report.train_rows)
    report.epoch_tokens = round(report.total_tokens * len(learn) / max(report.kept, 1))
    if not keep:
        return Prepared([], {}, report)
    rows = _joined(sets)
    train = rows.take(order[learn])
    evaluation: dict[str, Rows] = {}
    if len(aside):
        evaluation[""] = rows.take(order[aside])
    if tested and config.eval_on_each_dataset:
        evaluation.update({s.entry.name: s.rows for s in tested if s.count})
    elif tested:
        evaluation[""] = _joined(tested)
    if packs(config):
        train = pack(train, config)
        evaluation = {name: pack(found, config) for name, found in evaluation.items()}
        report.train_rows, report.steps = len(train), steps(config, len(train))
    inputs = [DataInput(s.entry.name, s.entry.source, digest(s.entry), s.count) for s in (*sets, *tested)]
    return Prepared(train, dict(evaluation), report, inputs)


def _joined(sets: Sequence[_Set]) -> Rows:
    if len(sets) == 1:
        return sets[0].rows
    rows = Rows()
    for one in sets:
        for row in one.rows:
            rows.append(row)
    return rows


@dataclass
class _Work:
    """Reads data sets through one encoder into one tally."""

    config: Config
    encoder: Encoder
    tally: Tally
    progress: Progress | None
    keep: bool

    def read(self, entry: Entry, begun: float) -> _Set:
        """One data set, encoded and counted. Raises ConfigError when it cannot be read at all."""
        rows, count, tokens = Rows(), 0, 0
        source = _rows_of(entry, self.config)
        while block := list(islice(source, self.config.preprocessing_batch_size)):
            for encoded in self._encoded(block, entry):
                count += 1
                tokens += encoded.tokens
                if self.keep:
                    rows.append(encoded.row)
            if self.progress:
                self.progress(begun, f"{entry.name}: {self.tally.report.read} rows read")
        return _Set(entry, rows, count, tokens)

    def _encoded(self, block: Sequence[tuple[Place, Any]], entry: Entry) -> Iterator[Encoded]:
        drafts = list(self._drafted(block, entry))
        texts = [text for _, draft in drafts for text in draft.texts]
        tokenizer = self.encoder.tokenizer
        flags = (
            [f for _, d in drafts for f in self.encoder.continues(d.texts)] if tokenizer.prefixes else None
        )
        ids = iter(tokenizer.encode_batch(texts, flags))
        for place, draft in drafts:
            encoded = self.encoder.fit(draft, list(islice(ids, len(draft.texts))))
            if isinstance(encoded, Dropped):
                self.tally.drop(place, encoded)
            else:
                self.tally.keep(place, encoded, draft.texts)
                yield encoded

    def _drafted(self, block: Iterable[tuple[Place, Any]], entry: Entry) -> Iterator[tuple[Place, Draft]]:
        for place, record in block:
            self.tally.see(place)
            row = convert(record, entry)
            draft = row if isinstance(row, Dropped) else self.encoder.draft(row)
            if isinstance(draft, Dropped):
                self.tally.drop(place, draft)
            else:
                yield place, draft


def _rows_of(entry: Entry, config: Config) -> Iterator[tuple[Place, Any]]:
    """The raw rows of a set with their places: at most max_samples, and num_samples of them drawn where asked."""
    rows = _all_rows(entry)
    if entry.num_samples and not config.streaming:
        whole = list(rows)
        rows = iter([whole[i] for i in sample(len(whole), entry.num_samples, config.seed)] if whole else [])
    return islice(rows, config.max_samples)


def _all_rows(entry: Entry) -> Iterator[tuple[Place, Any]]:
    if not entry.local:
        from tuner.data.hub import hub_records

        for number, record in hub_records(entry):
            yield Place(entry.name, entry.source, number), record
        return
    for path in entry.files():
        for line, record in records(path):
            yield Place(entry.name, path.name, line), record


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
