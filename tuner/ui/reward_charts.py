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
        "What the answers are worth: the weighted sum of the rewards, its mean over a batch, with the spread of single answers as a "
        "band. This is what the run is to raise. A band that closes while the line is low means that the answers have become alike."
    ),
)
PARTS = Chart(
    "reward-parts",
    mark("Reward by part"),
    (),
    mark(
        "The mean of each reward before its weight. One that rises while another falls is bought with it: change their weights."
    ),
    optional=True,
)
DISTANCE = Chart(
    "kl",
    mark("Distance from the start"),
    (Line("kl", "KL"),),
    mark(
        "How far the answers have moved from the model you started with. A steady climb is the price of the reward; a jump means that "
        "it found something that scores and is no language: raise beta or lower the learning rate."
    ),
    unit="nats",
    optional=True,
)
SIGNAL = Chart(
    "signal",
    mark("Groups without signal"),
    (Line("frac_reward_zero_std", mark("all alike")),),
    mark(
        "The share of prompts to which all answers got the same reward: they teach nothing. Near 100% at the start means that the "
        "reward never comes; near 100% at the end, that it always does."
    ),
    unit="%",
    scale=100,
    span=(0, 100),
)
LENGTHS = Chart(
    "answer-lengths",
    mark("Length of answers"),
    (Line("completions/mean_length", "mean"), Line("completions/max_length", "longest", "second")),
    mark(
        "Tokens an answer has. Growth without end, with the share of cut answers, means that length itself is rewarded."
    ),
    unit="tokens",
)
CUT = Chart(
    "cut",
    mark("Answers cut short"),
    (Line("completions/clipped_ratio", "cut"),),
    mark(
        "The share of answers that did not end by themselves within max_new_tokens. Where it is high, raise that, or reward shorter "
        "answers."
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
        "How undecided the model is at each token, on the mean. Where it learns from answers of its own, near zero means that all of "
        "them are the same, and nothing more is learnt: raise temperature, or stop earlier."
    ),
    unit="nats",
    optional=True,
)
LIMITED = Chart(
    "limited",
    mark("Tokens at the limit"),
    (Line("clip_ratio/region_mean", mark("at epsilon")),),
    mark(
        "The share of tokens whose probability moved as far as epsilon allows and is not pushed on. It is 0 while each batch is "
        "learnt from once."
    ),
    unit="%",
    scale=100,
    optional=True,
)
VALUE = Chart(
    "value-loss",
    mark("Value loss"),
    (Line("value_loss", "value"),),
    mark(
        "How far the value head's guess of what an answer will be worth is off. It should fall and then follow the reward."
    ),
    log=True,
    optional=True,
)
HOLD = Chart(
    "kl-weight",
    mark("Weight of the distance"),
    (Line("kl_weight", "weight"),),
    mark(
        "What each nat of distance from the start takes off the reward. It climbs while the distance is above ppo_target and falls while "
        "it is below."
    ),
    optional=True,
)
TIME = Chart(
    "step-time",
    mark("Time of a step"),
    (Line("step_time/rollout", mark("writing answers")), Line("step_time/learning", "learning", "second")),
    mark("Where a step's time goes. Fewer answers to a prompt, or shorter ones, make the writing quicker."),
    unit="s",
)
OBJECTIVE = Chart(
    "loss",
    mark("Loss"),
    (Line("loss", "train"),),
    mark(
        "What a step makes small. It need not fall however well the run learns: where answers to a prompt are compared it stays about "
        "zero, for what they are ahead and behind adds up to nothing. Read the reward."
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
