"""The table of charts: which a stage has, which metrics they draw, and how to read them. Nothing here draws."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from tuner.config.kinds import KINDS, trains
from tuner.text.lookup import mark, tr
from tuner.ui import reward_charts
from tuner.ui.chart import Chart, Line, Measured
from tuner.ui.words import number

LOSS = Chart(
    "loss",
    mark("Loss"),
    (Line("loss", "train"), Line("eval_loss", "evaluation", "second")),
    mark(
        "What training minimises. It should fall quickly, then level off. If the evaluation loss rises while the training loss falls, the model overfits: stop there."
    ),
    log=True,
)
PREFERENCE_LOSS = Chart(
    "loss",
    mark("Loss"),
    (Line("loss", "train"), Line("eval_loss", "evaluation", "second")),
    mark(
        "Starts at 0.693 (chance) and falls as the model learns to prefer the chosen answer. Near zero within a few steps means that the pairs are too easy or the learning rate is too high."
    ),
    log=True,
)
REWARDS = Chart(
    "rewards",
    mark("Rewards"),
    (Line("rewards/chosen", "chosen", "good"), Line("rewards/rejected", "rejected", "bad")),
    mark(
        "Log-probability of each answer relative to the reference model, times beta. The chosen line should end above the rejected one. Both may fall, as long as they separate."
    ),
)
MARGIN = Chart(
    "margin",
    mark("Reward margin"),
    (Line("rewards/margins", mark("chosen over rejected")),),
    mark(
        "Reward of the chosen answer minus that of the rejected one. It should rise. A very large margin with a loss near zero means over-optimisation: lower the learning rate or raise beta."
    ),
)
ACCURACY = Chart(
    "accuracy",
    mark("Accuracy"),
    (Line("rewards/accuracies", "train"), Line("eval_rewards/accuracies", "evaluation", "second")),
    mark(
        "Share of pairs in which the chosen answer has the higher reward. 50% is chance; real preference data gives 65 to 80%; 100% suggests overfitting."
    ),
    unit="%",
    scale=100,
    span=(0, 100),
)
TOKEN_ACCURACY = Chart(
    "accuracy",
    mark("Token accuracy"),
    (Line("mean_token_accuracy", "train"), Line("eval_mean_token_accuracy", "evaluation", "second")),
    mark("Share of answer tokens that the model predicts correctly."),
    unit="%",
    scale=100,
    span=(0, 100),
)
REWARD_ACCURACY = Chart(
    "accuracy",
    mark("Accuracy"),
    (Line("accuracy", "train"), Line("eval_accuracy", "evaluation", "second")),
    mark("Share of pairs in which the chosen answer gets the higher score. 50% is chance."),
    unit="%",
    scale=100,
    span=(0, 100),
)
SCORES = Chart(
    "margin",
    mark("Score margin"),
    (Line("margin", mark("chosen over rejected")),),
    mark("Score of the chosen answer minus that of the rejected one. It should rise above zero."),
)
DECISIONS = Chart(
    "accuracy",
    mark("Right answers"),
    (
        Line("accuracy", "train"),
        Line("eval_accuracy", "evaluation", "second"),
        Line("eval_record_accuracy", mark("whole records"), "third"),
    ),
    mark(
        "The share of questions whose likeliest option is the expected one, and of records of which all are right. The Decisions "
        "tab has what the most frequent answer alone would reach."
    ),
    unit="%",
    scale=100,
    span=(0, 100),
)
CALIBRATION = Chart(
    "calibration",
    mark("Calibration error"),
    (Line("calibration_error", "train"), Line("eval_calibration_error", "evaluation", "second")),
    mark(
        "By how much it is less, or more, often right than it is sure, on average. It often grows while accuracy still rises; the "
        "temperature that is fitted at the end takes most of it back."
    ),
    unit="%",
    scale=100,
)
DISTANCE_OF_SHARES = Chart(
    "distance",
    mark("KL from gold"),
    (Line("kl", "train"), Line("eval_kl", "evaluation", "second")),
    mark(
        "How far the probabilities are from those that were expected. Of answers on which people agree it can fall to 0."
    ),
    unit="nats",
    log=True,
)
KL = Chart(
    "kl",
    mark("KL divergence"),
    (Line("kl", "KL"),),
    mark("KL divergence from the reference model. Slow growth is learning; a jump is forgetting."),
    unit="nats",
)
RATE = Chart(
    "rate",
    mark("Learning rate"),
    (Line("learning_rate", mark("learning rate")),),
    mark("The scheduled learning rate: it rises during warm-up, then decays."),
    smoothed=False,
)
GRADIENT = Chart(
    "gradient",
    mark("Gradient norm"),
    (Line("grad_norm", "norm"),),
    mark(
        "Norm of the gradient before clipping. Single spikes are clipped by max_grad_norm. Continuous growth precedes divergence: lower the learning rate."
    ),
    log=True,
)
SCORE = Chart(
    "score",
    mark("Score on held-out questions"),
    (Line("score", "score"), Line("score/correct", mark("right answers"), "second")),
    mark(
        "Share of held-out questions that are answered as the run should teach. It should rise; a falling loss alone does not prove learning."
    ),
    unit="%",
    scale=100,
    smoothed=False,
    span=(0, 100),
    optional=True,
)
EXACT = replace(
    SCORE,
    title=mark("Held-out exact match"),
    lines=(Line("score", mark("exact match")),),
    help=mark(
        "Share of answers that are identical to the expected one. Free text rarely matches exactly: read the samples instead."
    ),
)
"""What the score is where the questions do not say how they are scored."""
HELD_REWARD = replace(
    SCORE,
    title=mark("Reward on held-out prompts"),
    lines=(Line("score", "reward"),),
    help=mark(
        "Reward of greedy answers to held-out prompts, at every save. It should rise with the training reward; if it does not, the run overfits its prompts."
    ),
    unit="",
    scale=1.0,
    span=None,
)
"""What the score is where rewards score the answers."""
SPEED = Chart(
    "speed",
    mark("Speed"),
    (Line("tokens_per_second", "speed"),),
    mark("Tokens processed per second. It varies with the length of the rows."),
    unit="tokens/s",
)
LOAD = Chart(
    "load",
    mark("Processor load"),
    (
        Line("system/cpu_utilization_percentage", "CPU"),
        Line("system/gpu_0_utilization_percentage", "GPU", "second"),
    ),
    mark("Utilisation of CPU and GPU. A GPU well below 90% waits for data or needs a larger batch."),
    unit="%",
    smoothed=False,
    span=(0, 100),
    axis="seconds",
)
_OF_THE_FIRST = Line("system/process_memory_usage_megabytes", mark("RAM, this run"), "third")
MEMORY = Chart(
    "memory",
    mark("Memory"),
    (
        Line("system/system_memory_usage_megabytes", mark("RAM, whole machine")),
        _OF_THE_FIRST,
        Line("system/gpu_0_memory_usage_megabytes", "GPU", "second"),
    ),
    mark("Memory in use. Steady after the first steps; a slow climb is a leak."),
    unit="GiB",
    scale=1 / 1024,
    smoothed=False,
    axis="seconds",
)

_MACHINE = (LOAD, MEMORY)
_PLAIN = (SCORE, RATE, GRADIENT, SPEED, *_MACHINE)
NAMED = {
    "loss": LOSS,
    "token_accuracy": TOKEN_ACCURACY,
    "preference_loss": PREFERENCE_LOSS,
    "reward_accuracy": REWARD_ACCURACY,
    "score_margin": SCORES,
    "rewards": REWARDS,
    "margin": MARGIN,
    "accuracy": ACCURACY,
    "kl": KL,
    "decisions": DECISIONS,
    "calibration": CALIBRATION,
    "decision_distance": DISTANCE_OF_SHARES,
    **reward_charts.NAMED,
}
"""The charts that a kind of run may name as its own."""


def charts_of(stage: str, measured: Iterable[str] = ()) -> tuple[Chart, ...]:
    """The charts of a stage's run; `measured` are its metrics."""
    own = KINDS[stage].charts if stage in KINDS else ("loss",)
    charts = (*(NAMED[name] for name in own), *(_PLAIN if trains(stage) else _MACHINE))
    charts = tuple(reward_charts.each_part(_each_device(chart, measured), measured) for chart in charts)
    if stage in KINDS and KINDS[stage].rewarded:
        return tuple(HELD_REWARD if chart is SCORE else chart for chart in charts)
    return charts if is_scored(measured) else tuple(EXACT if chart is SCORE else chart for chart in charts)


