"""The trainer of a run that learns from rewards, from its config."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from peft import get_peft_model
from transformers import TrainingArguments, set_seed

from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem
from tuner.data.catalog import named
from tuner.data.encode import Encoder
from tuner.data.reading import Reader
from tuner.data.template_choice import template_of
from tuner.data.tokens import load_tokenizer
from tuner.engine import methods
from tuner.engine.choice import settings_of
from tuner.engine.live import LiveRun
from tuner.engine.online import advantages
from tuner.engine.online.experience import BY_ANSWERS
from tuner.engine.online.held_out import HeldOut
from tuner.engine.online.objective import Clipping, OnlineObjective
from tuner.engine.online.padded_policy import PaddedPolicy
from tuner.engine.online.record import Record
from tuner.engine.online.references import AdapterOff, AnotherModel, FirstWeights, Reference
from tuner.engine.online.reward_model import rewards_of
from tuner.engine.online.rollouts import Writer
from tuner.engine.online.trainer import Lesson, OnlineTrainer, Sources
from tuner.engine.packed.support import unsupported
from tuner.engine.setup import Start
from tuner.engine.trainer import arguments
from tuner.jobs import planning
from tuner.plan import schedule
from tuner.plan.engine import PACKED, PADDED, refusal
from tuner.plan.preflight import packed_in_vain
from tuner.plan.schedule import Schedule
from tuner.rewards import registry
from tuner.text.lookup import tr
from tuner.text.message import Message, message


def build(config: Config, run: LiveRun, start: Start) -> OnlineTrainer:
    """The trainer of GRPO or RLOO. Raises ConfigError where the prompts make no batch."""
    fresh = with_adapter(config, start)
    sources = sources_of(config, run, start)
    grouped = config.kind.baseline == "mean"
    objective = OnlineObjective(_clipping(config), config.beta if grouped else 0.0, _on_policy(config))
    return OnlineTrainer(
        start.model,
        arguments(TrainingArguments, config, run, start.plan),
        sources,
        _lesson(config),
        objective,
        reference=reference_of(config, start, fresh) if config.beta else None,
        held_out=held_out_of(config, run, start, sources),
        padded=is_padded(config, run, start),
        engine=settings_of(config, start),
        eval_dataset=start.rows.eval or None,
        processing_class=start.tokenizer,
    )


def with_adapter(config: Config, start: Start) -> bool:
    """Put the fresh adapter on, if there is to be one: whether the model without it is the model at the start."""
    if start.fresh is None:
        return False
    set_seed(config.seed)  # as TRL does before it adds an adapter
    start.model, start.fresh = get_peft_model(start.model, start.fresh), None
    return True


def sources_of(config: Config, run: LiveRun, start: Start) -> Sources:
    """Prompts, who answers them, and what scores the answers."""
    words = load_tokenizer(start.source.folder)
    made = Sources(
        rows=start.rows.train,
        writer=Writer(start.model, words, start.stops, config),
        rewards=rewards_of(config, start, words),
        schedule=Schedule.of(config, len(start.rows.train)),
        told=Record(run).add,
        progress=partial(_progress, run),
    )
    if found := [*schedule.problems(config, len(start.rows.train)), *_unlabelled(config, start)]:
        raise ConfigError(found)
    return made


def _unlabelled(config: Config, start: Start) -> Iterator[Problem]:
    """A reward that looks at labels where no row has one: it would be silent from the first answer to the last."""
    asking = registry.of_labels(config.reward_funcs)
    if asking and not any(row["asked"]["label"] is not None for row in start.rows.train):
        said = tr(
            "--reward_funcs {rewards} holds answers against the one that a row expects, and no row of --dataset expects any; take another reward, or data with answers.",
            rewards=", ".join(asking),
        )
        yield Problem("reward_funcs", said)


def held_out_of(config: Config, run: LiveRun, start: Start, sources: Sources) -> HeldOut | None:
    """Prompts that are not learnt from: the rows kept aside, else those of the probe."""
    sets: dict[str, Any] = {name: rows for name, rows in start.rows.eval.items() if len(rows)}
    if not sets and config.probe:
        reader = Reader(
            Encoder(
                config, start.rows.template or template_of(config, sources.writer.words), sources.writer.words
            )
        )
        rows = list(reader.read(named([config.probe], config.dataset_dir)[0]).rows)
        sets = {"": rows} if rows else {}
    return HeldOut(sets, sources.writer, sources.rewards, run, config) if sets else None


def _progress(run: LiveRun, done: int, total: int) -> None:
    run.progress(done / total, message("doing.answers", done=done, total=total))


def _on_policy(config: Config) -> bool:
    return Schedule.of(config, 1).on_policy


def _clipping(config: Config) -> Clipping:
    high = config.epsilon if config.epsilon_high is None else config.epsilon_high
    level: Any = config.importance_sampling_level if config.kind.baseline == "mean" else "sum"
    return Clipping(config.epsilon, high, level)


def _lesson(config: Config) -> Lesson:
    given: dict[str, Any] = {
        "cut": not config.mask_truncated_completions,
        "temperature": config.temperature,
        "longest": config.max_new_tokens,
    }
    if config.kind.baseline == "mean":
        made = partial(advantages.of_group, scale=config.scale_rewards)
        return Lesson(made, config.loss_type, **given)
    made = partial(advantages.leave_one_out, normalize=config.normalize_advantages)
    return Lesson(made, BY_ANSWERS, config.beta, config.reward_clip_range, **given)


def reference_of(config: Config, start: Start, fresh: bool) -> Reference:
    """What the model is held to."""
    if fresh and not config.ref_model:
        return AdapterOff()
    if not config.ref_model:
        return FirstWeights(start.model)
    other: Any = methods.reference(config, start.source)
    # PPO takes its own log-probs without the temperature, and the reference's alike
    temperature = 1.0 if config.kind.baseline == "value" else config.temperature
    return AnotherModel(PaddedPolicy(other.to(start.model.device), temperature=temperature))


def is_padded(config: Config, run: LiveRun, start: Start) -> bool:
    """Whether answers are learnt from as padded sequences, because packed rows do not fit; said on the run's page. Raises
    ConfigError where packed rows were asked for."""
    why = refusal(config, start.model.config.to_dict()) or unsupported(start.model) or _capped(config, start)
    if why and config.engine == PACKED:
        raise ConfigError([packed_in_vain(why)])
    run.note(message("note.engine_padded", why=why) if why else message("note.engine_packed"))
    planning.record(run.run, engine=PADDED if why else PACKED, why=why)
    return bool(why)


def _capped(config: Config, start: Start) -> Message:
    """Packed rows divide hidden states by the temperature, which is not the same where logits are capped behind them."""
    capped = getattr(start.model.config, "final_logit_softcapping", None) and config.temperature != 1.0
    return message("engine.logits") if capped else Message()
