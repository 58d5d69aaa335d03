"""`OnlineTrainer`: transformers' Trainer around a model that writes answers, has them scored and learns from the scores.

What is ours: a batch is a step, and what happens in it follows from its number (`plan/schedule.py`). Answers are written
every so many steps, scored, and learnt from as packed rows.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from tuner.config.kinds import GroupLoss
from tuner.engine.online import scoring
from tuner.engine.online.experience import BY_TOKENS, Experience
from tuner.engine.online.held_out import HeldOut
from tuner.engine.online.objective import ADVANTAGE, finished
from tuner.engine.online.padded_policy import PaddedPolicy
from tuner.engine.online.references import Reference
from tuner.engine.online.rollouts import Rollouts, Row, Writer, shared_rollouts
from tuner.engine.packed.objective import Objective
from tuner.engine.packed.policy import Policy
from tuner.engine.packed.steps import StepResult, StepRunner
from tuner.engine.packed.trainer import EngineSettings, PackedTrainer
from tuner.engine.packed.units import Floats, Unit
from tuner.plan.rows import RowBudget
from tuner.plan.schedule import Schedule
from tuner.rewards.reward import Reward
from tuner.runs.checkpoints import step_of

logger = logging.getLogger(__name__)
TOGETHER = 1024
"""Tokens of a prompt's answers that lie side by side in a row on a CPU, where attention is one square over them."""


@dataclass(frozen=True)
class Lesson:
    """What is made of answers: `advantages` [P, G] of rewards [P, G]; `normalizer` turns token losses into a step's;
    `penalty` is what each nat of distance to the reference takes off a reward, and `clip` its limits; `cut` is whether
    answers that were cut are learnt from."""

    advantages: Callable[[Tensor], Tensor]
    normalizer: GroupLoss = BY_TOKENS
    penalty: float = 0.0
    clip: tuple[float, ...] | None = None
    cut: bool = True
    temperature: float = 1.0
    longest: int = 512


@dataclass
class Sources:
    """Where a step comes from: the data's rows, who writes answers, what scores them, and who is told of them."""

    rows: Sequence[Row]
    writer: Writer
    rewards: Sequence[Reward]
    schedule: Schedule
    told: Callable[[int, Rollouts, Experience], None] = lambda step, made, learnt: None
    progress: Callable[[int, int], None] = lambda done, total: None


