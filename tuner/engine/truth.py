"""What came true of a run's plan: steps, recomputed layers, rows, memory and disk, as they were measured."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import torch

from tuner.engine.live import LiveRun
from tuner.engine.packed.trainer import PackedTrainer
from tuner.jobs import planning
from tuner.plan.engine import TRL
from tuner.plan.plan import Plan
from tuner.text.message import message

if TYPE_CHECKING:
    from transformers import Trainer


def note_training(trainer: Trainer, run: LiveRun, plan: Plan) -> None:
    """Record what training took. Memory is the most that was held: on a GPU what torch allocated there, on a CPU the
    whole process."""
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    run.record(memory_peak=peak)
    planning.record(run.run, steps=trainer.state.global_step, memory=peak)
    if isinstance(trainer, PackedTrainer):
        tokens, recompute = trainer.in_use()
        _note_less_memory(run, plan, tokens, recompute)
        planning.record(run.run, recompute=recompute, token_budget=tokens)
    else:
        again = trainer.args.gradient_checkpointing
        planning.record(run.run, engine=TRL, recompute=plan.layers if again else 0)


def _note_less_memory(run: LiveRun, plan: Plan, tokens: int, recompute: int) -> None:
    planned = plan.budget
    if planned is None or (planned.token_budget, planned.recompute) == (tokens, recompute):
        return
    run.note(
        message(
            "note.less_memory",
            tokens=tokens,
            recompute=recompute,
            layers=planned.layers,
            planned=planned.token_budget,
            planned_recompute=planned.recompute,
        )
    )


def note_disk(run: LiveRun) -> None:
    """Record what the run left on the disk."""
    folders = {run.run.checkpoints.resolve(), run.output.resolve()}
    files = {f for folder in folders if folder.is_dir() for f in folder.rglob("*") if f.is_file()}
    planning.record(run.run, disk=sum(f.stat().st_size for f in files))
