"""The data report: what was read, what will be learnt from, what is cut, what is thrown away and why."""

from __future__ import annotations

import json
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tuner.config.config import Config
from tuner.data.drafts import Draft
from tuner.data.encode import Encoded
from tuner.data.formats import Dropped, Row
from tuner.plan import steps as counting
from tuner.text.lookup import mark, tr
from tuner.text.message import Message

Progress = Callable[[float, Message], None]
"""Told how much of the work is done, 0 to 1, and what that is."""
EXAMPLES = 5
# The replacement character, halves of a character, control characters, and UTF-8 that was once read as Latin-1.
ODD = "\ufffd\ud800-\udfff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"
DAMAGE = f"[{ODD}]|\u00c3[\u0080-\u00bf]|\u00e2\u20ac|\u00c2[\u00a0-\u00bf]"
# Names that LLaMA-Factory's identity.json leaves to be filled in.
UNFILLED = re.compile(r"\{\{\s*(?:name|author)\s*\}\}")
BINS = 40


@dataclass
class Finding:
    """Rows that share something worth knowing: how many, and some of them by data set, file and line."""

    count: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, place: Place, detail: str) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append({**place._asdict(), "detail": detail[:300]})


class Place(NamedTuple):
    """Where a row stands."""

    dataset: str
    file: str
    line: int


def contents(row: Row) -> Iterator[str]:
    """Every text that a normal row is made of."""
    if "text" in row:
        yield row["text"]
    if "state" in row:
        yield row["state"] if isinstance(row["state"], str) else json.dumps(row["state"], ensure_ascii=False)
    sides = (row[side] for side in ("chosen", "rejected", "completion") if side in row)
    for message in (*row.get("messages", ()), *sides):
        yield message["content"]
        if "reasoning_content" in message:
            yield message["reasoning_content"]


