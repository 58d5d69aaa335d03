"""Which engine computes a run: packed rows where they fit, TRL otherwise. The log says which and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from peft import get_peft_model
from transformers import Trainer, TrainingArguments, set_seed

from tuner import paths
from tuner.config.config import Config
from tuner.config.knobs import ConfigError
from tuner.engine.live import LiveRun
from tuner.engine.packed.objective import Objective, TokenObjective
from tuner.engine.packed.support import unsupported
from tuner.engine.packed.trainer import EngineSettings, PackedTrainer, began_packed
from tuner.engine.setup import Start
from tuner.engine.trainer import arguments, on_gpu
from tuner.jobs import planning
from tuner.models.llama_family import causal_lm
from tuner.plan.engine import PACKED, TRL, refusal
from tuner.plan.facts import Model
from tuner.plan.memory import layers_of
from tuner.plan.plan import layers_to_recompute
from tuner.plan.preflight import packed_in_vain
from tuner.plan.rows import Layers
from tuner.text.message import Message, message


def token_trainer(config: Config, run: LiveRun, start: Start) -> Trainer:
    """The trainer of a stage that learns tokens, on either engine."""
    trainer = packed_trainer(config, run, start, lambda device: TokenObjective(config.use_dft_loss))
    if trainer is not None:
        return trainer
    from tuner.engine.completion import build  # TRL takes a second to import

    return build(config, run, start)


def packed_trainer(
    config: Config,
    run: LiveRun,
    start: Start,
    objective: Callable[[torch.device], Objective],
    labels: Sequence[int] = (),
) -> PackedTrainer | None:
    """The packed engine's trainer with an objective, or None where the run is TRL's; with `labels` the objective gets the
    logits of these tokens. Raises ConfigError when packed was asked for in vain."""
    why = _refusal(config, start)
    if why and config.engine == PACKED:
        raise ConfigError([packed_in_vain(why)])
    run.note(message("note.engine_trl", why=why) if why else message("note.engine_packed"))
    taken = TRL if why else PACKED
    if taken != start.plan.engine:
        run.note(message("note.engine_other"))
    planning.record(run.run, engine=taken, why=why)
    return None if why else _build(config, run, start, objective, labels)


def _refusal(config: Config, start: Start) -> Message:
    """Why packed rows do not fit; empty where they do, and then the adapter is on the model."""
    if start.checkpoint is not None and not began_packed(start.checkpoint):
        return message("engine.begun")  # its optimizer and its random numbers go on in TRL's own order
    if why := refusal(config, start.model.config.to_dict()):
        return why
    fresh = start.fresh
    if fresh is not None:
        set_seed(config.seed)  # as TRL does before it adds an adapter
        start.model = get_peft_model(start.model, fresh)
    why = unsupported(start.model)
    if why and fresh is not None:
        start.model = start.model.unload()
    elif fresh is not None:
        start.fresh = None
    return why


def _run_by(config: Config, start: Start) -> Layers:
    """What the step of a model that runs its own layers takes."""
    model = Model(causal_lm(start.model).config.get_text_config().to_dict(), {})
    rank = max(
        (peft.r for peft in getattr(start.model, "peft_config", {}).values()), default=config.lora_rank
    )
    return layers_of(config, model.shape, rank, written_out=False)


def _build(
    config: Config,
    run: LiveRun,
    start: Start,
    objective: Callable[[torch.device], Objective],
    labels: Sequence[int],
) -> PackedTrainer:
    # Marked answers come in an order of their own: shuffled, good and bad in turn.
    order = {"train_sampling_strategy": "sequential"} if config.kind.ordered else {}
    return PackedTrainer(
        start.model,
        arguments(TrainingArguments, config, run, start.plan, **order),
        start.rows.train,
        start.rows.eval or None,
        objective=objective,
        each_text=config.compute_accuracy,
        labels=labels,
        engine=settings_of(config, start),
        processing_class=start.tokenizer,
    )


def settings_of(config: Config, start: Start) -> EngineSettings:
    """How a run's packed rows use the machine."""
    return EngineSettings(
        preset=config.engine_preset,
        token_budget=config.engine_token_budget,
        recompute=layers_to_recompute(config, start.model.config.get_text_config().num_hidden_layers),
        run_by=_run_by(config, start),
        planned=start.plan.budget if start.plan.on_gpu == on_gpu(config) else None,
        reference_cache=paths.mlruns() / "references",
        sight=start.sight,
        float8=config.fp8,
    )
