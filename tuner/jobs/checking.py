"""Before a run that uses a model is launched: what would stop it on this machine, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from tuner import samples
from tuner.config.evaluation import BASE, EvaluateConfig
from tuner.config.importing import ImportConfig, base_of
from tuner.config.inference import InferenceConfig
from tuner.config.knobs import ConfigError, Problem
from tuner.config.models import adapter_refusal
from tuner.data.catalog import named
from tuner.data.entries import typed_questions
from tuner.plan import preflight
from tuner.plan.facts import place
from tuner.plan.model_checks import HUB_NAME, unfit_adapter
from tuner.rewards.registry import wrong_with
from tuner.text.lookup import tr
from tuner.tracking.adapters import folder_of, named_version
from tuner.tracking.store import TrackerError


def of_model(config: InferenceConfig) -> Iterator[Problem]:
    """What stands against loading the model with its adapters."""
    model = config.model_name_or_path
    if not model:
        yield Problem(
            "model_name_or_path", tr("--model_name_or_path is empty; name a model's folder or its hub name.")
        )
        return
    samples.lay_out_for(model)
    yield from preflight.model_problems(config.loading())
    within = config.adapter_folder or ""
    yield from of_adapters("adapter_name_or_path", config.adapter_name_or_path, model, within)


def of_adapters(knob: str, names: Iterable[str], model: str, within: str = "") -> Iterator[Problem]:
    """What stands against putting adapters on a model; they are named as folders, registered versions or on the hub."""
    for name in names:
        try:
            folder = folder_of_adapter(name)
        except (ValueError, TrackerError) as error:
            yield Problem(knob, str(error))
            continue
        if folder is None:
            if not HUB_NAME.match(name):
                said = tr(
                    "is no adapter's folder, no registered version (name@alias, name/3) and no hub name."
                )
                yield Problem(knob, f"--{knob} {name} {said}")
        elif not (folder / within / "adapter_config.json").is_file():
            yield Problem(
                knob,
                tr(
                    "--{knob} {name} holds no adapter_config.json; give an adapter's folder.",
                    knob=knob,
                    name=name,
                ),
            )
        elif why := adapter_refusal(folder / within) or unfit_adapter(model, folder / within):
            yield Problem(knob, f"--{knob} {name} {why}")


def folder_of_adapter(name: str) -> Path | None:
    """Where an adapter lies on this machine, as far as that is known. Raises ValueError, TrackerError."""
    if place(name).is_dir():
        return place(name)
    row = named_version(name)
    return folder_of(row) if row else None


def of_evaluation(config: EvaluateConfig) -> list[Problem]:
    """All that would stop an evaluation; empty when it can start."""
    versions = [version for version in config.versions if version != BASE]
    found = [*of_model(config), *of_adapters("versions", versions, str(config.model_name_or_path))]
    if not config.dataset and not config.tasks:
        found.append(
            Problem("dataset", tr("There is nothing to measure; name a --dataset, or --tasks of lm-eval."))
        )
    try:
        for entry in named(config.dataset, config.dataset_dir):
            kind = entry.kind if entry.local else entry.told_kind
            if kind == "text" and not config.reward_funcs:
                said = tr(
                    "The data set {name} is plain text and asks nothing; name one with prompts and answers.",
                    name=entry.name,
                )
                found.append(Problem("dataset", said))
            elif kind == "decisions":
                found.append(Problem("dataset", typed_questions(entry.name)))
    except ConfigError as error:
        found += error.problems
    if config.judge_url and not config.judge_url.startswith(("http://", "https://")):
        found.append(
            Problem(
                "judge_url",
                tr(
                    "--judge_url {judge_url} is no address; begin with http:// or https://.",
                    judge_url=config.judge_url,
                ),
            )
        )
    return [*found, *wrong_with(config.reward_funcs)]


def of_import(config: ImportConfig) -> list[Problem]:
    """All that would stop taking in an adapter that was trained elsewhere; empty when it can start."""
    name = str(config.adapter_name_or_path or "")
    folder = place(name)
    if not (folder / "adapter_config.json").is_file():
        said = tr(
            "--adapter_name_or_path {name} holds no adapter_config.json; give a folder that PEFT wrote.",
            name=name,
        )
        return [Problem("adapter_name_or_path", said)]
    base = config.model_name_or_path or base_of(folder)
    if not base:
        said = tr("{name} does not name its base model; say it with --model_name_or_path.", name=name)
        return [Problem("model_name_or_path", said)]
    if not place(base).is_dir() and not HUB_NAME.match(base):
        said = tr(
            "The base model {base} is no folder here and no hub name; say with --model_name_or_path where it is.",
            base=base,
        )
        return [Problem("model_name_or_path", said)]
    return list(of_adapters("adapter_name_or_path", [name], base))