@dataclass
class Report:
    """What a config's data comes to.

    `tokens` and `histogram` are about the length that the cutoff is held against: the whole example, for pairs the prompt
    with the longer answer, before any cut. `total_tokens` are those fed to the model after it, for pairs the prompt with
    each answer. `examples` are learnt from in an epoch, in `train_rows` rows (fewer when packed). `duplicates` are kept
    rows that say the same as one before; `picture_tokens` are those of all kept rows' `pictures`, before any cut; `labelled` are prompts whose row expects an answer; `overlap` are rows measured on that are learnt from as well. `there` are the rows
    of the sets, more than were read where only a sample was: counts are the sample's then, and `steps` is 0, for nobody knows.
    """

    stage: str
    template: str
    cutoff_len: int
    datasets: dict[str, dict[str, int]] = field(default_factory=dict)
    read: int = 0
    there: int = 0
    kept: int = 0
    cut: int = 0
    dropped: dict[str, Finding] = field(default_factory=dict)
    findings: dict[str, Finding] = field(default_factory=dict)
    tokens: dict[str, float] = field(default_factory=dict)
    total_tokens: int = 0
    trained_tokens: int = 0
    pictures: int = 0
    picture_tokens: int = 0
    histogram: dict[str, list[float]] = field(default_factory=dict)
    quantiles: list[int] = field(default_factory=list)
    duplicates: int = 0
    labelled: int = 0
    overlap: int = 0
    examples: int = 0
    train_rows: int = 0
    eval_rows: int = 0
    steps: int = 0
    epoch_tokens: int = 0
    evaluation: Report | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def sampled(self) -> bool:
        """Whether only some of the rows were read."""
        return self.read < self.there

    def longer_than(self, cutoff: int) -> float:
        """The share of kept rows that are longer than so many tokens, to a thousandth."""
        behind = bisect_right(self.quantiles, cutoff)
        return 1 - behind / len(self.quantiles) if self.quantiles else 0.0

    def say_sampled(self) -> None:
        """Take back what a sample cannot know, and say so."""
        self.steps = 0
        self.notes.append(
            tr(
                "A sample: {read:,} of {there:,} rows were read, evenly from the whole set. Shares hold for all of "
                "it; counts and duplicates are the sample's, and what is rare may not be in it.",
                read=self.read,
                there=self.there,
            )
        )

    @property
    def trained_share(self) -> float:
        """The share of tokens that carry a loss."""
        return self.trained_tokens / self.total_tokens if self.total_tokens else 0.0

    @property
    def labelled_share(self) -> float:
        """The share of kept prompts whose row expects an answer."""
        return self.labelled / self.kept if self.kept else 0.0

    @property
    def cut_share(self) -> float:
        """The share of kept rows that lost tokens."""
        return self.cut / self.kept if self.kept else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Everything, plain enough for JSON."""
        return {**asdict(self), "trained_share": self.trained_share, "cut_share": self.cut_share}

    def why_nothing(self) -> str:
        """One sentence on why no row is left."""
        if not self.read:
            return tr("The data sets hold no rows; give one that does.")
        by_count = sorted(self.dropped.items(), key=lambda item: -item[1].count)
        reasons = ", ".join(f"{tr(reason)} ({found.count})" for reason, found in by_count[:3])
        first = by_count[0][1].examples[0]
        return tr(
            "None of the {read} rows can be learnt from: {reasons}; the first is line {line} of "
            "{file}: {detail}. Fix the rows or the columns in dataset_info.json.",
            read=self.read,
            reasons=reasons,
            line=first["line"],
            file=first["file"],
            detail=first["detail"][:160],
        )


class Tally:
    """Counts rows as they pass, keeping numbers and a few examples, never the rows."""

    def __init__(self, config: Config, template: str, marks: Sequence[str] = ()):
        listed = "|".join(map(re.escape, marks)) or "(?!)"
        self._odd = re.compile(f"(?P<mark>{listed})|{DAMAGE}")
        # One set of characters is searched for ten times as fast as the alternatives that begin with them.
        self._begins = re.compile(f"[{ODD}\u00c3\u00e2\u00c2{''.join(re.escape(m[0]) for m in marks)}]")
        self.report = Report(stage=config.stage, template=template, cutoff_len=config.cutoff_len)
        self._tokens = array("i")
        self._lengths = array("i")
        self._prints = array("q")

    def see(self, place: Place) -> None:
        """A row has been read."""
        self.report.read += 1
        if place.dataset not in self.report.datasets:
            self.report.datasets[place.dataset] = {"read": 0, "kept": 0, "cut": 0, "dropped": 0}
        self.report.datasets[place.dataset]["read"] += 1

    def drop(self, place: Place, dropped: Dropped) -> None:
        """The row is not used."""
        self.report.dropped.setdefault(dropped.reason, Finding()).add(place, dropped.detail)
        self.report.datasets[place.dataset]["dropped"] += 1

    def keep(self, place: Place, encoded: Encoded, draft: Draft) -> None:
        """The row is used, as `encoded`."""
        report = self.report
        report.kept += 1
        counts = report.datasets[place.dataset]
        counts["kept"] += 1
        report.total_tokens += encoded.tokens
        report.trained_tokens += encoded.trained
        report.pictures += len(encoded.row.get("images", draft.images))
        report.picture_tokens += draft.picture_tokens
        report.labelled += "columns" in draft.row and draft.row["label"] is not None
        self._tokens.append(encoded.tokens)
        self._lengths.append(encoded.length)
        self._prints.append(hash((*draft.texts, *draft.images)))
        if encoded.cut:
            report.cut += 1
            counts["cut"] += 1
            detail = tr(
                "{length} tokens, the cutoff is {cutoff_len}; cut: {cut}",
                length=encoded.length,
                cutoff_len=report.cutoff_len,
                cut=encoded.cut,
            )
            self.find("cut", place, detail)
        for what, detail in draft.notes:
            self.find(what, place, detail)
        self._look(place, draft)

    def _look(self, place: Place, draft: Draft) -> None:
        """Note what looks wrong in a row's own words, and what its conversion noted."""
        for what, detail in draft.row.get("notes", {}).items():
            self.find(what, place, detail)
        texts = list(contents(draft.row))
        for text in texts:
            if "{{" in text and (seen := UNFILLED.search(text)):
                self.find(mark("placeholder not filled in"), place, _around(text, seen))
                break
        for text in texts:
            seen = self._begins.search(text) and self._odd.search(text)
            if seen:
                what = mark("special token in the text") if seen.group("mark") else mark("encoding damage")
                self.find(what, place, _around(text, seen))
                break

    def find(self, what: str, place: Place, detail: str) -> None:
        """Something worth knowing about a row that is used all the same."""
        self.report.findings.setdefault(what, Finding()).add(place, detail)

    def tokens(self) -> NDArray[np.int64]:
        """Tokens of each kept row, in order."""
        return np.frombuffer(self._tokens, dtype=np.int32).astype(np.int64)

    def prints(self) -> NDArray[np.int64]:
        """What tells kept rows apart, in order; equal for rows that say the same."""
        return np.frombuffer(self._prints, dtype=np.int64)

    def done(self) -> Report:
        """The report with everything that needs all rows."""
        report = self.report
        report.duplicates = len(self._prints) - len(np.unique(self.prints()))
        lengths = np.frombuffer(self._lengths, dtype=np.int32)
        if len(lengths):
            report.tokens = _percentiles(lengths)
            report.histogram = _histogram(lengths)
            report.quantiles = _quantiles(lengths)
        return report


def _around(text: str, seen: re.Match[str]) -> str:
    """What was found in a text, with a little of what stands around it."""
    return text[max(seen.start() - 40, 0) : seen.end() + 40]


def _percentiles(lengths: NDArray[np.int32]) -> dict[str, float]:
    """How long examples are before any cut, in tokens."""
    p5, p50, p95, p99 = (float(v) for v in np.percentile(lengths, [5, 50, 95, 99]))
    return {
        "min": float(lengths.min()),
        "p5": p5,
        "p50": p50,
        "mean": float(lengths.mean()),
        "p95": p95,
        "p99": p99,
        "max": float(lengths.max()),
    }


def _quantiles(lengths: NDArray[np.int32]) -> list[int]:
    """The lengths themselves in order, or a thousand of them at even distances."""
    rising = np.sort(lengths)
    places = np.linspace(0, len(rising) - 1, min(len(rising), 1000)).round().astype(np.int64)
    return [int(length) for length in rising[places]]


def _histogram(lengths: NDArray[np.int32]) -> dict[str, list[float]]:
    """Rows by length before any cut: `counts` between `edges`, in tokens."""
    counts, edges = np.histogram(lengths, bins=min(BINS, max(int(lengths.max() - lengths.min()), 1)))
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def steps(config: Config, rows: int) -> int:
    """Optimizer steps that a run over `rows` rows takes."""
    return counting.steps(
        rows,
        batch=config.per_device_train_batch_size * config.processes,
        accumulation=config.gradient_accumulation_steps,
        epochs=config.num_train_epochs,
        max_steps=config.max_steps,
        drop_last=config.dataloader_drop_last,
    )
