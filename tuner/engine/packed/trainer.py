"""`PackedTrainer`: transformers' Trainer with the packed engine inside.

Schedulers, optimizers, clipping, checkpoints, resuming, callbacks and the evaluation loop are the
Trainer's. What is ours: one dataloader batch is a whole optimizer step, and `training_step` runs it as
packed rows, of which each process takes its share.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from tuner.config.knobs import ConfigError
from tuner.engine.decision_losses import MEASURED as DECISION_METRICS
from tuner.engine.decision_losses import in_training
from tuner.engine.metric_means import measured_as
from tuner.engine.packed.autograd_policy import AutogradPolicy
from tuner.engine.packed.bucket_sizes import Level, choose_levels, drawn_sizes, level_count
from tuner.engine.packed.device_row import Beside
from tuner.engine.packed.memory import rows_on
from tuner.engine.packed.objective import Baseline, Objective, finish_metrics
from tuner.engine.packed.opening import reader_count
from tuner.engine.packed.pictures import Album
from tuner.engine.packed.policy import FusedPolicy, Policy, fused_refusal
from tuner.engine.packed.ranks import Ranks, every_batch
from tuner.engine.packed.reference import ReferenceCache, weights_fingerprint
from tuner.engine.packed.steps import StepResult, StepRunner
from tuner.engine.packed.units import Unit
from tuner.models.llama_family import causal_lm
from tuner.models.vision import Sight
from tuner.plan.preflight import float8_in_vain
from tuner.plan.rows import Layers, RowBudget
from tuner.plan.steps import steps as count_steps

logger = logging.getLogger(__name__)
SAVE_EVERY = 8192  # new reference values between two writes of the cache


@dataclass(frozen=True)
class EngineSettings:
    """How the packed engine uses the machine; every field may stay as it is.

    `preset`: "speed" keeps activations while memory allows, "memory" recomputes every layer and scores few
    logits at a time. `token_budget`: tokens in one row (None: from free memory). `recompute`: layers
    recomputed in the backward pass (None: from free memory). `planned`: the rows decided before the model was
    loaded, taken where they still fit. `run_by`: what is known of layers that are the model's own. `cuda_graphs`: replay rows from graphs. `reference_cache`: folder for
    reference log-probs (None: kept in this run only). `sight`: how rows' pictures become what the model takes. `float8`: frozen weights are multiplied in 8 bits.
    """

    preset: str = "speed"
    token_budget: int | None = None
    recompute: int | None = None
    planned: RowBudget | None = None
    run_by: Layers = Layers(written_out=False)
    cuda_graphs: bool = True
    reference_cache: Path | None = None
    sight: Sight | None = None
    float8: bool = False


@dataclass(frozen=True)
class Batch:
    """A batch's rows. A class of its own, so that nothing on the way walks through lists of numbers."""

    rows: Sequence[Mapping[str, Any]]


class BaselineKeeper(TrainerCallback, ExportableState):
    """BCO's running mean of rewards, carried over a resume: what a checkpoint says, until the objective is there."""

    def __init__(self, mean: float = 0.0, count: float = 0.0) -> None:
        self.mean, self.count = mean, count
        self.live: Baseline | None = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: float32 numbers, exact as doubles."""
        if self.live is not None:
            self.mean, self.count = float(self.live.mean), float(self.live.count)
        return {"args": {"mean": self.mean, "count": self.count}, "attributes": {}}

    def attach(self, live: Baseline) -> None:
        """Hand over to the objective's own numbers, on its device."""
        live.mean.fill_(self.mean)
        live.count.fill_(self.count)
        self.live = live


