"""Rollouts of a run that learns from rewards: each prompt's best and worst answer side by side, what the rewards gave them,
and whether there is anything to learn from them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from tuner.config.kinds import KINDS
from tuner.runs.points import tail
from tuner.runs.run import Run
from tuner.runs.status import ENDED
from tuner.text.lookup import mark, tr
from tuner.text.message import Message, message, render
from tuner.ui import chat, theme
from tuner.ui.words import NONE, count, number, safe

FILE = "rollouts.jsonl"
Floats = NDArray[np.float64]
A_PAGE = 6
BEST, WORST = (mark("Best answer"), "thumb_up", "after"), (mark("Worst answer"), "thumb_down", "before")
ALL_ALIKE = (mark("An answer"), "smart_toy", "before")
"""What stands over an answer, its icon, and the colour of its bubble."""
LATELY = 10
"""Logged steps from which the page says that there is nothing to learn."""
FEWEST = 3
"""Logged steps before it says so."""
ALIKE, MOSTLY = 0.999, 0.8
"""Shares of groups without signal at which there is nothing, and little, to learn."""
NEAR = 0.05
"""How far below the highest reward the last ones may be and are still as high, as a share of how far it rose."""
LEARNT, LEARNT_OF_EACH = "reward.learnt", "reward.learnt.each"


class Group(NamedTuple):
    """A prompt at a step with its answers, the best first."""

    step: int
    prompt: str
    label: str
    answers: Sequence[Mapping[str, Any]]

    @property
    def differs(self) -> bool:
        """Whether one answer got more than another."""
        known = [one["reward"] for one in self.answers if one.get("reward") is not None]
        return len(known) > 1 and max(known) - min(known) > 1e-9


def has_rollouts(run: Run) -> bool:
    """Whether there are rollouts, or will be while it runs: a tab must not wait for them to be seen."""
    kind = KINDS.get(str(run.values().get("stage")))
    return bool(kind and kind.rewarded) and (run.status().state not in ENDED or (run.folder / FILE).is_file())


# --- whether there is something to learn ---------------------------------------------------------------------------


def notice(run: Run) -> None:
    """A word on a run whose answers teach it nothing, or little."""
    kind = KINDS.get(str(run.values().get("stage")))
    if kind is None or not kind.rewarded:
        return
    reward, grouped = _values(run, "reward"), kind.baseline != "value"
    alike = _values(run, "frac_reward_zero_std") if grouped else _values(run, "reward_std") < 1e-9
    if said := signal(alike.astype(float), reward, grouped=grouped):
        if said.code in (LEARNT, LEARNT_OF_EACH):
            st.info(safe(render(said)), icon=":material/task_alt:")
        else:
            st.warning(safe(render(said)), icon=":material/signal_disconnected:")


def _values(run: Run, name: str) -> Floats:
    curve = tail(run).curve(name)
    return curve.series()[1] if curve else np.empty(0)


def signal(alike: Floats, reward: Floats, *, grouped: bool = True) -> Message:
    """What is wrong with the last steps: `alike` are their shares of groups without signal, `reward` their rewards, both from
    the run's first step on; `grouped` is whether answers are compared with others to their prompt. Empty for nothing."""
    lately = alike[-LATELY:]
    if len(lately) < FEWEST:
        return Message()
    if lately.min() >= ALIKE:
        if _won(reward, len(lately)):
            return message(LEARNT_OF_EACH if grouped else LEARNT, steps=len(lately))
        why = message("reward.no_signal.low", more="num_generations" if grouped else "")
        code = "reward.no_signal.each" if grouped else "reward.no_signal"
        return message(code, why=why, steps=len(lately))
    if grouped and lately.mean() >= MOSTLY and not _won(reward, len(lately)):
        return message("reward.little_signal", steps=len(lately), share=float(lately.mean()))
    return Message()


def _won(reward: Floats, steps: int) -> bool:
    """Whether the last rewards are as good as the highest, after lower ones."""
    if not len(reward):
        return False
    low, high = float(reward.min()), float(reward.max())
    return high > low + 1e-6 and float(reward[-steps:].mean()) >= high - NEAR * (high - low)


# --- the answers ---------------------------------------------------------------------------------------------------


def options(run: Run) -> None:
    """What is shown; outside the piece that redraws itself, so that nothing typed is lost."""
    several = KINDS[str(run.values().get("stage"))].baseline != "value"
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="rollout-options"):
        if several:
            st.toggle(tr("Only where answers differ"), key="rollouts-differ", bind="query-params")
        st.text_input(
            tr("Find in prompts and answers"), type="search", key="rollouts-search", placeholder=tr("text"), live=True, width=240,
            label_visibility="collapsed",
        )  # fmt: skip


