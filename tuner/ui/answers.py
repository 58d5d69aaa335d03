"""What a model answers, to be read: samples taken while it learns, and the predictions of a run that only answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import streamlit as st

from tuner.config.knobs import ConfigError
from tuner.data.pages import Pages
from tuner.tracking import checkpoints
from tuner.tracking.points import tail
from tuner.tracking.run import Run
from tuner.ui import chat, theme
from tuner.ui.words import count, number, share

PREDICTIONS = "generated_predictions.jsonl"
"""What do_predict writes into the output folder."""
A_PAGE = 10
BEFORE = "Before"


# --- samples -------------------------------------------------------------------------------------------------------


def has_samples(run: Run) -> bool:
    return (run.folder / "samples.json").is_file()


def samples(run: Run) -> None:
    """The same held-out prompts before training and at the newest moment side by side; every moment in a table."""
    rows = _answers(run)
    if not rows:
        theme.empty("forum", "No samples yet", "The first are taken before the first step.")
        return
    _scores(tail(run).last())
    moments = [name for name in rows[0] if name not in ("Prompt", "Expected")]
    for place, row in enumerate(rows):
        with st.container(border=True, key=f"card-row-sample-{place}", gap="small"):
            chat.bubble("user", row["Prompt"], f"asked-{place}", name="Held-out prompt")
            left, right = st.columns(2, gap="small")
            with left:
                chat.bubble("before", row[moments[0]], f"{place}", name=moments[0], icon="history")
            if len(moments) > 1:
                with right:
                    chat.bubble(
                        "after",
                        row[moments[-1]],
                        f"{place}",
                        name=f"After, {moments[-1].lower()}",
                        icon="school",
                    )
    with st.expander("Every moment, and what was expected", icon=":material/table_rows:"):
        tall = {name: st.column_config.TextColumn(name, width="medium") for name in rows[0]}
        height = min(640, 40 + 92 * len(rows))
        st.dataframe(rows, hide_index=True, row_height=92, column_config=tall, height=height)


def _scores(last: Mapping[str, float]) -> None:
    """The share of good answers before and after, and by how much it moved."""
    named = {"Score": "", "Right answers": "correct_"}
    with st.container(horizontal=True, gap="medium"):
        for name, part in named.items():
            before, after = last.get(f"score/{part}before"), last.get(f"score/{part}after")
            if before is None:
                continue
            moved = f"{share(before)} before" if after is not None else "before training"
            st.metric(
                name,
                share(before if after is None else after),
                moved,
                delta_color="off",
                delta_arrow="off",
                width=170,
            )


def _answers(run: Run) -> list[dict[str, str]]:
    table: dict[str, Any] = {}
    with suppress(OSError, json.JSONDecodeError):
        table = json.loads((run.folder / "samples.json").read_text(encoding="utf-8"))
    records = [dict(zip(table.get("columns", ()), row, strict=False)) for row in table.get("data", ())]
    steps = sorted({int(r.get("step") or 0) for r in records})
    found: dict[str, dict[str, str]] = {}
    for record in records:
        prompt, step = str(record.get("prompt")), int(record.get("step") or 0)
        row = found.setdefault(prompt, {"Prompt": prompt, "Expected": str(record.get("expected") or "")})
        row[BEFORE if step == 0 else f"Step {step}"] = str(record.get("answer") or "")
    order = ["Prompt", "Expected", *(BEFORE if s == 0 else f"Step {s}" for s in steps)]
    return [{name: row.get(name, "") for name in order} for row in found.values()]


# --- predictions ---------------------------------------------------------------------------------------------------


def predictions_of(run: Run) -> Path | None:
    """The file of a run's predictions, if it wrote one."""
    with suppress(ConfigError, OSError):
        file = checkpoints.output_of(run, run.config()) / PREDICTIONS
        return file if file.is_file() and file.stat().st_size else None
    return None


def predictions(file: Path) -> None:
    """Page by page: a prompt, what the model answered and what was expected, or the scores of a pair's two answers."""
    known = _indexed(str(file), file.stat().st_mtime_ns)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        at = int(st.pagination(max(1, -(-known.count() // A_PAGE)), key="predictions-page"))
        st.caption(count(known.count(), "prediction"), width="content")
        st.space("stretch")
        st.download_button(
            "Download", lambda: file.read_bytes(), file.name, icon=":material/download:", on_click="ignore"
        )
    found = [(row.number, row.record) for row in known.page(at - 1, A_PAGE)]
    records = [(place, record) for place, record in found if isinstance(record, Mapping)]
    if records and "predict" not in records[0][1]:
        st.dataframe([_scored(place, record) for place, record in records], hide_index=True)
        return
    for place, record in records:
        _prediction(place, record)


def _prediction(place: int, record: Mapping[str, Any]) -> None:
    with st.container(border=True, key=f"card-row-prediction-{place}", gap="small"):
        chat.bubble(
            "user", str(record.get("prompt") or ""), f"prompt-{place}", name=f"Prompt {count(place + 1)}"
        )
        left, right = st.columns(2, gap="small")
        with left:
            chat.bubble(
                "after", str(record.get("predict") or ""), f"predict-{place}", name="Answer", icon="smart_toy"
            )
        with right:
            chat.bubble(
                "before", str(record.get("label") or ""), f"label-{place}", name="Expected", icon="flag"
            )


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
