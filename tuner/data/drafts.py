"""Normal rows as the texts that are tokenised of them: what the template writes, cut where prompt and answer meet, with what
stands for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tuner.config.config import Config
from tuner.data.formats import Dropped, Row
from tuner.data.pictures.drawing import Drawn, Pictures, Seen
from tuner.data.pictures.opening import PictureError
from tuner.data.templates import PICTURE, Exchange, RefusedError, Template, Written, common_prefix
from tuner.data.tokens import Tokenizer
from tuner.data.turns import PLACEHOLDER
from tuner.text.lookup import mark, tr

Ids = list[int]
TEXT_ALONE = mark("the model reads text alone")


class Draft(NamedTuple):
    """The texts of a row, to be tokenised, what their ends are, and what is worth knowing: (finding, detail).

    `images` are the files of its pictures in order, and `drawn` what of them stands in each text.
    """

    texts: list[str]
    exchanges: list[Exchange]
    row: Row
    notes: tuple[tuple[str, str], ...] = ()
    images: tuple[str, ...] = ()
    drawn: tuple[Drawn, ...] = ()

    @property
    def picture_tokens(self) -> int:
        """How many tokens its pictures are."""
        return sum(sum(drawn.runs) for drawn in self.drawn)


class Drafter:
    """Writes the texts of rows for one config: its stage and template."""

    def __init__(self, config: Config, template: Template, tokenizer: Tokenizer):
        self.config = config
        self.template = template
        self.tokenizer = tokenizer
        self.rows = config.kind.rows
        self.pictures = Pictures.of(config, tokenizer)
        own = not isinstance(template, Written)
        self._mark = self.pictures.tokens.marker if self.pictures and own else PICTURE

    def draft(self, row: Row) -> Draft | Dropped:
        """The texts of a row."""
        try:
            return self._with_pictures(row)
        except PictureError as unfit:
            return Dropped(unfit.reason, unfit.detail)

    def _with_pictures(self, row: Row) -> Draft | Dropped:
        """The texts of a row, its pictures in them. Raises PictureError."""
        shown = row.get("images", ())
        if shown and not self.pictures:
            return Dropped(TEXT_ALONE, tr("the row has pictures"))
        seen = self.pictures.found(shown) if self.pictures else []
        given = {**row, "messages": marked(row["messages"])} if seen else row
        given = _guarded(given, self.tokenizer) if self.config.split_special_tokens else given
        draft = self._drafted(given)
        if isinstance(draft, Dropped):
            return draft
        notes = draft.notes if seen or not self.pictures else (*draft.notes, *_unmeant(row))
        return self._put(draft, seen)._replace(row=row, notes=notes)

    def _put(self, draft: Draft, seen: Sequence[Seen]) -> Draft:
        """A row's texts with what stands for its pictures, which a text that tells of none may not hold."""
        if not self.pictures:
            return draft
        texts, drawn = self.pictures.put(draft.texts, self._mark, seen)
        return draft._replace(texts=texts, images=tuple(one.path for one in seen), drawn=drawn)

    def prompt(
        self, messages: Sequence[dict[str, Any]], images: Sequence[Any] = (), tools: Any = (), begun: str = ""
    ) -> tuple[Ids, tuple[str, ...]]:
        """Ids that ask for an answer, which begins as `begun`, and the files of the pictures that stand in them.

        In the messages a PICTURE stands for each of `images` (see `marked`). Raises RefusedError, PictureError.
        """
        if images and not self.pictures:
            raise PictureError(TEXT_ALONE)
        draft = Draft([self.template.prompt(messages, tools) + begun], [], {})
        if not self.pictures or not images:
            return self.tokenizer.encode(draft.texts[0]), ()
        draft = self._put(draft, self.pictures.found(images))
        return self.pictures.spread(self.tokenizer.encode(draft.texts[0]), draft.drawn[0]), draft.images

    def _drafted(self, row: Row) -> Draft | Dropped:
        if self.rows == "text":
            return Draft([self._plain(row)], [], row)
        try:
            if self.rows == "prompts":
                return Draft([self.template.prompt(row["messages"], row.get("tools", ()))], [], row)
            draft = self._chat(row) if "chosen" not in row else self._pair(row)
        except RefusedError as refused:
            return Dropped(mark("the template refuses"), str(refused))
        lost = self._lost_thought(row, draft.texts)
        return draft._replace(notes=((mark("thought left out"), lost[:120]),)) if lost else draft

    def _lost_thought(self, row: Row, texts: Sequence[str]) -> str:
        """A thought of the row's last answers that the template does not write; empty where it writes all."""
        if self.config.enable_thinking is False:  # which asks for just that
            return ""
        sides = [row[s] for s in ("chosen", "rejected", "completion") if s in row] or row["messages"][-1:]
        for message in sides:
            thought = message.get("reasoning_content") or message["content"].rpartition("</think>")[0]
            thought = thought.rpartition("<think>")[2].strip()
            if thought and not any(thought in text for text in texts):
                return str(thought)
        return ""

    def _plain(self, row: Row) -> str:
        text = row["text"] if "text" in row else "\n".join(m["content"] for m in row["messages"])
        begin = self.tokenizer.bos or "" if self.tokenizer.settings.get("add_bos_token") else ""
        end = self.tokenizer.eos or ""
        if self.template.name == "llama3" and self.tokenizer.id_of("<|end_of_text|>") is not None:
            end = "<|end_of_text|>"
        return begin + text + end

    def _chat(self, row: Row) -> Draft:
        tools = row.get("tools", ())
        if "completion" in row:
            exchanges = self.template.answers(row["messages"], [row["completion"]], tools)
        elif self.config.mask_history:
            *before, last = row["messages"]
            exchanges = self.template.answers(before, [last], tools)
        else:
            exchanges = self.template.exchanges(row["messages"], tools)
        return Draft([text for e in exchanges for text in (e.prompt, e.answer)], exchanges, row)

    def _pair(self, row: Row) -> Draft:
        replies = [row["chosen"], row["rejected"]]
        better, worse = self.template.answers(row["messages"], replies, row.get("tools", ()))
        if better.prompt != worse.prompt:
            # An empty thought that only one side has belongs to that side's answer.
            prompt = common_prefix(better.prompt, worse.prompt)
            better, worse = (
                e._replace(prompt=prompt, answer=e.prompt[len(prompt) :] + e.answer, header="")
                for e in (better, worse)
            )
        return Draft([better.prompt, better.answer, worse.answer], [better, worse], row)

    def continues(self, texts: Sequence[str]) -> list[bool]:
        """Which of a row's texts go on behind ordinary text, for tokenizers that mark the begin of a text."""
        specials, once = self.tokenizer.specials, self.tokenizer.marks_once
        flags: list[bool] = []
        before = ""
        for text in texts:
            flags.append(bool(before) and (once or not before.endswith(specials)))
            before = text or before
        if self.rows == "pairs" and len(flags) == 3:
            flags[2] = flags[1]  # both answers follow the prompt
        return flags

    def frame(self) -> str:
        """A text that holds what the template puts around turns."""
        if self.rows == "text":
            return ""
        asked = [{"role": "user", "content": "x"}]
        try:
            found = self.template.answers(asked, [{"role": "assistant", "content": "x"}])
        except RefusedError:
            return ""
        return found[0].prompt + found[0].answer


def marked(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose questions hold a mark that no text has where a picture stands."""
    return [
        said
        if said["role"] == "assistant"
        else {**said, "content": said["content"].replace(PLACEHOLDER, PICTURE)}
        for said in messages
    ]


def _unmeant(row: Row) -> list[tuple[str, str]]:
    """What is worth knowing of a row without pictures that says `<image>`: a text like any other."""
    said = [m["content"] for m in row.get("messages", ()) if PLACEHOLDER in m["content"]]
    return [(mark("<image> without a picture"), said[0][:120])] if said else []


def _guarded(value: Any, tokenizer: Tokenizer, key: str = "") -> Any:
    """A row whose texts hold no special token: what looks like one in the data is read as its letters."""
    if isinstance(value, str):
        return value if key in ("role", "type") else tokenizer.guarded(value)
    if isinstance(value, dict):
        return {k: _guarded(v, tokenizer, k) for k, v in value.items()}
    return [_guarded(v, tokenizer) for v in value] if isinstance(value, list) else value
