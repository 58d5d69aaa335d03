"""The preference losses of a config with their weights, for either engine. Free of TRL, whose import takes a second."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from tuner.config.config import Config
from tuner.engine.losses import PAIR_LOSSES, LossSettings

Mixture = list[tuple[LossSettings, float]]
"""Losses with their weights."""


def mixture(config: Config) -> Mixture:
    """The losses of a config, the mixed-in terms with the first; empty where one of them is only TRL's."""
    names = config.pref_loss.split(",")
    if not set(names) <= set(PAIR_LOSSES):
        return []
    weights = loss_weights(config)
    alone = {"pref_ftx": 0.0, "pref_bco_weight": 0.0}
    return [(settings(config, n, **(alone if i else {})), weights[i]) for i, n in enumerate(names)]


def loss_weights(config: Config) -> list[float]:
    """One weight a loss; 1 each where none are given."""
    names = config.pref_loss.split(",")
    return (
        [float(w) for w in config.pref_loss_weights.split(",")]
        if config.pref_loss_weights
        else [1.0] * len(names)
    )


def settings(config: Config, name: str, **changes: float | None) -> LossSettings:
    """The knobs of one loss, by their own names."""
    known = {f.name for f in fields(LossSettings)} - {"pref_loss"}
    return LossSettings(pref_loss=name, **({n: getattr(config, n) for n in known} | changes))


def trl_settings(config: Config) -> dict[str, Any]:
    """The same knobs under TRL's names."""
    own = [n for n in config.pref_loss.split(",") if n not in ("orpo", "simpo")]
    whole = len(own) == len(config.pref_loss.split(","))
    return {
        "beta": config.pref_beta,
        "loss_type": own if whole else ["sigmoid"],
        "loss_weights": loss_weights(config) if whole else None,
        "label_smoothing": config.dpo_label_smoothing,
        "ld_alpha": config.ld_alpha,
    }