class PackedTrainer(Trainer):
    """Training on pre-tokenised rows by any objective of `objective.py`, which `objective` makes on the run's device.

    `per_device_train_batch_size * gradient_accumulation_steps` rows of every process make one optimizer step, as
    elsewhere, and the gradient is that of the padded micro-batches. The reference is the model with its adapters off. Several texts in a
    row count for `accuracy` each by itself; it is measured where `each_text` asks for it. With `labels` the objective gets
    the logits of these tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        train_dataset: Any,
        eval_dataset: Any = None,
        *,
        objective: Callable[[torch.device], Objective],
        engine: EngineSettings | None = None,
        each_text: bool = False,
        labels: Sequence[int] = (),
        **options: Any,
    ) -> None:
        self._objective, self.engine, self.each_text = objective, engine or EngineSettings(), each_text
        self.labels = labels
        self.micro_batch, self.drop_last = args.per_device_train_batch_size, args.dataloader_drop_last
        self.ranks = Ranks.here()
        self.whole_batch = self.micro_batch * self.ranks.count
        self.readers = reader_count(args.dataloader_num_workers, self.ranks.count)
        super().__init__(
            model=model,
            args=step_arguments(args, self.ranks.count, sees=self.engine.sight is not None),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=self.collate,
            **options,
        )
        self.add_callback(BaselineKeeper())
        self.runner: StepRunner | None = None
        self.album: Album | None = None
        self.references: ReferenceCache | None = None
        self._ahead = 0
        self._totals: dict[str, Tensor] = {}

    def get_train_dataloader(self) -> Any:
        """A batch is a whole step here, and what drop_last leaves out is a micro-batch of all processes that is not full: of the last
        step only so many rows, and all of it where there are no more."""
        if self.drop_last and self._countable:
            rest = len(self.train_dataset) % self.args.per_device_train_batch_size
            self.args.dataloader_drop_last = rest < self.whole_batch
        return super().get_train_dataloader()

    @property
    def _countable(self) -> bool:
        """Whether the rows can be counted and looked up; those of a stream cannot."""
        return self.train_dataset is not None and hasattr(self.train_dataset, "__len__")

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Packing waits until the step; `size` tells the evaluation loop how many rows there were.

        The Trainer asks for a batch while the one before it is worked on, so that pictures can be opened meanwhile.
        """
        if self.album is not None and self.ranks.count == 1:
            self.album.expect(examples)
        return {"batch": Batch(examples), "size": np.empty(len(examples))}

    def create_accelerator_and_postprocess(self) -> None:
        """Clipping on the one gradient buffer: accelerate would walk through every module of the model
        first. Processes share steps here, and not by accelerate's wrapper of the model and its shares of the rows."""
        super().create_accelerator_and_postprocess()
        self.accelerator.clip_grad_norm_ = self.clip_gradients
        if self.ranks.count > 1:
            self.accelerator.prepare_model = _as_it_is
            self.accelerator.prepare_data_loader = every_batch(self.accelerator)
            self.accelerator.gather = _as_it_is  # each process has the loss of the whole batch

    def get_total_train_batch_size(self, args: TrainingArguments) -> int:
        """A batch is a whole step of all processes."""
        return int(self._train_batch_size)

    def clip_gradients(self, parameters: Any, max_norm: float, norm_type: float = 2) -> Tensor:
        """Global L2 clipping of the LoRA gradients; returns the norm before, on the device."""
        return self.prepare().policy.gradients.clip(max_norm)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        # `zero_grad` of a large PEFT model walks through thousands of modules, and there is nothing to clear
        self.model.zero_grad = lambda set_to_none=True: None
        try:
            return super().train(*args, **kwargs)
        finally:
            del self.model.zero_grad
            if self.references is not None:
                self.references.save()

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Runs one optimizer step's rows; returns the loss, on the device and detached."""
        runner = self.prepare()
        rows = inputs["batch"].rows
        if self.drop_last:
            rows = rows[: len(rows) // self.whole_batch * self.whole_batch]
        units = self._units(rows, self.micro_batch)
        references = self._references(units, ahead=True)
        try:
            result = runner.train(units, references)
        except torch.OutOfMemoryError:
            result = None  # tried again below: here the error would keep the failed row's tensors alive
        if result is None:
            logger.warning("Out of memory: trying this step again with %s.", runner.save_memory())
            result = runner.train(units, references)
        runner.add_up(result)
        runner.policy.gradients.publish()
        self.state.num_input_tokens_seen += result.tokens
        self._count("train", result)
        return result.loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        runner = self.prepare()
        rows = inputs["batch"].rows
        units = self._units(rows, len(rows))
        result = runner.evaluate(units, self._references(units))
        self._count("eval", result)
        return result.loss, None, None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the metrics gathered since the last log, under TRL's names."""
        prefix = measured_as(logs)
        kind = "eval" if prefix is not None else "train"
        totals = self._totals.pop(kind, None) if prefix is not None or "loss" in logs else None
        if totals is not None:
            names = self.prepare().objective.metric_names
            values = finish_metrics(names, totals.tolist())
            if "texts" in names and not (self.each_text and prefix is not None):
                values.pop("accuracy", None)
            if prefix is None and names == DECISION_METRICS:
                values = in_training(values)
            logs.update({f"{prefix or ''}{name}": value for name, value in values.items()})
        super().log(logs, *args, **kwargs)

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> float:
        """Arithmetic of this process's share of the step: forward and input gradients of the frozen weights."""
        tokens = sum(len(v) for row in inputs["batch"].rows for k, v in row.items() if k.endswith("_ids"))
        return 4.0 * self._weights * tokens / self.ranks.count

    def prepare(self) -> StepRunner:
        """The runner, made at first use: after a checkpoint was loaded and the model was moved."""
        if self.runner is not None:
            return self.runner
        device = self.args.device
        self._weights = sum(p.numel() for p in self.model.parameters())
        rows = rows_on(self.model, device, self.engine)
        policy = self._policy(rows)
        self.ranks.copy_first([p.data for p in policy.gradients.parameters])
        policy.refresh()
        objective = self._objective(device)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, BaselineKeeper) and objective.baseline is not None:
                callback.attach(objective.baseline)
        self.runner = StepRunner(
            policy,
            objective,
            device,
            rows.token_budget,
            self.engine.cuda_graphs,
            self.ranks,
            self._layout(),
        )
        if self.runner.bucketed and self._countable:
            self.runner.levels = self._levels(self.runner)
        if objective.needs_reference:
            self.references = self._cache(rows, objective.ld_alpha)
        how = "written-out layers" if isinstance(policy, FusedPolicy) else "the model's own layers"
        logger.warning("Packed engine: %s, %s.", how, rows)
        return self.runner

    def _levels(self, runner: StepRunner) -> list[Level]:
        args = self.args
        a_step = args.per_device_train_batch_size  # a batch is a whole step here
        steps = count_steps(
            len(self.train_dataset),
            batch=self.whole_batch,
            accumulation=a_step // self.whole_batch,
            epochs=args.num_train_epochs,
            max_steps=args.max_steps,
            drop_last=self.drop_last,
        )
        units_of = partial(self._units, micro_batch=self.micro_batch)
        drawn = drawn_sizes(
            self.train_dataset,
            units_of,
            a_step,
            runner.budget,
            runner.objective.keep_groups,
            self.ranks.count,
        )
        return choose_levels(drawn, level_count(steps))

    def in_use(self) -> tuple[int, int]:
        """(tokens of a row, layers recomputed) as they are now: running out of memory changes them."""
        runner = self.prepare()
        return runner.budget, runner.policy.recompute

    def _policy(self, rows: RowBudget) -> Policy:
        if fused_refusal(self.model) is None:
            policy: FusedPolicy | AutogradPolicy = FusedPolicy(
                self.model, rows.logits_bytes, self.engine.float8
            )
        else:
            if self.engine.float8:
                raise ConfigError([float8_in_vain()])
            # accelerate wraps the whole model's forward in it, and here its parts are called
            policy = AutogradPolicy(self.model, self.accelerator.autocast, rows.logits_bytes)
        policy.recompute = rows.recompute
        if self.labels:
            policy.read_labels(self.labels)
        return policy

    def _layout(self) -> Beside | None:
        """What lays out rows' pictures; None where the model takes none."""
        if self.engine.sight is None:
            return None
        self.album = Album(
            causal_lm(self.model), self.engine.sight, self.accelerator.autocast, readers=self.readers
        )
        return self.album.lay

    def _cache(self, rows: RowBudget, ld_alpha: float | None) -> ReferenceCache:
        path = None
        if self.engine.reference_cache is not None:
            dtype = next(p.dtype for p in self.model.parameters() if not p.requires_grad)
            fingerprint = weights_fingerprint(self.model, dtype, self.engine.sight, self.engine.float8)
            path = self.engine.reference_cache / f"{fingerprint}.npz"
        return ReferenceCache(self._score, rows.reference_budget, ld_alpha, path, self.ranks)

    def _score(self, units: list[Unit]) -> np.ndarray:
        return self.prepare().score(units)

    def _references(self, units: list[Unit], ahead: bool = False) -> np.ndarray | None:
        """Reference log-probs of a step. The first time one is missing, others are computed along with it."""
        if self.references is None:
            return None
        values = self.references.get(units, self._upcoming() if ahead else ())
        if self.references.unsaved >= SAVE_EVERY:
            self.references.save()
        return values

    def _upcoming(self) -> list[Unit]:
        """The next stretch of the training set in its own order: whole batches of rows score faster than
        few."""
        if self.args.device.type != "cuda":
            return []
        stretch = range(self._ahead, min(self._ahead + 512, len(self.train_dataset)))
        self._ahead = stretch.stop
        return self._units([self.train_dataset[i] for i in stretch], self.micro_batch)

    def _units(self, rows: Sequence[Mapping[str, Any]], micro_batch: int) -> list[Unit]:
        return self.prepare().objective.units(rows, micro_batch) if rows else []

    def _count(self, kind: str, result: StepResult) -> None:
        totals = self._totals.setdefault(kind, torch.zeros_like(result.metrics))
        totals += result.metrics