def _each_device(chart: Chart, measured: Iterable[str]) -> Chart:
    """The chart with a line for every GPU that was measured, and for every process beside the first."""
    alone = [line for line in chart.lines if "gpu_0" in line.metric]
    if not alone:
        return chart
    lines = [line for line in chart.lines if line not in alone]
    found = {name: int(at[1]) for name in measured if (at := _DEVICE.search(name))}
    for name, place in sorted(found.items(), key=lambda one: one[1]):
        for line in alone:
            if name == line.metric.replace("gpu_0", f"gpu_{place}"):
                before = sum("gpu_" in one.metric for one in lines)
                lines.append(Line(name, f"GPU {place}", line.tone, before))
        if chart is MEMORY and name.startswith("system/rank_"):
            lines.append(Line(name, tr("RAM, process {place}", place=place), "third", place))
    if any("rank_" in line.metric for line in lines):
        lines = [
            replace(one, label=tr("RAM, process {place}", place=0)) if one == _OF_THE_FIRST else one
            for one in lines
        ]
    any_gpu = any("gpu_" in line.metric for line in lines)
    return replace(
        chart, lines=tuple(lines if any_gpu else [*lines, *alone])
    )  # one has its place before it is measured


_DEVICE = re.compile(r"^system/(?:gpu|rank)_(\d+)_")


