"""What a model answers, to be read: samples taken while it learns, by themselves and beside those of other runs, and the
predictions of a run that only answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from tuner.config.kinds import KINDS
from tuner.config.knobs import ConfigError
from tuner.data.pages import Pages
from tuner.runs import checkpoints
from tuner.runs.points import tail
from tuner.runs.run import Run
from tuner.runs.status import ENDED
from tuner.text.lookup import mark, tr
from tuner.ui import chart_table, chat, decisions, pictures, theme
from tuner.ui.words import count, number, safe, share

PREDICTIONS, RESULTS = "generated_predictions.jsonl", "predict_results.json"
"""What do_predict writes into the output folder."""
A_PAGE = 10
_JUDGED = {
    "BLEU-4": (
        "predict_bleu-4",
        mark("Overlap of sequences of one to four words with the expected answers, 0 to 100."),
    ),
    "ROUGE-1": ("predict_rouge-1", mark("Overlap of words with the expected answers, 0 to 100.")),
    "ROUGE-2": ("predict_rouge-2", mark("Overlap of word pairs with the expected answers, 0 to 100.")),
    "ROUGE-L": (
        "predict_rouge-l",
        mark("Longest common sequence of words with the expected answers, 0 to 100."),
    ),
    "Exact": (
        "predict_exact",
        mark("Percentage of answers that are identical to the expected one."),
    ),
}
_SPEAKERS = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
}


# --- samples -------------------------------------------------------------------------------------------------------

Same = tuple[str, tuple[str, ...], int]
"""A prompt, its pictures, and which of those that are alike."""


@dataclass(frozen=True)
class Asked:
    """A held-out prompt with the files of its pictures, the answer that was expected, and what the model said at each step
    that it was asked at; step 0 is before training. `number` counts those that say and show the same."""

    prompt: str
    expected: str
    answers: Mapping[int, str]
    pictures: tuple[str, ...] = ()
    number: int = 0

    @property
    def same(self) -> Same:
        """What it has in common with the same prompt in another run."""
        return self.prompt, self.pictures, self.number

    @property
    def last(self) -> int:
        """The newest step."""
        return max(self.answers)


def has_samples(run: Run) -> bool:
    """Whether there are samples, or will be while it runs: a tab must not wait for them to be seen."""
    if run.values().get("probe") and run.status().state not in ENDED:
        return True
    return (run.folder / "samples.json").is_file()


def samples(run: Run) -> None:
    """The same held-out prompts before training and at the newest moment side by side; every moment in a table."""
    found = asked(run)
    if not found:
        theme.empty("forum", tr("No samples yet"), tr("The first samples are generated before step 1."))
        return
    kind = KINDS.get(str(run.values().get("stage")))
    _scores(tail(run).last(), rewarded=bool(kind and kind.rewarded))
    folder = pictures.of_run(run.values())
    for place, one in enumerate(found):
        with st.container(border=True, key=f"card-row-sample-{place}", gap="small"):
            _prompt(one, f"asked-{place}", folder)
            _before_and_after(one, str(place))
    with st.expander(tr("All steps, and the expected answer"), icon=":material/table_rows:"):
        _every_moment(found)


def _prompt(one: Asked, key: str, folder: Path | None) -> None:
    chat.bubble("user", one.prompt, key, name=tr("Held-out prompt"), seen=one.pictures, folder=folder)


def _before_and_after(one: Asked, key: str) -> None:
    first = min(one.answers)
    left, right = st.columns(2, gap="small")
    with left:
        chat.bubble("before", one.answers[first], key, name=_moment(first), icon="history")
    if one.last > first:
        with right:
            name = tr("After, {moment}", moment=_moment(one.last).lower())
            chat.bubble("after", one.answers[one.last], key, name=name, icon="school")


def _every_moment(found: Sequence[Asked]) -> None:
    steps = sorted({step for one in found for step in one.answers})
    rows = [
        {"Prompt": one.prompt, "Expected": one.expected}
        | {_moment(step): one.answers.get(step, "") for step in steps}
        for one in found
    ]
    tall = {name: {"width": "medium"} for name in rows[0]}
    height = min(640, 40 + 92 * len(rows))
    theme.frame(rows, hide_index=True, row_height=92, column_config=tall, height=height)


def _moment(step: int) -> str:
    return tr("Step {step}", step=count(step)) if step else tr("Before")


def _scores(last: Mapping[str, float], *, rewarded: bool) -> None:
    """The share of good answers before and after, or their mean reward, and by how much it moved."""
    scored = rewarded or chart_table.is_scored(last)
    named = {"Score": "", "Right answers": "correct_"} if scored else {"Exact match": ""}
    named = {"Reward": ""} if rewarded else named
    shown = number if rewarded else share
    with st.container(horizontal=True, gap="medium"):
        for name, part in named.items():
            before, after = last.get(f"score/{part}before"), last.get(f"score/{part}after")
            if before is None:
                continue
            moved = tr("{shown} before", shown=shown(before)) if after is not None else tr("before training")
            st.metric(
                tr(name),
                shown(before if after is None else after),
                moved,
                delta_color="off",
                delta_arrow="off",
                width=170,
                help=(tr(chart_table.HELD_REWARD.help) if rewarded else None)
                if scored
                else tr(chart_table.EXACT.help),
            )


def asked(run: Run) -> list[Asked]:
    """The held-out prompts of a run with its answers so far; none where it asked none, or not here."""
    table: dict[str, Any] = {}
    with suppress(OSError, json.JSONDecodeError):
        table = json.loads((run.folder / "samples.json").read_text(encoding="utf-8"))
    expected: dict[Same, str] = {}
    answers: dict[Same, dict[int, str]] = {}
    alike: Counter[tuple[int, str, tuple[str, ...]]] = Counter()
    for row in table.get("data", ()):
        record = dict(zip(table.get("columns", ()), row, strict=False))
        step, prompt = int(record.get("step") or 0), str(record.get("prompt"))
        shown = tuple(map(str, record.get("pictures") or ()))
        same = prompt, shown, alike[step, prompt, shown]
        alike[step, prompt, shown] += 1
        expected.setdefault(same, str(record.get("expected") or ""))
        answers.setdefault(same, {})[step] = str(record.get("answer") or "")
    return [Asked(same[0], expected[same], said, *same[1:]) for same, said in answers.items()]


# --- samples of several runs ---------------------------------------------------------------------------------------


def shared(found: Mapping[str, Sequence[Asked]]) -> dict[Same, dict[str, Asked]]:
    """The prompts that two runs or more were asked: prompt -> run id -> what that run said. `found` goes by run id."""
    prompts: dict[Same, dict[str, Asked]] = {}
    for run_id, every in found.items():
        for one in every:
            prompts.setdefault(one.same, {})[run_id] = one
    return {same: runs for same, runs in prompts.items() if len(runs) > 1}


def compared(names: Mapping[str, str]) -> None:
    """The newest answers of several runs to the same held-out prompts, a column a run; `names` goes by run id. Nothing
    where no two of them were asked the same."""
    found = shared({run_id: asked(Run(run_id)) for run_id in names})
    if not found:
        return
    st.subheader(tr("Answers"), anchor=False)
    st.caption(tr("Held-out prompts that at least two of these runs share, with the latest answer of each."))
    columns = {
        run_id: name for run_id, name in names.items() if any(run_id in runs for runs in found.values())
    }
    for place, runs in enumerate(found.values()):
        run_id, one = next(iter(runs.items()))
        expected = one.expected
        with st.container(border=True, key=f"card-row-beside-{place}", gap="small"):
            _prompt(one, f"beside-{place}", pictures.of_run(Run(run_id).values()))
            with st.grid(len(columns), min_column_width=240, gap="small") as grid:
                for run_id, name in columns.items():
                    with grid.cell():
                        _answer(runs.get(run_id), name, f"{place}-{run_id}")
            if expected:
                st.caption(tr("Expected: {expected}", expected=safe(expected)))


def _answer(one: Asked | None, name: str, key: str) -> None:
    if one is None:
        chat.bubble("before", tr("not asked"), key, name=safe(name), icon="block")
        return
    said = one.answers[one.last]
    right = said.strip() == one.expected.strip()
    title = f"{safe(name)}, {_moment(one.last).lower()}"
    chat.bubble("after", said, key, name=title, icon="check_circle" if right else "school")


# --- predictions ---------------------------------------------------------------------------------------------------


def predictions_of(run: Run) -> Path | None:
    """The file of a run's predictions, if it wrote one."""
    with suppress(ConfigError, OSError):
        file = checkpoints.output_of(run, run.config()) / PREDICTIONS
        return file if file.is_file() and file.stat().st_size else None
    return None


