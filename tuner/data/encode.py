"""Normal rows into token ids with the loss in its place, cut to length so that what matters survives.

Two steps, so that many rows are tokenised in one call: `draft` says which texts a row is made of, `fit` puts their ids
together. `encode` does both for one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tuner.config.config import Config
from tuner.data.drafts import Draft, Drafter, Ids
from tuner.data.formats import Dropped, Row
from tuner.data.pictures.drawing import TOO_MANY
from tuner.data.templates import Exchange, RefusedError, Template
from tuner.data.tokens import Tokenizer
from tuner.text.lookup import joined, mark, tr

MASKED = -100
"""The label of a token that is read and not learnt (torch's ignore_index)."""


class Encoded(NamedTuple):
    """A row as ids. `tokens` counts all of them, `trained` those the loss sees.

    `length` is what the cutoff is held against, before any cut; for pairs the prompt with the longer answer. `cut` says
    what had to go, "" where nothing had to.
    """

    row: dict[str, Any]
    tokens: int
    trained: int
    length: int
    cut: str = ""


class Encoder(Drafter):
    """Encodes rows for one config: its stage, template, cutoff and masks."""

    def __init__(self, config: Config, template: Template, tokenizer: Tokenizer):
        super().__init__(config, template, tokenizer)
        self.cutoff = config.cutoff_len
        self.opening = tokenizer.encode(template.opening) if template.opening else []
        self.eos_id = tokenizer.id_of(template.eos) if template.eos else None
        self._lengths: dict[str, int] = {"": 0}

    def count(self, draft: Draft, counts: Sequence[int]) -> Encoded | None:
        """What `fit` would say of a row, from the lengths of its texts alone; None where the ids are needed to say it."""
        if self.rows in ("text", "prompts") or self.config.train_on_prompt:
            return None
        if draft.images:
            counts = [n + sum(d.runs) - len(d.runs) for n, d in zip(counts, draft.drawn, strict=True)]
        if self.rows == "pairs":
            prompt, better, worse = counts
            tokens, trained, longest = (
                2 * prompt + better + worse,
                better + worse,
                prompt + max(better, worse),
            )
            if draft.texts[1] == draft.texts[2]:
                return None
        else:
            tokens = longest = sum(counts)
            trained = sum(counts[1::2])
        plain = not self.template.eos_between or len(counts) <= 3
        if longest > self.cutoff or not trained or not plain or not all(e.learnt for e in draft.exchanges):
            return None
        return Encoded({}, tokens, trained, longest)

    def fit(self, draft: Draft, ids: Sequence[Ids]) -> Encoded | Dropped:
        """The row's ids within the cutoff, or why it cannot be used."""
        if not self.pictures or not self.config.kind.pictures:
            return self._fit(draft, ids)
        if draft.images:
            ids = [self.pictures.spread(i, d) for i, d in zip(ids, draft.drawn, strict=True)]
        found = self._fit(draft, ids)
        if isinstance(found, Dropped):
            return self._no_room(draft, ids) if draft.images and found.reason == TOO_LONG else found
        shown = self._shown(draft, ids, found)
        return (
            self._no_room(draft, ids) if shown is None else found._replace(row={**found.row, "images": shown})
        )

    def _shown(self, draft: Draft, ids: Sequence[Ids], found: Encoded) -> tuple[str, ...] | None:
        """The pictures of a row that were not cut off with whole exchanges; None where one was cut itself."""
        assert self.pictures is not None, "it is asked of rows that may have pictures"
        if not found.cut or not draft.images:
            return draft.images
        if "prompt_ids" in found.row:
            return draft.images if self.pictures.whole(ids[0], found.row["prompt_ids"]) else None
        turns = [_Turn(e, p, a) for e, p, a in zip(draft.exchanges, ids[::2], ids[1::2], strict=True)]
        kept = self._fewer(turns, draft)
        if not all(self.pictures.whole(a.prompt, b.prompt) for a, b in zip(turns, kept, strict=False)):
            return None
        return draft.images[: sum(drawn.pictures for drawn in draft.drawn[: 2 * len(kept)])]

    def _no_room(self, draft: Draft, ids: Sequence[Ids]) -> Dropped:
        """A picture is never cut."""
        said = tr(
            "{tokens} tokens, {pictures} of them pictures; cutoff_len is {cutoff}",
            tokens=max(map(len, ids[1:3])) + len(ids[0]) if self.rows == "pairs" else sum(map(len, ids)),
            pictures=draft.picture_tokens,
            cutoff=self.cutoff,
        )
        return Dropped(TOO_MANY, said)

    def _fit(self, draft: Draft, ids: Sequence[Ids]) -> Encoded | Dropped:
        if self.rows == "text":
            return self._fit_text(ids[0])
        if self.rows == "prompts":
            return self._fit_prompt(draft, ids[0])
        if self.rows == "pairs":
            return self._fit_pair(draft, *ids)
        if self.rows == "labelled":
            return self._fit_labelled(draft, *ids)
        return self._fit_chat(draft, ids)

    def _fit_text(self, ids: Ids) -> Encoded | Dropped:
        if len(ids) < 2:
            return Dropped(mark("no text"), tr("there is nothing to predict"))
        kept = ids if self.packs else ids[: self.cutoff]
        row = {"input_ids": kept, "labels": kept}
        return Encoded(
            row, len(kept), len(kept), len(ids), tr("the end of the text") if len(kept) < len(ids) else ""
        )

    def _fit_prompt(self, draft: Draft, prompt: Ids) -> Encoded:
        kept = _shorten(prompt, self.cutoff, self._opening(draft, prompt, 0))
        asked = {
            name: draft.row[name] for name in ("messages", "label", "tools", "columns") if name in draft.row
        }
        row = {"prompt_ids": kept, "asked": asked}
        return Encoded(row, len(kept), 0, len(prompt), _what_went(len(kept) < len(prompt), False))

    @property
    def packs(self) -> bool:
        """Whether several examples share a row."""
        return packs(self.config)

    def _fit_pair(self, draft: Draft, prompt: Ids, chosen: Ids, rejected: Ids) -> Encoded | Dropped:
        better, worse = draft.exchanges
        if not (better.learnt and worse.learnt):
            return Dropped(mark("nothing to learn"), tr("an answer of the pair has weight 0"))
        longest = max(len(chosen), len(rejected))
        endings = self._length(better.ending), self._length(worse.ending)
        header, opening = self._length(better.header), self._opening(draft, prompt, longest)
        room = self._room(len(prompt), longest, opening, header, max(endings))
        if room is None:
            return self._too_long(len(prompt) + longest)
        source, target = room
        cut = _what_went(source < len(prompt), target < longest)
        kept = _shorten(prompt, source, opening)
        sides = [_end_kept(a, target, e) for a, e in zip((chosen, rejected), endings, strict=True)]
        if sides[0] == sides[1]:
            return Dropped(
                mark("identical answers"), tr("the answers differ only beyond the cutoff") if cut else ""
            )
        row = {"prompt_ids": kept, "chosen_ids": sides[0], "rejected_ids": sides[1]}
        trained = len(sides[0]) + len(sides[1])
        return Encoded(row, 2 * len(kept) + trained, trained, len(prompt) + longest, cut)

    def _fit_labelled(self, draft: Draft, prompt: Ids, answer: Ids) -> Encoded | Dropped:
        exchange = draft.exchanges[0]
        if not exchange.learnt:
            return Dropped(mark("nothing to learn"), tr("the answer has weight 0"))
        ending, opening = self._length(exchange.ending), self._opening(draft, prompt, len(answer))
        room = self._room(len(prompt), len(answer), opening, self._length(exchange.header), ending)
        whole = len(prompt) + len(answer)
        if room is None:
            return self._too_long(whole)
        source, target = room
        kept, said = _shorten(prompt, source, opening), _end_kept(answer, target, ending)
        row = {"prompt_ids": kept, "completion_ids": said, "label": draft.row["label"]}
        cut = _what_went(len(kept) < len(prompt), len(said) < len(answer))
        return Encoded(row, len(kept) + len(said), len(said), whole, cut)

    def _fit_chat(self, draft: Draft, ids: Sequence[Ids]) -> Encoded | Dropped:
        turns = [_Turn(e, p, a) for e, p, a in zip(draft.exchanges, ids[::2], ids[1::2], strict=True)]
        whole = sum(len(t.prompt) + len(t.answer) for t in turns)
        kept = turns if whole <= self.cutoff else self._fewer(turns, draft)
        if not kept:
            return self._too_long(whole)
        input_ids: Ids = []
        labels: Ids = []
        for i, turn in enumerate(kept):
            input_ids += turn.prompt
            input_ids += turn.answer
            labels += self._prompt_labels(turn.prompt, i, kept)
            labels += turn.answer if turn.exchange.learnt else [MASKED] * len(turn.answer)
        trained = len(labels) - labels.count(MASKED)
        if not trained:
            return Dropped(mark("nothing to learn"), tr("no token of the row carries a loss"))
        row = {"input_ids": input_ids, "labels": labels}
        return Encoded(row, len(input_ids), trained, whole, _turns_gone(turns, kept))

    def _prompt_labels(self, prompt: Ids, number: int, turns: Sequence[_Turn]) -> Ids:
        if self.config.train_on_prompt and not self.template.eos_between:
            return prompt
        labels = [MASKED] * len(prompt)
        if (
            number
            and prompt
            and self.template.eos_between
            and self.eos_id is not None
            and not self.config.mask_history
            and turns[number - 1].exchange.learnt
        ):
            labels[0] = self.eos_id
        return labels

    def _fewer(self, turns: list[_Turn], draft: Draft) -> list[_Turn]:
        """The turns that fit, from the first on; at least one, cut if need be."""
        kept: list[_Turn] = []
        left = self.cutoff
        for turn in turns:
            size = len(turn.prompt) + len(turn.answer)
            if size > left:
                cut = self._cut(turn, left, None if kept else draft)
                return [*kept, cut] if cut else kept
            kept.append(turn)
            left -= size
        return kept

    def _cut(self, turn: _Turn, left: int, draft: Draft | None) -> _Turn | None:
        """One exchange within `left` tokens; without a draft only its answer may go, and half of it must stay."""
        exchange = turn.exchange
        ending = self._length(exchange.ending)
        prompt = turn.prompt
        if draft is None:
            target = left - len(prompt)
            if target < max(len(turn.answer) // 2, ending + 1):
                return None
            return turn._replace(answer=_end_kept(turn.answer, target, ending))
        opening = self._opening(draft, prompt, len(turn.answer))
        room = self._room(len(prompt), len(turn.answer), opening, self._length(exchange.header), ending)
        if room is None:
            return None
        return turn._replace(
            prompt=_shorten(prompt, room[0], opening),
            answer=_end_kept(turn.answer, room[1], ending),
        )

    def _opening(self, draft: Draft, prompt: Ids, answer: int) -> int:
        """How many tokens at a prompt's begin survive a cut: the system prompt and what opens the first question.

        Where they would take more than half of the cutoff, only what every chat begins with.
        """
        least = len(self.opening)
        if len(prompt) + answer <= self.cutoff:
            return least
        row = draft.row
        messages = row.get("messages") or [{"role": "user", "content": row.get("text", "")}]
        try:
            head = self.tokenizer.encode(self.template.before_question(messages, row.get("tools", ())))
        except RefusedError:
            return least
        shared = next((i for i, (a, b) in enumerate(zip(head, prompt, strict=False)) if a != b), len(head))
        return max(shared, least) if 2 * shared <= self.cutoff else least

    def _room(
        self, source: int, target: int, opening: int, header: int, ending: int
    ) -> tuple[int, int] | None:
        """How many tokens prompt and answer may keep; None when not even their ends fit."""
        cutoff = self.cutoff
        if source + target <= cutoff:
            return source, target
        least_source = min(source, opening + max(header, 1))
        least_target = min(target, ending + 1)
        if least_source + least_target > cutoff:
            return None
        target = max(min(_target(source, target, cutoff), cutoff - least_source), least_target)
        return min(cutoff - target, source), target

    def _length(self, text: str) -> int:
        """How many tokens a template's text is."""
        if text not in self._lengths:
            self._lengths[text] = self.tokenizer.count(text)
        return self._lengths[text]

    def _too_long(self, tokens: int) -> Dropped:
        return Dropped(
            TOO_LONG,
            tr(
                "{tokens} tokens, and not even its ends fit cutoff_len {cutoff}",
                tokens=tokens,
                cutoff=self.cutoff,
            ),
        )


TOO_LONG = mark("too long")


class _Turn(NamedTuple):
    exchange: Exchange
    prompt: Ids
    answer: Ids


def _what_went(question: bool, answer: bool) -> str:
    """What was cut off a row with one question and one answer."""
    ends = (tr("the begin of the question"), question), (tr("the end of the answer"), answer)
    return joined([what for what, gone in ends if gone])


def _turns_gone(turns: Sequence[_Turn], kept: Sequence[_Turn]) -> str:
    """What was cut off a chat."""
    gone = len(turns) - len(kept)
    pairs = list(zip(turns, kept, strict=False))
    ends = _what_went(
        any(len(b.prompt) < len(a.prompt) for a, b in pairs),
        any(len(b.answer) < len(a.answer) for a, b in pairs),
    )
    last = tr("the last {gone} of {number} exchanges", gone=gone, number=len(turns)) if gone else ""
    return joined([part for part in (ends, last) if part])


def packs(config: Config) -> bool:
    """Whether several examples share a row: by default for pt only."""
    if not config.kind.learns_tokens:
        return False
    return bool(
        config.neat_packing or (config.packing if config.packing is not None else config.kind.rows == "text")
    )


def _target(source: int, target: int, cutoff: int) -> int:
    """The answer's share of the cutoff: LLaMA-Factory's rule (a short side is kept whole, else in proportion)."""
    if target * 2 < cutoff:
        longest = cutoff
    elif source * 2 < cutoff:
        longest = cutoff - source
    else:
        longest = int(cutoff * target / (source + target))
    return min(longest, target)


def _shorten(prompt: Ids, size: int, opening: int) -> Ids:
    """A prompt's opening and its end, `size` tokens in all."""
    if size >= len(prompt):
        return prompt
    opening = min(opening, size)
    return prompt[:opening] + prompt[len(prompt) - (size - opening) :]


def _end_kept(answer: Ids, size: int, ending: int) -> Ids:
    """An answer's beginning and its end-of-turn, `size` tokens in all."""
    if size >= len(answer):
        return answer
    ending = min(ending, size)
    return answer[: size - ending] + answer[len(answer) - ending :]


def encode(row: Row, config: Config, template: Template, tokenizer: Tokenizer) -> Encoded | Dropped:
    """One normal row as ids for the config's stage, or why it cannot be used."""
    encoder = Encoder(config, template, tokenizer)
    draft = encoder.draft(row)
    if isinstance(draft, Dropped):
        return draft
    return encoder.fit(draft, tokenizer.encode_batch(draft.texts, encoder.continues(draft.texts)))
