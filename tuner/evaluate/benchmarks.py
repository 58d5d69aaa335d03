"""Benchmarks of lm-eval (EleutherAI's lm-evaluation-harness), by name or from local task files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tuner import paths
from tuner.config.evaluation import EvaluateConfig
from tuner.config.knobs import ConfigError, Problem
from tuner.text.lookup import tr


def benchmarks(model: Any, tokenizer: Any, config: EvaluateConfig) -> dict[str, float]:
    """What a model reaches in each task, as `task/metric`. Raises ConfigError where a task or the library is missing."""
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        sentence = tr("--tasks needs the library lm-eval, which is not installed; run `pip install lm-eval`.")
        raise ConfigError([Problem("tasks", sentence)]) from error
    files = [_file(task) for task in config.tasks]
    folders = sorted({str(file.parent) for file in files if file})
    known = TaskManager(include_path=folders or None)
    names = [_task_of(file) if file else task for task, file in zip(config.tasks, files, strict=True)]
    if unknown := [name for name in names if name not in known.all_tasks]:
        sentence = tr(
            "lm-eval knows no task {names}; give its name or a YAML file of one.", names=", ".join(unknown)
        )
        raise ConfigError([Problem("tasks", sentence)])
    found = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=config.per_device_eval_batch_size),
        tasks=names,
        num_fewshot=config.num_fewshot,
        limit=config.limit,
        task_manager=known,
        bootstrap_iters=0,
        log_samples=False,
        random_seed=config.seed,
        torch_random_seed=config.seed,
    )
    return _plain(found["results"])


def _plain(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """lm-eval names them `metric,filter`; a filter other than none is part of the name."""
    return {
        f"{task}/{metric.removesuffix(',none').replace(',', '-')}": float(value)
        for task, metrics in results.items()
        for metric, value in metrics.items()
        if isinstance(value, int | float) and "," in metric and "stderr" not in metric
    }


def _file(task: str) -> Path | None:
    path = paths.home() / Path(task).expanduser()
    return path if path.suffix in (".yaml", ".yml") and path.is_file() else None


def _task_of(file: Path) -> str:
    """The name of the task that a file describes; tags of lm-eval's own (`!function`) are of no matter here."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("task:"):
            return str(yaml.safe_load(line)["task"])
    raise ConfigError(
        [
            Problem(
                "tasks",
                tr("{file} names no task; it is a file of lm-eval with a line `task: NAME`.", file=file),
            )
        ]
    )
