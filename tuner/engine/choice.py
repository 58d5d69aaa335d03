"""Which engine computes a preference run: packed rows where they fit, TRL otherwise. The log says which and why."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from peft import get_peft_model
from transformers import TrainingArguments, set_seed

from tuner import paths
from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem
from tuner.engine.live import LiveRun
from tuner.engine.losses import LossSettings, needs_reference
from tuner.engine.mixture import Mixture
from tuner.engine.packed.support import too_long_for, unsupported
from tuner.engine.packed.trainer import EngineSettings, PackedPreferenceTrainer
from tuner.engine.start import Start
from tuner.engine.trainer import arguments
from tuner.text.message import message


def packed_trainer(
    config: Config, run: LiveRun, start: Start, losses: Mixture
) -> PackedPreferenceTrainer | None:
    """The packed engine's trainer, or None where the run is TRL's. Raises ConfigError when packed was asked for in vain."""
    why = "engine is trl." if config.engine == "trl" else _refusal(config, start, losses)
    if why is None:
        run.note(message("note.engine_packed"))
        return _build(config, run, start, losses[0][0])
    if config.engine == "packed":
        raise ConfigError(
            [Problem("engine", f"--engine packed does not take this run: {why}", {"engine": "auto"})]
        )
    run.note(message("note.engine_trl", why=why))
    return None


def _refusal(config: Config, start: Start, losses: Mixture) -> str | None:
    """Why packed rows do not fit, or None; then the adapter is on the model."""
    if start.streamed:
        return "rows are streamed, and the reference's answers could not be kept."
    if len(losses) != 1:
        return "pref_loss mixes several losses or is TRL's own."
    if start.fresh is None and needs_reference(losses[0][0].pref_loss):
        return "the reference is the adapter that training goes on from."
    if config.optim != "adamw_torch" and config.optim != "adamw_torch_fused":
        return f"optim is {config.optim}."
    if config.loraplus_lr_ratio or config.use_adam_mini:
        return "its optimizer is not Adam as it is."
    fresh = start.fresh
    if fresh is not None:
        set_seed(config.seed)  # as TRL does before it adds an adapter
        start.model = get_peft_model(start.model, fresh)
    why = unsupported(config, start.model) or too_long_for(start.model, _rows(start))
    if why and fresh is not None:
        start.model = start.model.unload()
    elif fresh is not None:
        start.fresh = None
    return why


def _rows(start: Start) -> Iterator[Mapping[str, Any]]:
    """Every row, of evaluation too."""
    return itertools.chain(start.rows.train, *start.rows.eval.values())


def _build(config: Config, run: LiveRun, start: Start, loss: LossSettings) -> PackedPreferenceTrainer:
    # Marked answers come in an order of their own: shuffled, good and bad in turn.
    order = {"train_sampling_strategy": "sequential"} if config.kind.ordered else {}
    return PackedPreferenceTrainer(
        start.model,
        arguments(TrainingArguments, config, run, **order),
        start.rows.train,
        start.rows.eval or None,
        loss=loss,
        engine=EngineSettings(
            preset=config.engine_preset,
            token_budget=config.engine_token_budget,
            reference_cache=paths.mlruns() / "references",
        ),
        processing_class=start.tokenizer,
    )
