"""Charts of runs that learn from rewards."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from tuner.text.lookup import mark, tr
from tuner.ui.chart import Chart, Line, Tone

REWARD = Chart(
    "reward",
    mark("Reward"),
    (Line("reward", "train", spread="reward_std"), Line("eval_reward", mark("held out"), "second")),
    mark(
        "Weighted sum of the rewards: batch mean, with the standard deviation as a band. It should rise. A narrow band at a low mean means that the answers have become alike."
    ),
)
PARTS = Chart(
    "reward-parts",
    mark("Reward by part"),
    (),
    mark("Mean of each reward before weighting. If one rises while another falls, change their weights."),
    optional=True,
)
DISTANCE = Chart(
    "kl",
    mark("KL divergence"),
    (Line("kl", "KL"),),
    mark(
        "KL divergence from the reference model. Steady growth is normal. A jump suggests reward hacking: raise beta or lower the learning rate."
    ),
    unit="nats",
    optional=True,
)
SIGNAL = Chart(
    "signal",
    mark("Groups without signal"),
    (Line("frac_reward_zero_std", mark("all alike")),),
    mark(
        "Share of prompts whose answers all got the same reward and give no gradient. Near 100% at the start: no answer is rewarded. Near 100% at the end: every answer is."
    ),
    unit="%",
    scale=100,
    span=(0, 100),
)
LENGTHS = Chart(
    "answer-lengths",
    mark("Answer length"),
    (Line("completions/mean_length", "mean"), Line("completions/max_length", "longest", "second")),
    mark(
        "Tokens per answer. Continuous growth together with truncated answers means that length itself is rewarded."
    ),
    unit="tokens",
)
CUT = Chart(
    "cut",
    mark("Truncated answers"),
    (Line("completions/clipped_ratio", "cut"),),
    mark(
        "Share of answers truncated at max_new_tokens. If it is high, raise max_new_tokens or reward shorter answers."
    ),
    unit="%",
    scale=100,
    span=(0, 100),
)
ENTROPY = Chart(
    "entropy",
    mark("Entropy"),
    (Line("entropy", "a token"),),
    mark(
        "Mean entropy of the next-token distribution. Near zero, all generated answers are the same and nothing is learnt: raise temperature, or stop earlier."
    ),
    unit="nats",
    optional=True,
)
LIMITED = Chart(
    "limited",
    mark("Clipped tokens"),
    (Line("clip_ratio/region_mean", mark("at epsilon")),),
    mark("Share of tokens clipped at epsilon. It is 0 while each batch is used once."),
    unit="%",
    scale=100,
    optional=True,
)
VALUE = Chart(
    "value-loss",
    mark("Value loss"),
    (Line("value_loss", "value"),),
    mark("Error of the value head's reward prediction. It should fall, then follow the reward."),
    log=True,
    optional=True,
)
HOLD = Chart(
    "kl-weight",
    mark("KL coefficient"),
    (Line("kl_weight", "weight"),),
    mark(
        "Penalty per nat of KL divergence. It rises while the divergence is above ppo_target and falls while it is below."
    ),
    optional=True,
)
TIME = Chart(
    "step-time",
    mark("Step time"),
    (Line("step_time/rollout", mark("writing answers")), Line("step_time/learning", "learning", "second")),
    mark("Time per step by part. Fewer or shorter answers make generation faster."),
    unit="s",
)
OBJECTIVE = Chart(
    "loss",
    mark("Loss"),
    (Line("loss", "train"),),
    mark(
        "The policy loss. It need not fall while the run learns: advantages within a group add up to zero. Read the reward instead."
    ),
)
NAMED = {
    "answer_reward": REWARD,
    "reward_parts": PARTS,
    "distance": DISTANCE,
    "signal": SIGNAL,
    "answer_lengths": LENGTHS,
    "cut": CUT,
    "entropy": ENTROPY,
    "limited": LIMITED,
    "value_loss": VALUE,
    "kl_weight": HOLD,
    "step_time": TIME,
    "objective": OBJECTIVE,
}
"""The charts that a kind of run may name as its own."""
_PART = re.compile(r"^rewards/(.+)/mean$")
_TONES: tuple[Tone, ...] = ("first", "second", "third")


def part_of(metric: str) -> Chart | None:
    """How the mean of one reward is shown by itself."""
    if not (found := _PART.match(metric)):
        return None
    line = Line(metric, found[1])
    return replace(
        PARTS, key=metric.replace("/", "-"), title=tr("Reward, {name}", name=found[1]), lines=(line,)
    )


def each_part(chart: Chart, measured: Iterable[str]) -> Chart:
    """The chart of the parts with a line for each reward that was measured; any other chart as it is."""
    if chart is not PARTS:
        return chart
    names = sorted(found[1] for name in measured if (found := _PART.match(name)))
    lines = [
        Line(f"rewards/{name}/mean", name, _TONES[place % 3], place // 3) for place, name in enumerate(names)
    ]
    return replace(chart, lines=tuple(lines))
