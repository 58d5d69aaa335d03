"""Which engine computes a preference run: packed rows where they fit, TRL otherwise. The log says which and why."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from peft import get_peft_model
from transformers import TrainingArguments, set_seed

from tuner import paths
from tuner.config.config import Config
from tuner.config.knobs import ConfigError
from tuner.engine.live import LiveRun
from tuner.engine.loss_mix import Mixture
from tuner.engine.losses import LossSettings
from tuner.engine.packed.support import too_long_for, unsupported
from tuner.engine.packed.trainer import EngineSettings, PackedPreferenceTrainer
from tuner.engine.setup import Start
from tuner.engine.trainer import arguments, on_gpu
from tuner.jobs import planning
from tuner.plan.engine import PACKED, TRL, refusal
from tuner.plan.plan import layers_to_recompute
from tuner.plan.preflight import packed_in_vain
from tuner.text.message import Message, message


def packed_trainer(
    config: Config, run: LiveRun, start: Start, losses: Mixture
) -> PackedPreferenceTrainer | None:
    """The packed engine's trainer, or None where the run is TRL's. Raises ConfigError when packed was asked for in vain."""
    why = _refusal(config, start)
    if why and config.engine == PACKED:
        raise ConfigError([packed_in_vain(why)])
    run.note(message("note.engine_trl", why=why) if why else message("note.engine_packed"))
    taken = TRL if why else PACKED
    if taken != start.plan.engine:
        run.note(message("note.engine_other"))
    planning.record(run.run, engine=taken, why=why)
    return None if why else _build(config, run, start, losses[0][0])


def _refusal(config: Config, start: Start) -> Message:
    """Why packed rows do not fit; empty where they do, and then the adapter is on the model."""
    if why := refusal(config, start.model.config.to_dict()):
        return why
    fresh = start.fresh
    if fresh is not None:
        set_seed(config.seed)  # as TRL does before it adds an adapter
        start.model = get_peft_model(start.model, fresh)
    why = unsupported(start.model) or too_long_for(start.model, _rows(start))
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
            recompute=layers_to_recompute(config, start.model.config.num_hidden_layers, written_out=True),
            planned=start.plan.budget if start.plan.on_gpu == on_gpu(config) else None,
            reference_cache=paths.mlruns() / "references",
        ),
        processing_class=start.tokenizer,
    )
