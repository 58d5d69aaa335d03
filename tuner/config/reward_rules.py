"""Contradictions in how a run learns from rewards; what each reward's own parameters say is asked in tuner/rewards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tuner.config.kinds import GROUPED, REWARDED
from tuner.config.knobs import Problem
from tuner.text.lookup import tr

if TYPE_CHECKING:
    from tuner.config.config import Config


def problems(config: Config) -> Iterator[Problem]:
    """Every contradiction, with its mend where there is one."""
    if not config.kind.rewarded:
        yield from _other_stages(config)
        return
    yield from _what_rewards(config)
    yield from _weights(config)
    yield from _reward_model(config)
    yield from _drawn(config)


def _other_stages(config: Config) -> Iterator[Problem]:
    """TRL calls the knobs of preference losses by the names that learning from rewards has here."""
    if config.beta != type(config).model_fields["beta"].default:
        said = tr(
            "--beta {beta:g} is for --stage {grouped}; with --stage {stage} say --pref_beta.",
            beta=config.beta,
            grouped=tr(" or ").join(GROUPED),
            stage=config.stage,
        )
        yield Problem("beta", said, {"beta": 0.0, "pref_beta": config.beta})
    if config.reward_funcs:
        said = tr(
            "--reward_funcs is for --stage {rewarded} or {rewarded_2}; stage {stage} asks for none.",
            rewarded=", ".join(REWARDED[:-1]),
            rewarded_2=REWARDED[-1],
            stage=config.stage,
        )
        yield Problem("reward_funcs", said, {"reward_funcs": ()})


def _what_rewards(config: Config) -> Iterator[Problem]:
    if (config.do_train or config.do_eval) and not config.reward_funcs and not config.reward_model:
        said = tr(
            "Nothing says which answers are good; name --reward_funcs, for example contains or equals_label, or a "
            "--reward_model."
        )
        yield Problem("reward_funcs", said)


def _weights(config: Config) -> Iterator[Problem]:
    count = len(config.reward_funcs) + bool(config.reward_model)
    if config.reward_weights and len(config.reward_weights) != count:
        said = tr(
            "--reward_weights has {number} numbers for {count} rewards; give one for each of "
            "--reward_funcs, and one more for a --reward_model.",
            number=len(config.reward_weights),
            count=count,
        )
        yield Problem("reward_weights", said, {"reward_weights": ()})


def _reward_model(config: Config) -> Iterator[Problem]:
    named = config.reward_model
    if not named and (config.reward_model_adapters or config.reward_model_quantization_bit):
        said = tr(
            "--reward_model_adapters and --reward_model_quantization_bit belong to a --reward_model; name it, or leave them out."
        )
        yield Problem(
            "reward_model", said, {"reward_model_adapters": (), "reward_model_quantization_bit": None}
        )
    if named and config.reward_model_type == "api" and not named.startswith(("http://", "https://")):
        said = tr(
            "--reward_model {named} is no address, and --reward_model_type api asks one; write http://host:port/path.",
            named=named,
        )
        yield Problem("reward_model", said)
    if named and config.reward_model_type != "api" and named.startswith(("http://", "https://")):
        said = tr("--reward_model {named} is an address; set --reward_model_type api.", named=named)
        yield Problem("reward_model_type", said, {"reward_model_type": "api"})


def _drawn(config: Config) -> Iterator[Problem]:
    """Answers that are all alike or empty, and log-probs divided by a temperature of 0."""
    if config.temperature == 0:
        said = tr(
            "--temperature 0 always takes the most likely token, and --stage {stage} learns from sampled answers; set it above 0, usually to 1.",
            stage=config.stage,
        )
        yield Problem("temperature", said, {"temperature": 1.0})
    if config.max_new_tokens == 0:
        said = tr(
            "--max_new_tokens 0 leaves no room for the answers that --stage {stage} learns from; set it, for example to 512.",
            stage=config.stage,
        )
        yield Problem("max_new_tokens", said, {"max_new_tokens": 512})
