"""How likely a model finds the expected answers: their log probabilities, given the prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from tuner.evaluate.questions import Question
from tuner.generate.answers import undisturbed
from tuner.models.vision import Sight

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def log_likelihoods(
    model: PreTrainedModel,
    asked: Sequence[Question],
    cutoff: int,
    check: Callable[[], None] = lambda: None,
    sight: Sight | None = None,
) -> list[tuple[float, int]]:
    """For each question the sum of the natural logarithms of its expected answer's tokens, and how many they are.

    An answer is counted up to `cutoff` tokens of prompt and answer together. `check` is called before each and may raise.
    """
    found = []
    with undisturbed(model):
        for one in asked:
            check()
            found.append(_of(model, one, cutoff, sight))
    return found


def _of(model: PreTrainedModel, one: Question, cutoff: int, sight: Sight | None) -> tuple[float, int]:
    ids = torch.tensor([(one.ids + one.answer)[:cutoff]])
    seen = sight([one.pictures], ids) if sight else {}
    ids, seen = ids.to(model.device), {name: value.to(model.device) for name, value in seen.items()}
    counted = ids.shape[1] - len(one.ids)
    if counted < 1:
        return 0.0, 0
    made = model(input_ids=ids, **seen, logits_to_keep=counted + 1, use_cache=False)
    scores = made.logits[0, :-1].float()
    chosen = torch.log_softmax(scores, -1).gather(-1, ids[0, -counted:, None])
    return float(chosen.sum()), counted


def perplexity(found: Sequence[tuple[float, int]]) -> float:
    """e to the mean negative log probability of a token, over all answers; NaN where there is none."""
    tokens = sum(count for _, count in found)
    return math.exp(-sum(total for total, _ in found) / tokens) if tokens else math.nan
