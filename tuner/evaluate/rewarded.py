"""What rewards say of the answers of an evaluation: what a run that learns from them would see before its first step."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tuner.evaluate.questions import Question
from tuner.rewards.reward import Completion, Reward, Scored, score_all


def completion(one: Question, said: str, tokens: int, longest: int, rendered: str = "") -> Completion:
    """An answer of so many tokens as rewards see it; one that is as long as answers may be was cut, and any other has one
    more, which ended it. `rendered` is the prompt with its marks."""
    turns = [str(turn.get("content") or "") for turn in one.messages if turn.get("role") == "user"]
    return Completion(
        prompt=turns[-1] if turns else one.shown,
        messages=one.messages,
        text=said,
        label=one.expected if one.answer else None,
        tokens=min(tokens + 1, longest),
        finished=tokens < longest,
        tools=one.tools,
        columns=one.columns,
        whole=rendered and rendered + said,
    )


def rewarded(
    rewards: Sequence[Reward], completions: Sequence[Completion]
) -> tuple[list[Scored], dict[str, float]]:
    """What each answer gets, and the metrics by the names that training gives them. Raises ConfigError."""
    found = score_all(rewards, completions)
    metrics = _spread("reward", "reward_std", [one.total for one in found])
    for reward in rewards:
        values = [one.parts[reward.name] for one in found]
        metrics |= _spread(f"rewards/{reward.name}/mean", f"rewards/{reward.name}/std", values)
    return found, metrics


def _spread(mean: str, spread: str, values: Sequence[float | None]) -> dict[str, float]:
    """The mean of those that there are, and their standard deviation over all of them."""
    known = [value for value in values if value is not None]
    return {mean: statistics.fmean(known), spread: statistics.pstdev(known)} if known else {}
