"""One data set of the catalog: where its rows are, how they are to be read, and what it is good for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from tuner import paths
from tuner.config.kinds import KINDS
from tuner.config.kinds import named as named_kinds
from tuner.config.knobs import ConfigError, Problem
from tuner.data.files import TYPES, first_records
from tuner.text.lookup import mark, tr

Kind = Literal["text", "chat", "pairs", "labelled", "decisions"]

CATALOG = "dataset_info.json"
NOWHERE = Path()
"""The folder of a catalog that came from a hub: none on this machine."""
PICTURE_PARTS = ("image", "image_url", "input_image")
"""What a part of a message that is a picture calls itself."""
LOOK = 20
"""Rows that are looked at to tell what a set is."""
COLUMNS: dict[str, str | None] = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": None,
    "messages": "conversations",
    "system": None,
    "tools": None,
    "images": None,
    "videos": None,
    "audios": None,
    "chosen": None,
    "rejected": None,
    "kto_tag": None,
    "state": None,
    "questions": None,
    "gold": None,
}
TAGS: dict[str, str] = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "observation": "tool",
    "tool": "tool",
    "ipython": "tool",
    "function": "tool",
    "function_call": "call",
    "tool_call": "call",
    "system": "system",
    "developer": "system",
}
KIND_WORDS: Mapping[str, str] = {
    "text": mark("plain text"),
    "chat": mark("prompts with answers"),
    "pairs": mark("pairs of a better and a worse answer"),
    "labelled": mark("answers with thumbs up or down"),
    "decisions": mark("records with typed questions"),
}


@dataclass(frozen=True)
class Outline:
    """A row's columns, and those of them that hold messages with pictures."""

    columns: frozenset[str]
    pictured: frozenset[str]


