"""What transformers' training loop refuses, told before anything is loaded: measuring, saving and the schedule.

Each sentence comes with a mend. tests/test_rules.py holds them to the installed TrainingArguments and schedulers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tuner.config.kinds import ONLY_TRL
from tuner.config.knobs import Problem, nearest
from tuner.text.lookup import ended, mark, tr

if TYPE_CHECKING:
    from tuner.config.config import Config

COSINE = frozenset({"num_cycles"})
LOWEST = frozenset({"num_cycles", "min_lr", "min_lr_rate"})
PLATEAU = frozenset(
    {"mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps"}
)
SCHEDULES: dict[str, frozenset[str]] = {
    "linear": frozenset(),
    "cosine": COSINE,
    "cosine_with_restarts": COSINE,
    "polynomial": frozenset({"lr_end", "power"}),
    "constant": frozenset(),
    "constant_with_warmup": frozenset(),
    "inverse_sqrt": frozenset({"timescale"}),
    "reduce_lr_on_plateau": PLATEAU,
    "cosine_with_min_lr": LOWEST,
    "cosine_warmup_with_min_lr": LOWEST | {"warmup_lr_rate"},
    "warmup_stable_decay": COSINE
    | {"num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio"},
    "greedy": PLATEAU | {"warmup", "max_lr", "verbose", "smooth", "window_size", "reset_start"},
}
"""What lr_scheduler_kwargs may say to each schedule."""
MEASURED_BY = ("reduce_lr_on_plateau", "greedy")
"""Schedules that go by what is measured."""


def problems(config: Config) -> Iterator[Problem]:
    """Every contradiction that the loop would stop at."""
    if not config.do_train:
        return
    yield from _whole_steps(config)
    yield from _best(config)
    yield from _schedule(config)
    yield from _loader(config)


def measured_every(config: Config) -> float:
    """Steps between two evaluations: a share of the run below 1."""
    return float(config.eval_steps or config.logging_steps)


def _whole_steps(config: Config) -> Iterator[Problem]:
    for knob, strategy in (
        ("logging_steps", config.logging_strategy),
        ("eval_steps", config.eval_strategy),
        ("save_steps", config.save_strategy),
    ):
        steps = getattr(config, knob)
        if strategy == "steps" and steps and steps > 1 and steps != int(steps):
            said = tr(
                "--{knob} {steps:g} is no whole number; only below 1 it is a share of the run.",
                knob=knob,
                steps=steps,
            )
            yield Problem(knob, said, {knob: round(steps)})


# --- the best checkpoint -------------------------------------------------------------------------------------------


def _best(config: Config) -> Iterator[Problem]:
    if config.load_best_model_at_end and config.eval_strategy != "no" and config.save_strategy != "best":
        yield from _saves_on_evaluations(config)
    if config.save_strategy == "best" and config.eval_strategy == "no":
        said = tr(
            "--save_strategy best saves what measured best and nothing is measured; set --eval_strategy steps."
        )
        yield Problem("eval_strategy", said, {"eval_strategy": "steps"})
    elif asks_for_best(config) and config.eval_strategy != "no":
        yield from _known_metric(config)


def asks_for_best(config: Config) -> bool:
    """Whether the run goes by one number of its evaluations."""
    return bool(
        config.load_best_model_at_end
        or config.early_stopping_steps
        or config.metric_for_best_model
        or config.save_strategy == "best"
        or config.lr_scheduler_type in MEASURED_BY
    )


def _saves_on_evaluations(config: Config) -> Iterator[Problem]:
    if config.save_strategy != config.eval_strategy:
        yield Problem(
            "save_strategy",
            tr(
                "--load_best_model_at_end needs a checkpoint at each measurement: --save_strategy {save_strategy} and "
                "--eval_strategy {eval_strategy} differ; make them the same.",
                save_strategy=config.save_strategy,
                eval_strategy=config.eval_strategy,
            ),
            {"save_strategy": config.eval_strategy},
        )
        return
    every, saves = measured_every(config), config.save_steps
    whole = all(steps < 1 or steps == int(steps) for steps in (every, saves))  # else that is told first
    if config.eval_strategy != "steps" or not whole or _multiple(saves, every):
        return
    if min(saves, every) < 1 <= max(saves, every):
        why, mend = tr("one is a share of the run and one a number of steps"), {"eval_steps": saves}
    else:
        why, mend = tr("that is no multiple of it"), {"save_steps": every * math.ceil(saves / every)}
    yield Problem(
        "save_steps",
        tr(
            "--load_best_model_at_end needs checkpoints that fall on measurements: "
            "--save_steps {saves:g} with --eval_steps {every:g}, and {why}.",
            saves=saves,
            every=every,
            why=why,
        ),
        mend,
    )


def _multiple(saves: float, every: float) -> bool:
    """As transformers counts, shares in millionths; but of a share and a number it takes any pair without a remainder
    (500 with 0.25), and only a save at every step is sure to meet the measurements."""
    if (saves < 1) != (every < 1):
        return saves == 1 and saves % every == 0
    return saves % every == 0 or (saves < 1 and (saves * 1_000_000) % (every * 1_000_000) == 0)


def _known_metric(config: Config) -> Iterator[Problem]:
    first = "reward" if config.kind.rewarded else "loss"
    asked = (config.metric_for_best_model or first).removeprefix("eval_")
    known = results(config)
    if asked in known:
        return
    names = [f"eval_{name}" for name in known]
    if asked == "accuracy" and config.kind.learns_tokens and not config.compute_accuracy:
        said = tr("--metric_for_best_model accuracy is measured with --compute_accuracy True only.")
        yield Problem("metric_for_best_model", said, {"compute_accuracy": True})
        return
    like = nearest(f"eval_{asked}", names) or names[0]
    if config.eval_on_each_dataset and not config.metric_for_best_model:
        losses = [name for name in names if name.endswith(f"_{first}")]
        said = tr(
            "Each --eval_dataset is measured by itself, so that best needs a name: {either}",
            either=_either(losses),
        )
    else:
        said = tr(
            "--metric_for_best_model {metric_for_best_model} is not measured here: {either}",
            metric_for_best_model=config.metric_for_best_model,
            either=_either(names),
        )
    yield Problem("metric_for_best_model", ended(said), {"metric_for_best_model": like})


def results(config: Config) -> list[str]:
    """The names, without eval_, under which an evaluation tells what it found; each set's own with eval_on_each_dataset."""
    # answers that are scored have no loss of their own
    names = [*config.kind.metrics] if config.kind.rewarded else ["loss", *config.kind.metrics]
    if config.kind.learns_tokens:
        whole = config.use_asft_loss or config.use_eaft_loss  # these need all logits and measure less
        names = [n for n in names if not (whole and n == "entropy")]
        names += ["accuracy"] if config.compute_accuracy and not whole else []
    if config.kind.losses and set(config.pref_loss.split(",")) & ONLY_TRL:
        names = ["loss"]
    sets = config.eval_dataset if config.eval_on_each_dataset and config.eval_dataset else ("",)
    return [f"{name}_{result}" if name else result for name in sets for result in names]


