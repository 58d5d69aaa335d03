"""Whether a run that was killed and resumed ends bit for bit like one that was not: losses and adapter."""

from __future__ import annotations

import hashlib

import forks
import mirroring
import pytest

from tuner.config.config import Config, make
from tuner.jobs import control, submit, watch
from tuner.runs import checkpoints
from tuner.runs.run import Run, series

PLACES = {
    "inside an accumulation": "substep@6",
    "in the middle of an epoch": "step@6",
    "at the end of an epoch": "step@8",
    "right after a save": "save@6",
    "before a save counts": "saved@6",
}


def config(stage: str, **changes: object) -> Config:
    """16 rows, 4 optimizer steps an epoch of two micro-batches each, shuffled, with dropout, saved every 3 steps."""
    values = {
        "model_name_or_path": "model",
        "stage": stage,
        "do_train": True,
        "dataset": {"sft": "chat", "dpo": "pairs"}[stage],
        "dataset_dir": "data",
        "num_train_epochs": 3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "lora_dropout": 0.1,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 3,
        "use_cpu": True,
    }
    return make(values | changes)


def killed(settings: Config, place: str) -> Run:
    """A run through the queue whose worker died at a place (needs TUNER_WORKER_MODULE=tests.faults.mortal_worker)."""
    run = submit.create(settings, f"killed {place}")
    (run.folder / "fault").write_text(place)
    submit.launch(run)
    status = control.wait(run, timeout=300)
    assert (status.state, status.reason_code) == ("failed", "killed"), (status.reason, run.log_tail(3000))
    return run


def killed_here(settings: Config, place: str) -> Run:
    """The same without the queue: the worker is a copy of a process that has the libraries, and whoever watches is here."""
    run = submit.create(settings, f"killed {place}")
    (run.folder / "fault").write_text(place)
    (code,) = forks.done((_live_and_die, (run.id,)), log=run.folder / "said")
    status = watch.finalize(run, code)
    assert (status.state, status.reason_code) == ("failed", "killed"), (status.reason, run.log_tail(3000))
    return run


def _live_and_die(run_id: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        mirroring.here(patch)
        forks.as_main("tests.faults.mortal_worker", run_id)


def outcome(run: Run) -> tuple[list[int], list[float], str]:
    """Steps, losses and the adapter's hash of a finished run."""
    status = control.wait(run, timeout=300)
    assert status.state == "finished", (status.reason, run.log_tail(3000))
    file = checkpoints.output_of(run, run.config()) / "adapter_model.safetensors"
    steps, losses = series(list(run.metrics()[0]), "loss")
    return steps, losses, hashlib.sha256(file.read_bytes()).hexdigest()
