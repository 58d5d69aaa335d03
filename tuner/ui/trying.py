"""What would be rewarded: before a run that learns from rewards, the model as it is answers a few prompts and each answer is
scored. An evaluation does it, a run like any other; a page only starts it and shows its rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import streamlit as st

from tuner.config.config import Config
from tuner.config.evaluation import BASE, EvaluateConfig
from tuner.config.knobs import ConfigError, Problem, knobs_of
from tuner.data.verbs import labelled
from tuner.jobs.checking import of_evaluation
from tuner.rewards import registry
from tuner.runs.run import Run
from tuner.runs.status import ENDED
from tuner.text.lookup import tr
from tuner.text.message import Message, message, render
from tuner.tracking.evaluations import results
from tuner.ui import evaluation, live, state, theme, writes
from tuner.ui.answers import spoken
from tuner.ui.words import look, number, safe, sentence

PROMPTS = 32
"""Prompts that are asked, over all data sets."""
ASKED = "tried"
"""What the address calls the run that was started last."""


def panel(config: Config | None, problems: Sequence[Problem]) -> None:
    """The button that starts it, and what the last one found."""
    if config is None:
        return
    _labels(config)
    if not config.reward_funcs:
        return
    wrong = [
        p for p in problems if p.knob in ("reward_funcs", "reward_weights", "dataset", "model_name_or_path")
    ]
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.button(
            tr("What would be rewarded"),
            icon=":material/visibility:",
            key="try-rewards",
            on_click=_start,
            args=(config,),
            **writes.locked(
                help=tr(
                    "The model as it is answers up to {prompts} of the prompts, and each answer is scored.",
                    prompts=PROMPTS,
                ),
                disabled=bool(wrong),
            ),
        )
        if config.reward_model and config.reward_model_type != "api":
            st.caption(tr("The reward model is not asked before launch."), width="content")
    if (run := _last()) is not None:
        live.piece(_shown, run, 1.5)


def _labels(config: Config) -> None:
    """How many of the first prompts have a label: what rewards hold answers against."""
    if not config.dataset:
        return
    asked, known = _labelled(tuple(config.dataset), str(config.dataset_dir))
    if asked:
        st.caption(
            f":material/label: {safe(render(message('reward.labels', asked=asked, share=known / asked)))}"
        )


@st.cache_data(ttl=30, show_spinner=False)
def _labelled(names: tuple[str, ...], folder: str) -> tuple[int, int]:
    with suppress(ConfigError, OSError):
        return labelled(names, folder)
    return 0, 0


def asking(config: Config) -> EvaluateConfig:
    """The evaluation that asks what a config would be rewarded for. Raises ConfigError."""
    shared = knobs_of(EvaluateConfig).keys() & config.changed().keys()
    values = {
        name: getattr(config, name) for name in shared - {"adapter_name_or_path", "run_name", "versions"}
    }
    values |= {
        "versions": tuple(config.adapter_name_or_path[-1:]) or (BASE,),
        "max_samples": max(1, PROMPTS // max(1, len(config.dataset))),
        "reward_funcs": tuple(registry.weighed(config)),
        "do_sample": True,
        "perplexity": False,
        "run_name": "What would be rewarded",
    }
    drawn = ("temperature", "top_p", "top_k", "max_new_tokens")
    made = EvaluateConfig(**{**values, **{name: getattr(config, name) for name in drawn}})
    if problems := of_evaluation(made):
        raise ConfigError(problems)
    return made


def _start(config: Config) -> None:
    try:
        run = writes.submit(asking(config))
    except writes.FAILED as error:
        st.toast(safe(error), icon=":material/error:")
        return
    state.tell(**{ASKED: run.id})


def _last() -> Run | None:
    with suppress(ValueError):
        run = Run(state.asked(ASKED))
        return run if state.asked(ASKED) and run.exists else None
    return None


def _shown(run: Run) -> None:
    """Where it stands, or what it found."""
    status = run.status()
    if status.state not in ENDED:
        seen = look(status.state)
        st.badge(seen.word, icon=seen.icon, color=seen.colour)
        st.progress(status.part, safe(sentence(status)))
        return
    rows = answers(run)
    if not rows:
        st.warning(safe(sentence(status)), icon=":material/warning:")
        return
    st.caption(safe(render(verdict([row["Reward"] for row in rows]))))
    with st.container(horizontal=True, gap="medium"):
        for name, figure in figures(run).items():
            st.metric(name, figure, width=150)
    tall = {name: {"width": "large"} for name in ("Answer", "Prompt")}
    theme.frame(
        rows, hide_index=True, row_height=52, height=min(480, 40 + 52 * len(rows)), column_config=tall
    )
    st.page_link(
        "pages/runs.py", label=tr("This evaluation"), icon=":material/rule:", query_params={"run": run.id}
    )


def answers(run: Run) -> list[dict[str, Any]]:
    """What each prompt was answered and what that got, the best first."""
    found = results(run)
    rows: list[dict[str, Any]] = []
    for version in found.get("versions", ())[:1]:
        file = run.folder / "output" / str(version["folder"]) / evaluation.FILE
        with suppress(OSError, ValueError):
            rows = [_row(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    return sorted(rows, key=lambda row: -(row["Reward"] if row["Reward"] is not None else -1e30))


def _row(said: Mapping[str, Any]) -> dict[str, Any]:
    asked = spoken(str(said["prompt"]))
    told = {
        "Reward": said.get("reward"),
        "Answer": said["predict"],
        "Prompt": asked[-1]["content"] if asked else "",
    }
    return told | dict(said.get("rewards") or {}) | {"Expected": said["label"]}


def figures(run: Run) -> dict[str, str]:
    """The mean of all, its spread, and the mean of each part."""
    versions = results(run).get("versions") or [{}]
    metrics = versions[0].get("metrics", {})
    named = {"reward": tr("Reward"), "reward_std": tr("Spread")}
    parts = {
        n: n.removeprefix("rewards/").removesuffix("/mean")
        for n in metrics
        if n.startswith("rewards/") and n.endswith("/mean")
    }
    shown = named | (parts if len(parts) > 1 else {})
    return {safe(title): number(metrics[name]) for name, title in shown.items() if name in metrics}


def verdict(rewards: Sequence[float | None]) -> Message:
    """What the rewards of a few answers say about learning from them."""
    known = [value for value in rewards if value is not None]
    if not known:
        return message("reward.unsaid", count=len(rewards))
    if max(known) - min(known) < 1e-9:
        return message("reward.same", count=len(known), value=f"{known[0]:.4g}")
    best = sum(value > (max(known) + min(known)) / 2 for value in known)
    return message(
        "reward.differ", count=len(known), best=best, highest=f"{max(known):.4g}", lowest=f"{min(known):.4g}"
    )