def began_packed(checkpoint: Path) -> bool:
    """Whether a checkpoint is one of this trainer's, which alone leaves the baseline there."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return BaselineKeeper.__name__ in state.get("stateful_callbacks", {})


def _as_it_is(given: Any, *_: Any, **__: Any) -> Any:
    return given


def step_arguments(args: TrainingArguments, processes: int = 1, sees: bool = False) -> TrainingArguments:
    """The arguments under which the Trainer sees a whole optimizer step as one batch, and never waits for
    it."""
    args = copy.copy(args)
    args.per_device_train_batch_size *= args.gradient_accumulation_steps * processes
    args.gradient_accumulation_steps = 1
    args.gradient_checkpointing = False
    args.remove_unused_columns = False
    args.prediction_loss_only = True
    args.include_num_input_tokens_seen = "no"  # counted here, without a synchronisation
    args.logging_nan_inf_filter = False  # it would wait for the device every step
    args.dataloader_pin_memory = False
    if sees:  # rows are here already; these processes open pictures instead (`opening.py`)
        args.dataloader_num_workers, args.dataloader_prefetch_factor = 0, None
        args.dataloader_persistent_workers = False
    args.accelerator_config = copy.copy(args.accelerator_config)
    args.accelerator_config.dispatch_batches = (
        False  # of a stream it would send tensors alone to other processes
    )
    return args