def panel(run: Run) -> None:
    """The newest prompts, with the best and the worst answer to each."""
    file = run.folder / FILE
    if not file.is_file():
        theme.empty(
            "dynamic_feed",
            tr("No rollouts yet"),
            tr("They appear once the first answers have been scored."),
        )
        return
    groups = [one for one in _read(str(file), file.stat().st_mtime_ns) if _wanted(one)]
    if not groups:
        theme.empty("search_off", tr("No matching prompt"), tr("Change the search, or show all prompts."))
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        at = int(st.pagination(max(1, -(-len(groups) // A_PAGE)), key="rollouts-page"))
        st.caption(tr("{prompts}, the newest first", prompts=count(len(groups), "prompt")), width="content")
    for place, one in enumerate(groups[(at - 1) * A_PAGE : at * A_PAGE]):
        with st.container(border=True, key=f"card-row-rollout-{place}", gap="small"):
            _group(one, str(place))


def _wanted(one: Group) -> bool:
    word = str(st.session_state.get("rollouts-search") or "").lower()
    texts = (one.prompt, *(str(said.get("text")) for said in one.answers))
    found = not word or any(word in text.lower() for text in texts)
    return found and (one.differs or not st.session_state.get("rollouts-differ"))


def _group(one: Group, key: str) -> None:
    st.caption(_lead(one))
    chat.bubble("user", one.prompt, f"rollout-{key}", name=tr("Prompt"))
    best, worst = one.answers[0], one.answers[-1]
    left, right = st.columns(2, gap="small")
    with left:
        _answer(best, f"best-{key}", *(BEST if one.differs else ALL_ALIKE))
    if len(one.answers) > 1:
        with right:
            _answer(worst, f"worst-{key}", *(WORST if one.differs else ALL_ALIKE))
    if one.label:
        st.caption(tr("Expected: {label}", label=safe(one.label)))
    if len(one.answers) > 2:
        with st.expander(
            tr("All {answers}", answers=count(len(one.answers), "answer")), icon=":material/table_rows:"
        ):
            theme.frame(
                [_row(said) for said in one.answers],
                hide_index=True,
                column_config={"Answer": {"width": "large"}},
            )


def _lead(one: Group) -> str:
    known = [float(said["reward"]) for said in one.answers if said.get("reward") is not None]
    if len(one.answers) == 1:
        return tr("Step {step}", step=count(one.step))
    if not known:
        return tr("Step {step} · no reward scored these answers", step=count(one.step))
    mean = tr("mean reward {sum}", sum=number(sum(known) / len(known)))
    spread = (
        tr("from {min} to {max}", min=number(min(known)), max=number(max(known)))
        if one.differs
        else tr("all the same: nothing to learn")
    )
    return tr(
        "Step {step} · {answers} · {mean}, {spread}",
        step=count(one.step),
        answers=count(len(one.answers), "answer"),
        mean=mean,
        spread=spread,
    )


def _answer(said: Mapping[str, Any], key: str, name: str, icon: str, side: str) -> None:
    got = tr("{name}, reward {reward}", name=tr(name), reward=number(said.get("reward")))
    chat.bubble(side, str(said.get("text") or ""), key, name=got, icon=icon)
    st.caption(safe(told(said)))


def told(said: Mapping[str, Any]) -> str:
    """What an answer got from each reward, how it stands in its group, and how long it is."""
    parts = [f"{name} {number(value)}" for name, value in dict(said.get("parts") or {}).items()]
    advantage = said.get("advantage")
    stands = [tr("advantage {advantage}", advantage=number(advantage))] if advantage is not None else []
    length = count(said.get("tokens"), "token") + ("" if said.get("finished", True) else tr(", truncated"))
    return " · ".join([", ".join(parts), *stands, length]).removeprefix(" · ")


def _row(said: Mapping[str, Any]) -> dict[str, Any]:
    figures = {
        "Reward": said.get("reward"),
        **dict(said.get("parts") or {}),
        "Advantage": said.get("advantage"),
    }
    shown = {name: NONE if value is None else number(value) for name, value in figures.items()}
    return {
        "Answer": said.get("text"),
        **shown,
        "Tokens": said.get("tokens"),
        "Ended": bool(said.get("finished")),
    }


@st.cache_resource(show_spinner=False, max_entries=8)
def _read(file: str, changed: int) -> list[Group]:
    """The groups of a file, once for each state of it; the newest first. A line that is being written waits."""
    return list(groups_of(Path(file).read_text(encoding="utf-8").splitlines()))[::-1]


def groups_of(lines: Sequence[str]) -> Iterator[Group]:
    """The groups that lines hold, in their order, the best answer of each first."""
    for line in lines:
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            row = json.loads(line)
            answers = sorted(row["answers"], key=_reward, reverse=True)
            if answers:
                yield Group(int(row["step"]), str(row["prompt"]), str(row.get("label") or ""), answers)


def _reward(said: Mapping[str, Any]) -> float:
    reward = said.get("reward")
    return float(reward) if reward is not None else -np.inf
