"""Pictures put in their places: in a row's texts before these are tokenised, and in the ids that come of them.

In a text every run of a picture's token stands as one, for a picture can be thousands; its length is put back in the ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tuner.config.config import Config
from tuner.data.catalog import catalog_folder
from tuner.data.pictures.opening import PictureError, size_of
from tuner.data.pictures.places import Keep, located
from tuner.data.pictures.sizes import PictureTokens, Pieces, picture_tokens
from tuner.data.tokens import Tokenizer
from tuner.text.lookup import mark, tr

Ids = list[int]


class Seen(NamedTuple):
    """A row's picture: its file, and what stands for it."""

    path: str
    pieces: Pieces


class Drawn(NamedTuple):
    """What stands in one text of a row: how many pictures, and how long each run of the picture's token is."""

    pictures: int = 0
    runs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pictures:
    """How a config's rows show pictures to its model."""

    tokens: PictureTokens
    folder: Path | None
    max_pixels: int
    min_pixels: int
    token_id: int
    ids: frozenset[int]
    """All ids that belong to pictures and to nothing else."""
    keep: Keep | None = None
    """Where bytes are kept, if not where those of rows are."""

    @classmethod
    def of(cls, config: Config, tokenizer: Tokenizer) -> Pictures | None:
        """Those of a config; None where its model reads text alone."""
        tokens = picture_tokens(tokenizer.folder, config.image_do_pan_and_scan) if tokenizer.folder else None
        token_id = tokenizer.id_of(tokens.token) if tokens else None
        if tokens is None or token_id is None:
            return None
        known = (tokenizer.id_of(text) for text in (tokens.token, *tokens.frame))
        ids = frozenset(i for i in known if i is not None)
        return cls(
            tokens, media_folder(config), config.image_max_pixels, config.image_min_pixels, token_id, ids
        )

    def found(self, sources: Sequence[Any]) -> list[Seen]:
        """A row's pictures, their sizes read from their headers. Raises PictureError."""
        return [self._one(source) for source in sources]

    def _one(self, source: Any) -> Seen:
        path = located(source, self.folder, self.keep)
        return Seen(path, self.tokens.pieces(*size_of(path, self.max_pixels, self.min_pixels)))

    def put(
        self, texts: Sequence[str], mark: str, seen: Sequence[Seen]
    ) -> tuple[list[str], tuple[Drawn, ...]]:
        """Texts with what stands for each picture in place of each `mark`, and what is in each text.

        Raises PictureError where a text holds a token of pictures that stands for none.
        """
        pictures = iter(seen)
        found = [self._one_text(text, mark, pictures) for text in texts]
        if sum(drawn.pictures for _, drawn in found) != len(seen):
            raise PictureError(LEFT_OUT, tr("the template does not write every picture"))
        return [text for text, _ in found], tuple(drawn for _, drawn in found)

    def _one_text(self, text: str, mark: str, pictures: Iterator[Seen]) -> tuple[str, Drawn]:
        first, *rest = text.split(mark)
        if any(self.tokens.token in part for part in (first, *rest)):
            raise PictureError(STRAY, self.tokens.token)
        here = [seen for _, seen in zip(rest, pictures, strict=False)]
        if len(here) != len(rest):
            raise PictureError(STRAY, mark)
        whole = first + "".join(seen.pieces.text + part for seen, part in zip(here, rest, strict=True))
        return whole, Drawn(len(here), tuple(run for seen in here for run in seen.pieces.runs))

    def spread(self, ids: Ids, drawn: Drawn) -> Ids:
        """Ids with every run of the picture's token at its length."""
        if not drawn.runs:
            return ids
        runs = iter(drawn.runs)
        return [one for i in ids for one in ([i] * next(runs) if i == self.token_id else (i,))]

    def whole(self, before: Ids, after: Ids) -> bool:
        """Whether a cut from `before` to `after` left every picture as it was."""
        return len(before) == len(after) or self._held(before) == self._held(after)

    def _held(self, ids: Ids) -> int:
        return sum(i in self.ids for i in ids)


def media_folder(config: Config) -> Path | None:
    """The folder that a config's pictures lie in."""
    return folder_at(config.media_dir, config.dataset_dir)


def folder_at(media_dir: str | None, dataset_dir: str) -> Path | None:
    """The folder that pictures' paths begin in; None for sets of a hub, which bring bytes."""
    if not media_dir and (dataset_dir == "ONLINE" or dataset_dir.startswith("REMOTE:")):
        return None
    return catalog_folder(media_dir or dataset_dir)


TOO_MANY = mark("an image does not fit into cutoff_len")
STRAY = mark("a picture's token in the text")
LEFT_OUT = mark("picture left out by the template")
