"""Records with questions into token ids: one prompt a question, of which all of a record share the part with the state.

A row is `prompt_ids`, what every prompt of the record begins with; `question_ids`, what follows of each, one behind the
other, with `question_sizes`; for each question `types` (its place in TYPES) and `option_sizes`; `targets`, a share for each
option in millionths; and `asked`, the names of questions and options. A label is predicted behind each prompt.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tuner.config.config import Config
from tuner.data.control_tokens import Letters
from tuner.data.decisions import (
    CHOICE,
    LABELS,
    TYPES,
    Question,
    QuestionError,
    prompt,
    questions_of,
)
from tuner.data.drafts import Draft, Ids
from tuner.data.encode import Encoded, Encoder
from tuner.data.formats import Dropped, Row
from tuner.data.template_choice import to_save
from tuner.data.templates import RefusedError, Template
from tuner.data.tokens import Tokenizer
from tuner.text.lookup import tr

WHOLE = 1_000_000
"""What the shares of a question add up to in a row."""
UNREAD = -1
"""Instead of the id of a label that is not one token."""


Parser = Callable[[Any], list[Question]]


def encoder(
    config: Config, template: Template, tokenizer: Tokenizer, parse: Parser = questions_of
) -> Encoder:
    """What encodes the rows of a config's stage; `parse` reads the questions of records."""
    if config.kind.rows != "decisions":
        return Encoder(config, template, tokenizer)
    return DecisionEncoder(config, template, tokenizer, parse)


def measuring(made: Encoder) -> Encoder:
    """The encoder of sets that are only measured on: their options stay in their own order, in which callers ask."""
    if not isinstance(made, DecisionEncoder):
        return made
    config = made.config.with_values(shuffle_options=False)
    return DecisionEncoder(config, made.template, made.tokenizer, made.parse)


def label_ids(tokenizer: Tokenizer) -> list[int]:
    """The id of each of LABELS, UNREAD for one that is unknown or several tokens."""
    unknown = tokenizer.settings.get("unk_token")
    bad = tokenizer.id_of(unknown) if isinstance(unknown, str) else None
    found = tokenizer.encode_batch(LABELS)
    return [ids[0] if len(ids) == 1 and ids[0] != bad else UNREAD for ids in found]


def unread(question: Question, ids: Sequence[int]) -> list[str]:
    """The labels of a question that a tokenizer with these `label_ids` cannot read."""
    own = ids[question.first : question.first + len(question.options)]
    twice = len(set(own)) < len(own)
    return [label for label, i in zip(question.labels, own, strict=True) if i == UNREAD or twice]


class Prompts:
    """Writes and encodes the prompts that ask questions, for a template."""

    def __init__(self, config: Config, template: Template, tokenizer: Tokenizer):
        self.template, self.tokenizer = template, tokenizer
        saved = to_save(template, tokenizer, config) or tokenizer.chat_template or ""
        self.letters = Letters(tokenizer, saved)

    def text(self, state: Any, question: Question) -> str:
        """The prompt of a question, control tokens of the data marked. Raises RefusedError."""
        said = self.letters.mark(prompt(state, question))
        return self.template.prompt([{"role": "user", "content": said}])

    def ids(self, text: str, known: Ids | None = None) -> Ids:
        """The ids of such a prompt; `known` are those it has without marks."""
        if self.letters.needs(text):
            return self.letters.encode(text)
        return self.tokenizer.encode(text) if known is None else known


class Asked(NamedTuple):
    """A question as it is asked, and the share of each of its options."""

    question: Question
    shares: list[float]