class OnlineTrainer(PackedTrainer):
    """Learns as its objective says from answers of its own."""

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        sources: Sources,
        lesson: Lesson,
        objective: Objective,
        *,
        reference: Reference | None = None,
        held_out: HeldOut | None = None,
        padded: bool = False,
        engine: EngineSettings | None = None,
        **options: Any,
    ) -> None:
        self.sources, self.lesson, self.reference, self.held_out = sources, lesson, reference, held_out
        self._apart = False
        self.padded = padded
        engine = replace(
            engine or EngineSettings(), cuda_graphs=False
        )  # hardly two steps have rows of one size
        super().__init__(
            model, args, sources.rows, objective=lambda device: objective, engine=engine, **options
        )
        self._experience: tuple[int, Experience] | None = None
        self._measured: dict[str, list[float]] = {}
        if held_out is not None:
            held_out.ready = (
                self.prepare
            )  # it lays weights out anew, and who writes answers must find them there
            self.add_callback(held_out.callback)

    @property
    def schedule(self) -> Schedule:
        return self.sources.schedule

    @property
    def steps_each(self) -> int:
        """Steps on each generation."""
        return self.schedule.updates

    def get_train_dataloader(self) -> Any:
        """Nothing but the steps of an epoch: what each learns from follows from its number."""
        steps = self.schedule.generations * self.steps_each
        return DataLoader(range(steps), batch_size=1, collate_fn=_nothing)  # type: ignore[arg-type]

    def get_total_train_batch_size(self, args: TrainingArguments) -> int:
        """A batch is a step."""
        return 1

    def num_examples(self, dataloader: Any) -> int:
        return len(dataloader)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Runs one optimizer step, with the writing of answers where it is their turn; returns its loss."""
        runner, began = self.prepare(), time.perf_counter()
        generation, update = divmod(self.state.global_step, self.steps_each)
        learnt = self.experience(generation)
        written = time.perf_counter()
        result = self._learn(runner, learnt.units(self._shares(learnt, update), self._together))
        self._finish(result, began, written)
        return result.loss

    def _learn(self, runner: StepRunner, units: list[Unit]) -> StepResult:
        """The gradients of one optimizer step. What teaches nothing is only measured."""
        taught, silent = [u for u in units if self._teaches(u)], [u for u in units if not self._teaches(u)]
        try:
            result = runner.train(taught, None)
        except torch.OutOfMemoryError:
            result = None  # tried again below: here the error would keep the failed row's tensors alive
        if result is None:
            logger.warning("Out of memory: trying this step again with %s.", runner.save_memory())
            result = runner.train(taught, None)
        runner.add_up(result)
        if silent:
            seen = runner.evaluate(silent, None)
            result = StepResult(
                result.loss + seen.loss, result.metrics + seen.metrics, result.tokens + seen.tokens
            )
        runner.policy.gradients.publish()
        self.state.num_input_tokens_seen += result.tokens
        self._count("train", result)
        return result

    def _teaches(self, unit: Unit) -> bool:
        """Whether answers have a gradient: those of a group that all got the same have none, unless they are held back."""
        held = self.prepare().objective.beta and self._moved()  # type: ignore[attr-defined]
        return bool(held) or unit.values is None or any(one[ADVANTAGE].any() for one in unit.values)

    def _moved(self) -> bool:
        """Whether the model is another one than its reference by now; once it is, nobody looks again."""
        self._apart = self._apart or self.reference is None or not self.reference.is_model(self.model)
        return self._apart

    def _finish(self, result: StepResult, began: float, written: float) -> None:
        if result.loss.is_cuda:
            torch.cuda.synchronize()
        self.measure(
            {"step_time/rollout": written - began, "step_time/learning": time.perf_counter() - written}
        )

    def _shares(self, learnt: Experience, update: int) -> Floats:
        batches = self.schedule.micro_batches(learnt.order, update)
        return learnt.weights(batches, self.lesson.normalizer, self.lesson.longest)

    def prepare(self) -> StepRunner:
        """The runner, whose padded rows are no larger than their logits allow, unless their size was asked for."""
        fresh, runner = self.runner is None, super().prepare()
        if fresh and isinstance(runner.policy, PaddedPolicy) and self.engine.token_budget is None:
            runner.budget = runner.policy.most(runner.budget)
        return runner

    @property
    def _together(self) -> int:
        runner = self.prepare()
        if isinstance(runner.policy, PaddedPolicy):
            return scoring.ALONE
        return min(runner.budget, TOGETHER if runner.device.type == "cpu" else 1 << 30)

    def measure(self, values: Mapping[str, float]) -> None:
        """Add to what the next log line tells: means over the steps since the last; no number adds nothing."""
        for name, value in values.items():
            if not math.isnan(value):
                self._measured.setdefault(name, []).append(value)

    # --- answers

    def experience(self, generation: int) -> Experience:
        """The answers of a generation: those that are there, or new ones."""
        if self._experience is None or self._experience[0] != generation:
            made = self._rollouts(generation)
            self._experience = generation, self._scored(made, generation)
            self.sources.told(self.state.global_step + 1, made, self._experience[1])
        return self._experience[1]

    def _rollouts(self, generation: int) -> Rollouts:
        schedule, rows = self.schedule, self.sources.rows
        asked = [(int(i), k) for i in schedule.chosen(generation) for k in range(schedule.answers)]
        seeds = [schedule.seed_of(generation, i, k) for i, k in asked]
        once = {i: rows[i] for i, _ in asked}
        return shared_rollouts(
            self.sources.writer,
            [once[i] for i, _ in asked],
            seeds,
            self.sources.rewards,
            lambda done: self.sources.progress(done, len(asked)),
            schedule.answers,
        )

    def _answered(self, made: Rollouts, generation: int) -> Experience:
        rows = [self.sources.rows[int(i)] for i in self.schedule.chosen(generation)]
        return Experience(
            prompts=[np.array(row["prompt_ids"], np.int32) for row in rows],
            answers=made.ids,
            kept=np.array([self.lesson.cut or one.finished for one in made.completions], np.bool_),
            order=self.schedule.mixed(generation),
        )

    def _scored(self, made: Rollouts, generation: int) -> Experience:
        """Log-probs where the loss needs them, then advantages."""
        learnt = self._answered(made, generation)
        runner = self.prepare()
        if self.lesson.penalty or not self.schedule.on_policy:
            learnt.old = scoring.log_probs(runner, learnt, self._together)
        if self.reference is not None:
            learnt.reference = scoring.log_probs(runner, learnt, self._together, self.reference)
        rewards = self._penalized(made.rewards, learnt)
        grouped = torch.from_numpy(rewards.reshape(-1, self.schedule.answers))
        learnt.advantages = self.lesson.advantages(grouped).flatten().numpy().astype(np.float32)
        self.measure(scoring.measured(made, grouped, self.sources.rewards))
        return learnt

    def _penalized(self, rewards: Floats, learnt: Experience) -> Floats:
        """Rewards within their limits, less what the distance to the reference takes."""
        if self.lesson.clip:
            rewards = np.clip(rewards, self.lesson.clip[0], self.lesson.clip[1])
        if not self.lesson.penalty:
            return rewards
        apart = [
            float((old - new).sum()) if kept else 0.0
            for old, new, kept in zip(learnt.old, learnt.reference, learnt.kept, strict=True)
        ]
        tokens = sum(map(learnt.learnt, range(len(apart))))
        self.measure({"kl": sum(apart) / max(tokens, 1)})
        return rewards - self.lesson.penalty * np.array(apart, np.float32)

    # --- measuring

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """What the likeliest answers to prompts kept aside are worth."""
        assert self.held_out is not None
        found = self.held_out.rewards(self.state.global_step)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds what was measured since the last log, under TRL's names."""
        if "loss" in logs:
            totals = self._totals.pop("train", None)
            logs.update({} if totals is None else self._means(totals.tolist()))
            logs.update({name: sum(values) / len(values) for name, values in self._measured.items()})
            self._measured.clear()
        Trainer.log(self, logs, *args, **kwargs)

    def _means(self, totals: Sequence[float]) -> dict[str, float]:
        found = finished(totals)
        if not self.prepare().objective.beta:  # type: ignore[attr-defined]
            del found["kl"]
        return found

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> float:
        """Not counted: a step's tokens are not known before they are written."""
        return 0.0

    # --- what a checkpoint keeps

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        step = self.state.global_step
        if self.args.should_save and step % self.steps_each and self._experience is not None:
            self._experience[1].save(Path(self.args.output_dir) / f"checkpoint-{step}")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        folder = Path(resume_from_checkpoint)
        if (found := Experience.saved(folder)) is not None and self._fits(found):
            self._experience = step_of(folder) // self.steps_each, found

    def _fits(self, kept: Experience) -> bool:
        """Whether answers of a checkpoint are as many as this run would write: with another batch new ones are written."""
        schedule = self.schedule
        return (len(kept.prompts), len(kept.answers)) == (schedule.prompts, schedule.batch * schedule.written)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.held_out is not None:
            self.held_out.forget()

    def _policy(self, rows: RowBudget) -> Policy:
        if not self.padded:
            policy = super()._policy(rows)
            policy.temperature = self.lesson.temperature  # type: ignore[attr-defined]
            return policy
        made: Policy = PaddedPolicy(self.model, self.accelerator.autocast, self.lesson.temperature)
        made.recompute = rows.recompute
        return made


def _nothing(_: Any) -> dict[str, Any]:
    return {}