def predictions(file: Path) -> None:
    """Page by page: a prompt, what the model answered and what was expected, the scores of a pair's two answers, or what
    a record's questions were answered."""
    known = _indexed(str(file), file.stat().st_mtime_ns)
    _judged(file.with_name(RESULTS))
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        at = int(st.pagination(max(1, -(-known.count() // A_PAGE)), key="predictions-page"))
        st.caption(count(known.count(), "prediction"), width="content")
        st.space("stretch")
        st.download_button(
            tr("Download"),
            lambda: file.read_bytes(),
            file.name,
            icon=":material/download:",
            on_click="ignore",
        )
    found = [(row.number, row.record) for row in known.page(at - 1, A_PAGE)]
    records = [(place, record) for place, record in found if isinstance(record, Mapping)]
    if records and "answers" in records[0][1]:
        for place, record in records:
            st.markdown(f"**{tr('Record {number}', number=count(place + 1))}**")
            theme.frame(decisions.beside(record), hide_index=True, height="content")
        return
    if records and "predict" not in records[0][1]:
        theme.frame([_scored(place, record) for place, record in records], hide_index=True)
        return
    for place, record in records:
        _prediction(place, record)


def _judged(file: Path) -> None:
    """How near the answers come to the expected ones."""
    totals: dict[str, Any] = {}
    with suppress(OSError, json.JSONDecodeError):
        totals = json.loads(file.read_text(encoding="utf-8"))
    figures = {name: (totals[key], help) for name, (key, help) in _JUDGED.items() if key in totals}
    with st.container(horizontal=True, gap="small", key="figures-judged"):
        for name, (value, help) in figures.items():
            st.metric(tr(name), f"{value:.1f}", help=tr(help), width=96)


def _prediction(place: int, record: Mapping[str, Any]) -> None:
    said, expected = str(record.get("predict") or ""), str(record.get("label") or "")
    name, icon = (
        (tr("Answer, as expected"), "check_circle") if said == expected else (tr("Answer"), "smart_toy")
    )
    with st.container(border=True, key=f"card-row-prediction-{place}", gap="small"):
        st.markdown(tr("**Prompt {place}**", place=count(place + 1)))
        chat.turns(spoken(str(record.get("prompt") or "")), f"prompt-{place}")
        left, right = st.columns(2, gap="small")
        with left:
            chat.bubble("after", said, f"predict-{place}", name=name, icon=icon)
        with right:
            chat.bubble("before", expected, f"label-{place}", name=tr("Expected"), icon="flag")


def spoken(prompt: str) -> list[dict[str, str]]:
    """The turns of a prompt as its template wrote it, where that puts who speaks on a line of its own; else all of it as
    one turn of the user's. The last such line, which asks the model to speak, is no turn."""
    lines = prompt.splitlines()
    if not lines or lines[0] not in _SPEAKERS:
        return [{"role": "user", "content": prompt}]
    turns: list[dict[str, str]] = []
    for line in lines:
        if line in _SPEAKERS:
            turns.append({"role": _SPEAKERS[line], "content": ""})
        else:
            turns[-1]["content"] += f"{line}\n"
    return [turn | {"content": turn["content"].strip()} for turn in turns if turn["content"].strip()]


def _scored(place: int, record: Mapping[str, Any]) -> dict[str, Any]:
    chosen, rejected = record.get("chosen"), record.get("rejected")
    row: dict[str, Any] = {"Pair": place + 1, "Chosen": chosen, "Rejected": rejected}
    if isinstance(chosen, int | float) and isinstance(rejected, int | float):
        row = {
            "Pair": place + 1,
            "Score of the chosen": number(chosen),
            "Score of the rejected": number(rejected),
            "Margin": number(chosen - rejected),
            "Chosen wins": chosen > rejected,
        }
    return row


@st.cache_resource(show_spinner=False, max_entries=8)
def _indexed(file: str, changed: int) -> Pages:
    """A file's index, once for each state of it."""
    return Pages(Path(file))