class DecisionEncoder(Encoder):
    """Encodes records with questions."""

    def __init__(
        self, config: Config, template: Template, tokenizer: Tokenizer, parse: Parser = questions_of
    ):
        super().__init__(config, template, tokenizer)
        self.parse = parse
        self.prompts = Prompts(config, template, tokenizer)
        self.labels = label_ids(tokenizer)

    def draft(self, row: Row) -> Draft | Dropped:
        """The prompts of a record's questions."""
        try:
            asked = self._asked(row)
        except QuestionError as error:
            return Dropped(tr("broken question"), str(error))
        for question, _ in asked:
            if bad := unread(question, self.labels):
                said = tr(
                    "{labels} of question {name!r}: this tokenizer has no single token for it",
                    labels=", ".join(bad),
                    name=question.name,
                )
                return Dropped(tr("labels of several tokens"), said)
        try:
            texts = [self.prompts.text(row["state"], question) for question, _ in asked]
        except RefusedError as refused:
            return Dropped(tr("the template refuses"), str(refused))
        return Draft(texts, [], {**row, "asked": asked})

    def _asked(self, row: Row) -> list[Asked]:
        """The questions of a row; options of a choice in an order by chance, always the same for the same row and seed. Raises
        QuestionError."""
        found = [Asked(q, row["gold"][q.name]) for q in self.parse(row["questions"])]
        if not (self.config.shuffle_options and self.config.do_train):
            return found
        chance = random.Random(f"{self.config.seed} {row['state']!r}")
        return [_shuffled(one, chance) if one.question.type == CHOICE else one for one in found]

    def continues(self, texts: Sequence[str]) -> list[bool]:
        """Each is a whole prompt."""
        return [False] * len(texts)

    def count(self, draft: Draft, counts: Sequence[int]) -> Encoded | None:
        """What of the prompts is shared is in their ids."""
        return None

    def frame(self) -> str:
        """What the template puts around a question."""
        return self.template.prompt([{"role": "user", "content": "x"}])

    def fit(self, draft: Draft, ids: Sequence[Ids]) -> Encoded | Dropped:
        """The row of a record, its state cut where the longest prompt does not fit the cutoff."""
        asked: list[Asked] = draft.row["asked"]
        whole = [self.prompts.ids(text, known) for text, known in zip(draft.texts, ids, strict=True)]
        length = max(map(len, whole))
        kept = whole if length <= self.cutoff else self._shortened(whole, asked)
        if kept is None:
            said = tr(
                "a question without its state has more tokens than cutoff_len {cutoff}", cutoff=self.cutoff
            )
            return Dropped(tr("too long"), said)
        shared = _shared(kept)
        row = {
            "prompt_ids": kept[0][:shared],
            "question_ids": [i for prompt_ids in kept for i in prompt_ids[shared:]],
            "question_sizes": [len(prompt_ids) - shared for prompt_ids in kept],
            "types": [TYPES.index(question.type) for question, _ in asked],
            "option_sizes": [len(question.options) for question, _ in asked],
            "targets": [part for one in asked for part in _millionths(one.shares)],
            "asked": {question.name: list(question.options) for question, _ in asked},
        }
        tokens = shared + len(row["question_ids"])
        return Encoded(
            row, tokens, len(asked), length, tr("the end of the state") if kept is not whole else ""
        )

    def _shortened(self, whole: Sequence[Ids], asked: Sequence[Asked]) -> list[Ids] | None:
        """The prompts with as much of the state's begin as all of them have room for; None where that is nothing."""
        bare = [self.prompts.ids(self.prompts.text("", question)) for question, _ in asked]
        ends = [_ends(ids, without) for ids, without in zip(whole, bare, strict=True)]
        room = min(self.cutoff - head - tail for head, tail in ends)
        if room < 1:
            return None
        return [
            ids[: head + room] + ids[len(ids) - tail :] for ids, (head, tail) in zip(whole, ends, strict=True)
        ]


def _shuffled(asked: Asked, chance: random.Random) -> Asked:
    order = list(range(len(asked.shares)))
    chance.shuffle(order)
    return Asked(asked.question.ordered(order), [asked.shares[i] for i in order])


def _millionths(shares: Sequence[float]) -> list[int]:
    """Whole numbers that add up to WHOLE; the largest takes what rounding left."""
    parts = [round(share * WHOLE) for share in shares]
    parts[parts.index(max(parts))] += WHOLE - sum(parts)
    return parts


def _shared(prompts: Sequence[Ids]) -> int:
    """How many tokens all prompts begin with, short of the last one of each, behind which a label is read."""
    most = min(map(len, prompts)) - 1
    first = prompts[0]
    return next((i for i in range(most) if any(ids[i] != first[i] for ids in prompts[1:])), most)


def _ends(ids: Ids, without: Ids) -> tuple[int, int]:
    """How many tokens stand before and behind the state: those that the prompt has without one too."""
    most = min(len(ids), len(without))
    head = next((i for i in range(most) if ids[i] != without[i]), most)
    tail = next((i for i in range(most - head) if ids[-1 - i] != without[-1 - i]), most - head)
    return head, tail


class Read(NamedTuple):
    """One question of a row: its whole prompt, its type's place in TYPES, and the share of each option."""

    name: str
    options: tuple[str, ...]
    type: int
    prompt: Ids
    shares: list[float]


def questions_in(row: Mapping[str, Any]) -> list[Read]:
    """The questions of an encoded row, each by itself."""
    found, at, option = [], 0, 0
    parts = zip(row["asked"].items(), row["types"], row["question_sizes"], row["option_sizes"], strict=True)
    for (name, options), kind, size, count in parts:
        own = list(row["prompt_ids"]) + list(row["question_ids"][at : at + size])
        shares = [part / WHOLE for part in row["targets"][option : option + count]]
        found.append(Read(name, tuple(options), kind, own, shares))
        at, option = at + size, option + count
    return found