def is_scored(measured: Iterable[str]) -> bool:
    """Whether a run's questions say what a right answer has, as the starter's do; else its score is exact match."""
    return any(name.startswith("score/correct") for name in measured)


def shown(charts: Sequence[Chart], measured: Measured, *, ended: bool) -> list[Chart]:
    """The charts to draw. While a run goes on each has its place from the start; in the end those without a point go."""
    return [spoken(c) for c in charts if _has_points(c, measured) or not (ended or c.optional)]


def spoken(chart: Chart) -> Chart:
    """The chart with its words in the language of the moment."""
    lines = tuple(replace(line, label=tr(line.label)) for line in chart.lines)
    title, help, unit, axis = map(tr, (chart.title, chart.help, chart.unit, chart.axis))
    return replace(chart, lines=lines, title=title, help=help, unit=unit, axis=axis)


def _has_points(chart: Chart, measured: Measured) -> bool:
    if chart in (EXACT, reward_charts.LIMITED):  # a line along zero looks like a failure, and says nothing
        return any(measured[line.metric][1].any() for line in chart.lines if line.metric in measured)
    return any(line.metric in measured for line in chart.lines)


def latest(chart: Chart, measured: Measured) -> str:
    """The newest value of a chart's main line, with its unit; of several rewards none is the main one."""
    if chart.key == reward_charts.PARTS.key and len(chart.lines) > 1:
        return ""
    for line in chart.lines:
        if line.metric in measured and len(measured[line.metric][1]):
            value = float(measured[line.metric][1][-1]) * chart.scale
            figure = f"{value:.1f}" if chart.scale != 1 else number(value)
            return f"{figure}%" if chart.unit == "%" else f"{figure} {chart.unit}".strip()
    return ""


def score_chart(measured: Iterable[str]) -> Chart:
    """What the score of runs with these metrics is: of what their rewards say, of what their questions say, or exact match."""
    names = list(measured)
    if "reward" in names:
        return HELD_REWARD
    return SCORE if is_scored(names) else EXACT


def of_metric(metric: str, *, score: Chart = SCORE) -> Chart:
    """How one metric is shown by itself: as its chart in a run's page has it. `score` as `score_chart` says."""
    if metric == "score" and score is not SCORE:
        return spoken(score)
    if part := reward_charts.part_of(metric):
        return spoken(part)
    for chart in (*NAMED.values(), *_PLAIN):
        for line in chart.lines:
            if line.metric == metric:
                alone = spoken(replace(chart, key=metric.replace("/", "-"), lines=(line,)))
                if line is chart.lines[0] and line.tone == "first":
                    return alone
                return replace(alone, title=f"{alone.title}, {alone.lines[0].label}")
    words = metric.removeprefix("system/").replace("/", " ").replace("_", " ")
    axis = "seconds" if metric.startswith("system/") else "step"
    return spoken(Chart(metric.replace("/", "-"), words.capitalize(), (Line(metric, words),), "", axis=axis))
