"""What is asked: the last answer of each row of a data set is expected, and all before it is the prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem
from tuner.data.catalog import named
from tuner.data.drafts import marked
from tuner.data.encode import Encoder
from tuner.data.entries import Entry, typed_questions
from tuner.data.formats import Dropped, Row, convert
from tuner.data.pictures.opening import PictureError
from tuner.data.prepare import DataInput, digest
from tuner.data.reading import Source
from tuner.data.templates import RefusedError, Template
from tuner.data.tokens import Tokenizer
from tuner.text.lookup import mark, tr, trn
from tuner.text.message import Message, message

TOO_LONG = mark("prompt too long")
BAD = mark("its answer is marked bad")
Progress = Callable[[float, Message], None]


@dataclass(frozen=True)
class Question:
    """`ids` is the rendered prompt and `answer` the expected answer with what ends it; `shown` is the prompt without its marks and
    `expected` the answer's own words; both answers are empty where the row has none. `record` is the raw row, which may bring
    patterns for scoring; `messages` and `tools` are what the prompt was rendered from, `columns` what else the row has, and `pictures` the files of
    the prompt's."""

    shown: str
    expected: str
    ids: list[int]
    answer: list[int]
    record: Mapping[str, Any]
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Any, ...] = ()
    columns: Mapping[str, object] = field(default_factory=dict)
    pictures: tuple[str, ...] = ()


@dataclass
class Questions:
    """All that a config asks. `left_out` counts the rows that could not be asked, by the reason."""

    asked: list[Question] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    inputs: list[DataInput] = field(default_factory=list)


def questions(
    config: Config,
    template: Template,
    tokenizer: Tokenizer,
    progress: Progress = lambda share, doing: None,
    *,
    unanswered: bool = False,
) -> Questions:
    """The questions of a config's data sets, in their order; with `unanswered` those too whose row has no answer.

    A prompt that leaves no room within cutoff_len is left out, not cut: the answer to half a question says nothing.
    Raises ConfigError when there is none.
    """
    found = Questions()
    encoder = Encoder(config, template, tokenizer)
    for entry in named(config.dataset, config.dataset_dir):
        if entry.kind == "text" and not unanswered:
            sentence = tr(
                "The data set {name} is plain text and asks nothing; name one with prompts and answers.",
                name=entry.name,
            )
            raise ConfigError([Problem("dataset", sentence)])
        if entry.kind == "decisions":
            raise ConfigError([Problem("dataset", typed_questions(entry.name))])
        source, before = Source(entry, config), len(found.asked)
        for one in _of(source, entry, encoder, unanswered):
            if isinstance(one, str):
                found.left_out[one] += 1
            else:
                found.asked.append(one)
            progress(source.share, message("doing.rows_read", name=entry.name, done=source.given))
        found.inputs.append(DataInput(entry.name, entry.source, digest(entry), len(found.asked) - before))
    if not found.asked:
        left = (
            trn("{number} row: {reason}", "{number} rows: {reason}", count, reason=tr(reason))
            for reason, count in found.left_out.items()
        )
        why = "; ".join(left) or tr("no rows")
        raise ConfigError(
            [
                Problem(
                    "dataset",
                    tr("Nothing in {names} can be asked ({why}).", names=", ".join(config.dataset), why=why),
                )
            ]
        )
    return found


def _of(source: Source, entry: Entry, encoder: Encoder, unanswered: bool) -> Iterator[Question | str]:
    for _, record in source:
        row = convert(record, entry, prompts=unanswered)
        yield row.reason if isinstance(row, Dropped) else _question(row, record, encoder, unanswered)


def _question(row: Row, record: Any, encoder: Encoder, unanswered: bool) -> Question | str:
    messages, reply = _split(row)
    if not messages or (reply is None and not unanswered):
        return "no answer"
    if row.get("label") is False:
        return BAD  # what a model should not say is nothing to expect of it
    try:
        ids, answer, expected = _rendered(messages, reply, row.get("tools", ()), encoder)
        files: tuple[str, ...] = ()
        if images := row.get("images"):
            ids, files = encoder.prompt(marked(messages), images, row.get("tools", ()))
    except (RefusedError, PictureError) as refused:
        return str(refused)
    if len(ids) >= encoder.config.cutoff_len:
        return TOO_LONG
    shown = encoder.tokenizer.decode(ids, skip_special=True)
    raw = record if isinstance(record, Mapping) else {}
    tools, columns = tuple(row.get("tools", ())), row.get("columns", {})
    return Question(shown, expected, ids, answer, raw, tuple(messages), tools, columns, files)


def _rendered(
    messages: list[dict[str, Any]], reply: dict[str, Any] | None, tools: Any, encoder: Encoder
) -> tuple[list[int], list[int], str]:
    """The ids of the prompt and of the expected answer, and the answer's words. Raises RefusedError."""
    if reply is None:
        prompt = encoder.template.prompt(messages, tools)
        return encoder.tokenizer.encode_batch([prompt], encoder.continues([prompt]))[0], [], ""
    one = encoder.template.answers(messages, [reply], tools)[0]
    texts = [one.prompt, one.answer]
    ids, answer = encoder.tokenizer.encode_batch(texts, encoder.continues(texts))
    expected = str(reply.get("content") or "") or one.answer.removesuffix(one.ending)
    return ids, answer, expected.strip()


def _split(row: Row) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The turns before the answer that is expected, and that answer; of a pair the better one."""
    messages = list(row.get("messages", ()))
    if "columns" in row:
        return messages, None if row["label"] is None else {"role": "assistant", "content": row["label"]}
    reply = row.get("chosen") or row.get("completion")
    if reply is None and messages and messages[-1]["role"] == "assistant":
        reply = messages.pop()
    return messages, reply