@dataclass(frozen=True)
class Entry:
    """One data set of the catalog: where its rows are and how they are to be read."""

    name: str
    dataset_dir: Path
    origin: str = "file"
    location: str = ""
    formatting: str = "alpaca"
    ranking: bool = False
    subset: str | None = None
    split: str = "train"
    folder: str | None = None
    num_samples: int | None = None
    columns: Mapping[str, str | None] = field(default_factory=lambda: dict(COLUMNS))
    tags: Mapping[str, str] = field(default_factory=lambda: dict(TAGS))
    named: frozenset[str] = frozenset()
    """The columns that the catalog names itself, as against those left at their defaults."""

    @property
    def local(self) -> bool:
        """Whether the rows lie on this machine."""
        return self.origin in ("file", "script")

    @property
    def source(self) -> str:
        """Where the rows come from: a path, or a hub id with its hub."""
        if self.local:
            return str(self.path)
        return self.location if self.origin in ("hub", "cloud") else f"{self.origin}:{self.location}"

    @property
    def path(self) -> Path:
        """The file or folder; only for local entries."""
        return self.dataset_dir / self.location

    def files(self) -> list[Path]:
        """The files of a local entry, in the order they are read; none for one that is on a hub.

        Raises ConfigError when nothing is there, when a folder mixes types, or when a file is not the catalog's to name.
        """
        if not self.local:
            return []
        self._must_be_inside(self.path)
        if self.path.is_file():
            return [self.path]
        if not self.path.is_dir():
            raise ConfigError(
                [
                    Problem(
                        "dataset",
                        tr(
                            "{name}: there is no {path}; fix file_name in {catalog}.",
                            name=self.name,
                            path=self.path,
                            catalog=CATALOG,
                        ),
                    )
                ]
            )
        found = sorted(
            p for p in self.path.rglob("*") if p.suffix.lstrip(".").lower() in TYPES and p.is_file()
        )
        kinds = sorted({p.suffix.lower() for p in found})
        if not kinds and self.origin == "script":
            sentence = tr(
                "{name}: loading scripts are not run here; write the rows to a file and give its file_name.",
                name=self.name,
            )
            raise ConfigError([Problem("dataset", sentence)])
        if len(kinds) != 1:
            said = (
                tr("mixes {kinds}; keep one type", kinds=", ".join(kinds))
                if kinds
                else tr("holds no {types} file", types=", ".join(TYPES))
            )
            raise ConfigError(
                [
                    Problem(
                        "dataset",
                        tr("{name}: the folder {path} {said}.", name=self.name, path=self.path, said=said),
                    )
                ]
            )
        for path in found:
            self._must_be_inside(path)
        return found

    def _must_be_inside(self, path: Path) -> None:
        """Raise ConfigError for a file that a catalog brought along leads out of its folder to, by a link or `..`.

        A path from the root on is a person's own word, as is the place of the folder.
        """
        if self.dataset_dir == NOWHERE:
            sentence = tr(
                "{name} is in a catalog from the hub, but names the file {location} of this machine; download the set and give its file_name.",
                name=self.name,
                location=self.location,
            )
            raise ConfigError([Problem("dataset", sentence)])
        if Path(self.location).is_absolute():
            return
        real = path.resolve()
        if not real.is_relative_to(self.dataset_dir.resolve()):
            sentence = tr(
                "{name}: {location} leads out of {dataset_dir} to {real}; if that is what you mean, write {real} as its file_name in {catalog}.",
                name=self.name,
                location=self.location,
                dataset_dir=self.dataset_dir,
                real=real,
                catalog=CATALOG,
            )
            raise ConfigError([Problem("dataset", sentence)])

    @cached_property
    def kind(self) -> Kind:
        """What a row of it is; its first rows are read where the catalog alone does not tell."""
        return self.told_kind or ("text" if self._only_text() else "chat")

    @property
    def told_kind(self) -> Kind | None:
        """What a row of it is by what the catalog says; None for what may be talks or plain text."""
        if self.formatting == "decisions":
            return "decisions"
        if self.ranking:
            return "pairs"
        if self.columns.get("kto_tag"):
            return "labelled"
        if self.formatting != "alpaca" or {"response", "messages"} & self.named:
            return "chat"
        return "text" if self.location.endswith(".txt") else None

    @cached_property
    def turn_keys(self) -> tuple[str, str]:
        """Where a turn says who speaks, and what."""
        return self.tags["role_tag"], self.tags["content_tag"]

    @cached_property
    def roles(self) -> Mapping[Any, str]:
        """Who speaks, by the words that rows use for it: the entry's own first, then the usual ones."""
        tags = self.tags
        own = {
            tags["user_tag"]: "user",
            tags["assistant_tag"]: "assistant",
            tags["observation_tag"]: "tool",
            tags["function_tag"]: "call",
            tags["system_tag"]: "system",
        }
        return {**ROLES, **own}

    def _only_text(self) -> bool:
        """Whether rows bring a prompt and no answer: they are then text to read. A few rows say so together, for some
        of them may lack what the others have."""
        rows = self._first_rows() if self.local else []
        if not rows:
            return "prompt" in self.named
        prompt, response = self.columns["prompt"], self.columns["response"]
        return any(prompt in row.columns or "text" in row.columns for row in rows) and not any(
            response in row.columns for row in rows
        )

    def _first_rows(self) -> list[Outline]:
        """What is known of those of the set's first rows that can be read."""
        try:
            found: list[Outline] = []
            for path in self.files():
                found += _outlines(path, paths.stamp(path), LOOK - len(found))
                if len(found) >= LOOK:
                    break
            return found
        except (ConfigError, OSError):
            return []

    @property
    def media(self) -> str:
        """The sentence that refuses videos and sounds; empty for a set of text or pictures."""
        held = [c for c in ("videos", "audios") if self.columns.get(c)]
        if not held:
            return ""
        return tr(
            "{name} holds {held}, which this studio does not train on; choose a set of text or pictures.",
            name=self.name,
            held=held[0],
        )

    @cached_property
    def pictures(self) -> bool:
        """Whether rows have pictures: by a column that the catalog names, or by parts of their messages."""
        if self.columns.get("images"):
            return True
        messages = self.columns.get("messages") or ""
        parted = self.local and self.formatting in ("sharegpt", "openai")
        return parted and any(messages in row.pictured for row in self._first_rows())

    def fits(self, stage: str) -> str | None:
        """None when the stage can learn from this kind of rows, else the sentence that says why not."""
        if self.media:
            return self.media
        reads = KINDS[stage].reads if stage in KINDS else ()
        if self.kind in reads:
            return self._unseen(stage)
        wanted = tr(" or ").join(tr(KIND_WORDS[k]) for k in reads)
        fit = named_kinds(where=lambda kind: self.kind in kind.reads)
        return tr(
            "{name} holds {kind_words}, and stage {stage} needs {wanted}; "
            "choose another data set, or stage {fit}.",
            name=self.name,
            kind_words=tr(KIND_WORDS[self.kind]),
            stage=stage,
            wanted=wanted,
            fit=tr(" or ").join(fit),
        )

    def _unseen(self, stage: str) -> str | None:
        """The sentence for pictures where the stage does not read any."""
        if KINDS[stage].pictures or not self.pictures:
            return None
        fit = named_kinds(where=lambda kind: kind.pictures and self.kind in kind.reads)
        return tr(
            "{name} holds pictures, which stage {stage} does not read; choose another data set, or stage {fit}.",
            name=self.name,
            stage=stage,
            fit=tr(" or ").join(fit or named_kinds(where=lambda kind: kind.pictures)),
        )


@lru_cache(maxsize=512)
def _outlines(path: Path, changed: paths.Stamp, count: int) -> tuple[Outline, ...]:
    """The first rows of a file; kept until it is `changed`. Raises ConfigError and OSError."""
    return tuple(
        Outline(frozenset(row), frozenset(name for name, held in row.items() if _pictured(held)))
        for row in first_records(path, count)
    )


def _pictured(messages: Any) -> bool:
    """Whether these are messages of which one has a part that is a picture."""
    if not isinstance(messages, list | tuple):
        return False
    parts = [part for said in messages if isinstance(said, Mapping) for part in _parts(said)]
    return any(isinstance(part, Mapping) and part.get("type") in PICTURE_PARTS for part in parts)


def _parts(said: Mapping[str, Any]) -> list[Any]:
    return [part for key in ("content", "value") if isinstance(said.get(key), list) for part in said[key]]


def typed_questions(name: str) -> str:
    """Why a set of typed questions is not for an evaluation that writes answers."""
    return tr(
        "The data set {name} holds typed questions, which are not answered in words; measure it with "
        "`tuner train stage={stage} do_train=false do_eval=true eval_dataset={name}`.",
        name=name,
        stage=named_kinds(where=lambda kind: kind.rows == "decisions")[0],
    )
