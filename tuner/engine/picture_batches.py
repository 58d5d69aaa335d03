"""Batches of rows with pictures: ids as ever, and beside them what the model is to see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.engine import group
from tuner.models.vision import Sight, keep_in_step, look_without_gradients, seeing_is_learnt

IMAGES = "images"
"""In a row: the paths of its pictures, in their order in its ids."""
Collate = Callable[[Any], dict[str, Any]]


@dataclass(frozen=True)
class WithPictures:
    """A collator around another that knows ids alone; a class, so that a loader's own processes get it too.

    `answers` is how many sequences a row makes: pairs see their pictures twice, in all chosen answers and then in all
    rejected ones.
    """

    collate: Collate
    sight: Sight
    answers: int = 1

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        pictures = [row.get(IMAGES, ()) for row in rows] * self.answers
        batch = self.collate([{name: v for name, v in row.items() if name != IMAGES} for row in rows])
        return {**batch, **self.sight(pictures, batch["input_ids"])}


def with_pictures(collate: Collate, sight: Sight | None, answers: int = 1) -> Collate:
    """A collator that opens a row's pictures when its batch is made; the same one for a model that sees none."""
    return collate if sight is None else WithPictures(collate, sight, answers)


def in_step(model: Any, sight: Sight | None) -> None:
    """See to it that what sees has gradients where it learns, in every process of several, and none where it does not."""
    if sight is None:
        return
    if not seeing_is_learnt(model):
        look_without_gradients(model)
    elif group.size() > 1:
        keep_in_step(model, sight)
