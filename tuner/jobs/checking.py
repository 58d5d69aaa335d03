"""Before a run that uses a model is launched: what would stop it on this machine, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tuner import samples
from tuner.config.evaluation import BASE, EvaluateConfig
from tuner.config.inference import InferenceConfig
from tuner.config.knobs import ConfigError, Problem
from tuner.config.models import adapter_refusal
from tuner.data.catalog import named
from tuner.plan import preflight
from tuner.plan.facts import place
from tuner.tracking.adapters import named_version
from tuner.tracking.store import TrackerError


def of_model(config: InferenceConfig) -> Iterator[Problem]:
    """What stands against loading the model with its adapters."""
    if not config.model_name_or_path:
        yield Problem(
            "model_name_or_path", "--model_name_or_path is empty; name a model's folder or its hub name."
        )
        return
    samples.lay_out_for(config.model_name_or_path)
    yield from preflight.model_problems(config.loading())
    yield from of_adapters("adapter_name_or_path", config.adapter_name_or_path, config.adapter_folder or "")


def of_adapters(knob: str, names: Iterable[str], within: str = "") -> Iterator[Problem]:
    """What stands against adapters that are named as folders, registered versions or on the hub."""
    for name in names:
        folder = place(name) / within
        if place(name).is_dir():
            if not (folder / "adapter_config.json").is_file():
                yield Problem(
                    knob, f"--{knob} {name} holds no adapter_config.json; give an adapter's folder."
                )
            elif why := adapter_refusal(folder):
                yield Problem(knob, f"--{knob} {name} {why}")
        elif why := _not_registered(name):
            yield Problem(knob, why)


def _not_registered(name: str) -> str:
    try:
        if named_version(name) is None and not preflight.HUB_NAME.match(name):
            return (
                f"{name} is no adapter's folder, no registered version (name@alias, name/3) and no hub name."
            )
    except (ValueError, TrackerError) as error:
        return str(error)
    return ""


def of_evaluation(config: EvaluateConfig) -> list[Problem]:
    """All that would stop an evaluation; empty when it can start."""
    found = [*of_model(config), *of_adapters("versions", (v for v in config.versions if v != BASE))]
    if not config.dataset and not config.tasks:
        found.append(
            Problem("dataset", "There is nothing to measure; name a --dataset, or --tasks of lm-eval.")
        )
    try:
        for entry in named(config.dataset, config.dataset_dir):
            if (entry.kind if entry.local else entry.told_kind) == "text":
                said = f"The data set {entry.name} is plain text and asks nothing; name one with prompts and answers."
                found.append(Problem("dataset", said))
    except ConfigError as error:
        found += error.problems
    if config.judge_url and not config.judge_url.startswith(("http://", "https://")):
        found.append(
            Problem(
                "judge_url", f"--judge_url {config.judge_url} is no address; begin with http:// or https://."
            )
        )
    return found
