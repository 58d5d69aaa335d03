"""Seeing what a run changes: held-out questions, asked before, at every save and after.

The answers go to samples.json in the run's folder, a table prompt by step that MLflow shows as it is; the scores go to
the metrics. `score` is the share of answers that have what the run is to teach: the preferred voice where it learns from
preferences, the exact answer elsewhere. `score/correct` asks only whether the content is right.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from tuner.config.config import Config
from tuner.config.kinds import KINDS
from tuner.config.knobs import ConfigError, Problem
from tuner.data.catalog import named
from tuner.data.drafts import marked
from tuner.data.encode import Encoder
from tuner.data.files import records
from tuner.data.formats import Dropped, convert
from tuner.data.pictures.opening import PictureError
from tuner.data.scoring import check_patterns, score
from tuner.data.template_choice import template_of
from tuner.data.templates import stop_ids
from tuner.data.tokens import Tokenizer
from tuner.engine import group
from tuner.engine.live import LiveRun
from tuner.generate.answers import answers
from tuner.generate.request import Answer, Sampling
from tuner.models.vision import Sight, sight_of
from tuner.text.lookup import tr
from tuner.text.message import message

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHOWN = 12  # questions whose answers are kept as text; all are scored


@dataclass(frozen=True)
class Question:
    """`ids` is the rendered prompt and `pictures` the files of its pictures; `record` the raw row, which may bring patterns for
    scoring."""

    shown: str
    expected: str
    ids: list[int]
    record: Mapping[str, Any]
    pictures: tuple[str, ...] = ()


def questions(config: Config, tokenizer: Tokenizer) -> list[Question]:
    """The held-out questions a config names, rendered for its model.

    Raises ConfigError when there are none, or a pattern of theirs is no regular expression.
    """
    entry = named([str(config.probe)], config.dataset_dir)[0]
    encoder = Encoder(config, template_of(config, tokenizer), tokenizer)
    found: list[Question] = []
    for file in entry.files():
        for _, record in islice(records(file), config.probe_samples - len(found)):
            row = convert(record, entry)
            if isinstance(row, Dropped) or not isinstance(record, Mapping):
                continue
            if row.get("label") is False:
                continue  # what a model should not say is nothing to expect of it
            check_patterns(record)
            asked, expected = _split(row)
            if asked:
                with suppress(PictureError):  # which the report of the data tells of
                    ids, files = encoder.prompt(_seen(asked, row), row.get("images", ()))
                    found.append(Question(str(asked[-1]["content"]), expected, ids, record, files))
    if not found:
        raise ConfigError(
            [Problem("probe", tr("--probe {probe} holds no question that can be asked.", probe=config.probe))]
        )
    return found


def _seen(asked: list[dict[str, Any]], row: Mapping[str, Any]) -> list[dict[str, Any]]:
    return marked(asked) if row.get("images") else asked


def _split(row: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """The turns before the last answer, and that answer."""
    messages = list(row.get("messages", ()))
    answer = row.get("chosen") or row.get("completion")
    if answer is None and messages and messages[-1]["role"] == "assistant":
        answer = messages.pop()
    return messages, str((answer or {}).get("content", ""))


def scores(asked: Sequence[Question], answers: Sequence[str], stage: str) -> dict[str, float]:
    """`score` and `score/correct`, both shares from 0 to 1; the second only where rows say what is right."""
    found = score([q.record for q in asked], [q.expected for q in asked], answers)
    if found.correct is None:
        return {"score": found.exact}
    preferred = found.preferred if KINDS[stage].compares else None
    return {"score": found.exact if preferred is None else preferred, "score/correct": found.correct}


def answer(
    model: PreTrainedModel,
    asked: Sequence[Question],
    tokenizer: Tokenizer,
    new_tokens: int,
    stops: Sequence[int],
    told: Callable[[int], None] = lambda answered: None,
    sight: Sight | None = None,
) -> list[str]:
    """The model's likeliest answer to each question, token by token (greedy), without special tokens.

    `stops` are the ids at which an answer ends. `told` hears how many are answered, after each.
    """
    done = 0

    def count(number: int, answer: Answer) -> None:
        nonlocal done
        done += 1
        told(done)

    wish = Sampling(max_tokens=new_tokens, stop_ids=tuple(stops))
    prompts, pictures = [q.ids for q in asked], [q.pictures for q in asked]
    pad = tokenizer.pad_id or 0
    found = answers(model, tokenizer.decode, prompts, wish, count, pad, pictures=pictures, sight=sight)
    return [one.text.strip() for one in found]


@dataclass
class Samples:
    """The table of answers so far, and the first score."""

    rows: list[list[Any]] = field(default_factory=list)
    asked_at: int = -1


class Sampler(TrainerCallback):
    """Asks the questions at the beginning, at each save and at the end."""

    def __init__(self, config: Config, run: LiveRun, tokenizer: Tokenizer):
        self.config, self.run, self.tokenizer = config, run, tokenizer
        self.questions = questions(config, tokenizer)
        self.stops = stop_ids(template_of(config, tokenizer), tokenizer)
        self.samples = Samples()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 0:
            self._ask(model, 0, "before")
        else:
            self._remember()

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        # Someone who asked the run to stop is waiting for it.
        if state.global_step < state.max_steps and not group.agreed(self.run.asked):
            self._ask(model, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if not group.agreed(self.run.asked):
            self._ask(model, state.global_step, "after")

    def _ask(self, model: Any, step: int, when: str = "") -> None:
        if self.samples.asked_at == step:
            return
        self.samples.asked_at = step
        if not self.run.quiet.is_set():
            self._answers(model, step, when)
        group.wait()

    def _answers(self, model: Any, step: int, when: str) -> None:
        before = self.run.run.status().phase
        with self.run.phase("answering"):
            answers = answer(
                model,
                self.questions,
                self.tokenizer,
                self.config.probe_new_tokens,
                self.stops,
                self._answered,
                sight_of(model, self.tokenizer.folder, self.config) if self.tokenizer.folder else None,
            )
        self.run.run.update(phase=before)
        shown = zip(self.questions[:SHOWN], answers[:SHOWN], strict=True)
        self.samples.rows = [row for row in self.samples.rows if row[0] != step]
        self.samples.rows += [[step, q.shown, q.expected, a, list(q.pictures)] for q, a in shown]
        self._write()
        found = scores(self.questions, answers, self.config.stage)
        if when:
            found |= {
                f"score/{name[6:] + '_' if name[6:] else ''}{when}": value for name, value in found.items()
            }
        self.run.log.log(step, found)
        self.run.say("  ".join(f"{name} {value:.3f}" for name, value in found.items()))

    def _answered(self, done: int) -> None:
        total = len(self.questions)
        self.run.progress(done / total, message("doing.questions", done=done, total=total))

    def _remember(self) -> None:
        """What was asked before this run was resumed."""
        path = self.run.run.folder / "samples.json"
        if path.is_file():
            self.samples.rows = json.loads(path.read_text(encoding="utf-8"))["data"]

    @property
    def _columns(self) -> list[str]:
        """Pictures have one where there are some: MLflow shows the table as it is."""
        seen = any(question.pictures for question in self.questions)
        return ["step", "prompt", "expected", "answer", *(["pictures"] if seen else [])]

    def _write(self) -> None:
        columns = self._columns
        rows = [row[: len(columns)] for row in self.samples.rows]
        self.run.run.put("samples.json", json.dumps({"columns": columns, "data": rows}, ensure_ascii=False))
