"""What the model sees of one row: every token with its text, and whether it is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tuner.config.config import Config
from tuner.data.decision_rows import encoder, label_ids, questions_in
from tuner.data.encode import MASKED, Encoded, Encoder
from tuner.data.entries import Entry
from tuner.data.files import Broken
from tuner.data.formats import Dropped, Row, convert
from tuner.data.pictures.opening import size_of
from tuner.data.template_choice import template_of
from tuner.data.templates import Template
from tuner.data.tokens import Tokenizer


@dataclass(frozen=True, slots=True)
class Token:
    """One token: its id, the text it adds, whether the loss sees it, whether it is a special token.

    A character spread over several tokens stands at the last of them; `label` is what is learnt there, if anything.
    `picture` is the number of the row's picture that the token is a piece of.
    """

    id: int
    text: str
    trained: bool
    special: bool
    label: int | None = None
    picture: int | None = None


@dataclass(frozen=True, slots=True)
class ShownPicture:
    """A row's picture: its file, its size as the model gets it, and how many tokens it is."""

    path: str
    width: int
    height: int
    tokens: int


@dataclass
class Shown:
    """One row as the model sees it: a side for each answer, or the reason why it is not used."""

    stage: str
    template: str
    row: Row | None = None
    dropped: str = ""
    detail: str = ""
    cut: bool = False
    length: int = 0
    label: bool | None = None
    sides: dict[str, list[Token]] = field(default_factory=dict)
    pictures: list[ShownPicture] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Everything, plain enough for JSON."""
        return asdict(self)


def show(
    config: Config,
    entry: Entry,
    record: dict[str, Any] | Broken,
    tokenizer: Tokenizer,
    template: Template | None = None,
) -> Shown:
    """What the model sees of a raw record. Raises ConfigError when the template is not known."""
    template = template or template_of(config, tokenizer)
    shown = Shown(config.stage, template.name)
    row = convert(record, entry, prompts=config.kind.rewarded)
    if isinstance(row, Dropped):
        shown.dropped, shown.detail = row.reason, row.detail
        return shown
    shown.row = row
    made = encoder(config, template, tokenizer)
    encoded = _encoded(row, made)
    if isinstance(encoded, Dropped):
        shown.dropped, shown.detail = encoded.reason, encoded.detail
        return shown
    shown.cut, shown.length, shown.label = bool(encoded.cut), encoded.length, encoded.row.get("label")
    pieces = _pictures(shown, made, row.get("images", ()))
    shown.sides = {
        name: _tokens(ids, labels, tokenizer, made.pictures.token_id if made.pictures else None, pieces)
        for name, (ids, labels) in _sides(encoded.row, tokenizer).items()
    }
    return shown


def _pictures(shown: Shown, made: Encoder, sources: Sequence[Any]) -> list[int]:
    """Note a row's pictures; which of them each of the picture's tokens is of, in order."""
    if not sources or made.pictures is None:
        return []
    found = made.pictures.found(sources)
    shown.row = {**(shown.row or {}), "images": [seen.path for seen in found]}
    bounds = made.pictures.max_pixels, made.pictures.min_pixels
    shown.pictures = [
        ShownPicture(seen.path, *size_of(seen.path, *bounds), sum(seen.pieces.runs)) for seen in found
    ]
    return [k for k, one in enumerate(shown.pictures) for _ in range(one.tokens)]


def _sides(row: dict[str, Any], tokenizer: Tokenizer) -> dict[str, tuple[list[int], list[int]]]:
    """As `sides`; of a record each question, with the label that is right or likeliest."""
    if "question_ids" not in row:
        return sides(row)
    ids = label_ids(tokenizer)
    return {
        one.name: _after(one.prompt, [ids[(2 if one.type else 0) + one.shares.index(max(one.shares))]])
        for one in questions_in(row)
    }


def _encoded(row: Row, encoder: Encoder) -> Encoded | Dropped:
    draft = encoder.draft(row)
    if isinstance(draft, Dropped):
        return draft
    return encoder.fit(draft, encoder.tokenizer.encode_batch(draft.texts, encoder.continues(draft.texts)))


def sides(row: dict[str, Any]) -> dict[str, tuple[list[int], list[int]]]:
    """The sequences that an encoded row is fed as, each with its ids and labels."""
    if "chosen_ids" in row:
        return {side: _after(row["prompt_ids"], row[f"{side}_ids"]) for side in ("chosen", "rejected")}
    if "completion_ids" in row:
        return {"answer": _after(row["prompt_ids"], row["completion_ids"])}
    if "prompt_ids" in row:
        return {"prompt": _after(row["prompt_ids"], [])}
    return {"text": (row["input_ids"], row.get("labels", [MASKED] * len(row["input_ids"])))}


def _after(prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
    return prompt + answer, [MASKED] * len(prompt) + answer


def _tokens(
    ids: list[int], labels: list[int], tokenizer: Tokenizer, picture_id: int | None, pieces: list[int]
) -> list[Token]:
    special, of = tokenizer.special_ids, iter(pieces)
    return [
        Token(
            i,
            text,
            label != MASKED,
            i in special,
            None if label == MASKED else label,
            next(of, None) if i == picture_id else None,
        )
        for i, text, label in zip(ids, tokenizer.pieces(ids), labels, strict=True)
    ]