def _either(names: list[str]) -> str:
    return names[0] if len(names) == 1 else tr("there are {names}", names=", ".join(names))


# --- the schedule and the loader -----------------------------------------------------------------------------------


def _schedule(config: Config) -> Iterator[Problem]:
    name, said = config.lr_scheduler_type, config.lr_scheduler_kwargs or {}
    if name in MEASURED_BY and config.eval_strategy == "no":
        yield Problem(
            "lr_scheduler_type",
            tr("--lr_scheduler_type {name} goes by what is measured; set --eval_strategy steps.", name=name),
            {"eval_strategy": "steps"},
        )
    unknown = () if name.startswith("constant") else sorted(set(said) - SCHEDULES[name])
    kept = {key: value for key, value in said.items() if key not in unknown}
    mend = {"lr_scheduler_kwargs": _needed(name, kept) | kept or None}
    if lacks := _needed(name, kept):
        yield Problem(
            "lr_scheduler_kwargs",
            tr(
                "--lr_scheduler_type {name} needs {lacks} in --lr_scheduler_kwargs, for example {dumps}.",
                name=name,
                lacks=tr(" or ").join(lacks),
                dumps=json.dumps(lacks),
            ),
            mend,
        )
    if unknown:
        some = mark(
            "--lr_scheduler_kwargs {unknown} is not known to --lr_scheduler_type {name}; it knows {known}."
        )
        none = mark(
            "--lr_scheduler_kwargs {unknown} is not known to --lr_scheduler_type {name}, which knows none."
        )
        known = ", ".join(sorted(SCHEDULES[name]))
        said_what = tr(some if known else none, unknown=", ".join(unknown), name=name, known=known)
        yield Problem("lr_scheduler_kwargs", said_what, mend)


def _needed(schedule: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """What a schedule cannot do without and was not told, with usual values."""
    if SCHEDULES[schedule] >= LOWEST and not {"min_lr", "min_lr_rate"} & set(said):
        return {"min_lr_rate": 0.1}
    return (
        {"num_decay_steps": 100}
        if schedule == "warmup_stable_decay" and "num_decay_steps" not in said
        else {}
    )


def _loader(config: Config) -> Iterator[Problem]:
    if config.dataloader_prefetch_factor is not None and config.dataloader_num_workers == 0:
        yield Problem(
            "dataloader_prefetch_factor",
            tr(
                "--dataloader_prefetch_factor is for rows that other processes load; set --dataloader_num_workers 1 or more."
            ),
            {"dataloader_prefetch_factor": None},
        )
    if config.fp16_full_eval and config.bf16_full_eval:
        said = tr("--fp16_full_eval and --bf16_full_eval are both on; keep one of them.")
        yield Problem("fp16_full_eval", said, {"fp16_full_eval": False})
    if config.torch_empty_cache_steps is not None and config.torch_empty_cache_steps < 1:
        said = tr("--torch_empty_cache_steps counts steps: 1 or more, or nothing.")
        yield Problem("torch_empty_cache_steps", said, {"torch_empty_cache_steps": None})
