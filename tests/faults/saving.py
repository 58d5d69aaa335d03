"""SIGKILLs at random moments of saving: there must always be a newest checkpoint that loads.

`python -m tests.faults.saving RUN_ID` saves checkpoint after checkpoint until it is killed; `kill_while_saving` kills it.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tuner.runs import checkpoints
from tuner.runs.run import Run

from . import dashboard

ROOT = Path(__file__).resolve().parents[2]
SIZE = 300_000  # numbers a file: a few milliseconds to write, to sync and to hash


def save(run: Run, step: int) -> None:
    """A checkpoint as a trainer writes it, file after file, then sealed; the oldest beyond two are dropped."""
    folder = run.checkpoints / f"checkpoint-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("adapter_model", "optimizer", "scheduler"):
        save_file({"weights": np.full(SIZE, step, dtype=np.float32)}, folder / f"{name}.safetensors")
    (folder / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    checkpoints.seal(folder, run)
    checkpoints.rotate(run, 2)


def main(run: Run) -> None:
    step = last_step(run)
    while True:
        step += 1
        print(step, flush=True)
        save(run, step)


def last_step(run: Run) -> int:
    newest = checkpoints.latest(run)
    return checkpoints.step_of(newest) if newest else 0


def unloadable(run: Run, least: int) -> bool:
    """Whether the newest checkpoint that counts does not load whole, or is older than one known to be sealed."""
    newest = checkpoints.latest(run)
    if newest is None or checkpoints.step_of(newest) < least:
        return True
    step = checkpoints.step_of(newest)
    for name in ("adapter_model", "optimizer", "scheduler"):
        weights = load_file(newest / f"{name}.safetensors")["weights"]
        if weights.shape != (SIZE,) or not (weights == step).all():
            return True
    return False


def kill_while_saving(kills: int, seed: int) -> int:
    """How many of `kills` deaths left no newest checkpoint that loads. A new process goes on after each."""
    chance, bad = random.Random(seed), 0
    run = Run(uuid.uuid4().hex)
    run.create(dashboard.config(1), "saving")
    save(run, 1)
    for _ in range(kills):
        words = [sys.executable, "-m", "tests.faults.saving", run.id]
        saver = subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT)
        assert saver.stdout is not None
        first = int(saver.stdout.readline())  # from here on it is saving
        time.sleep(chance.uniform(0, 0.15))
        saver.kill()
        said = saver.stdout.read().split()
        saver.wait()
        # What it began to save after this one, this one was sealed before.
        bad += unloadable(run, least=int(said[-1]) - 1 if said else first - 1)
    return bad


if __name__ == "__main__":
    main(Run(sys.argv[1]))
