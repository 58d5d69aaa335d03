"""What an evaluation found, to be read: each version's figures beside the first one's, and the answers themselves, those
first on which the versions disagree most."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import combinations
from pathlib import Path
from typing import Any

import streamlit as st

from tuner.runs.run import Run
from tuner.text.lookup import language, mark, tr
from tuner.tracking.adapter_rows import adapters_of
from tuner.tracking.evaluations import Measured, results
from tuner.ui import chat, decisions, theme
from tuner.ui.words import NONE, count, number, safe, safe_lines

FILE = "generated_predictions.jsonl"
A_PAGE = 8
ORDERS = (mark("Most disagreement first"), mark("As in the data set"))
_TITLES = {
    "exact": (mark("Exact"), mark("Share of answers that are identical to the expected one.")),
    "score/correct": (
        mark("Right answers"),
        mark("Share of answers that contain what their row requires."),
    ),
    "score/preferred": (
        mark("Preferred form"),
        mark("Share of answers in the form that their row prefers."),
    ),
    "reward": (mark("Reward"), mark("Mean of the weighted sum of the rewards.")),
    "reward_std": (
        mark("Spread of the reward"),
        mark("Standard deviation of the rewards of single answers."),
    ),
    "perplexity": (
        mark("Perplexity"),
        mark("Perplexity of the expected answers; 1 is the minimum. Lower is better."),
    ),
    "bleu-4": (
        "BLEU-4",
        mark("Overlap of sequences of one to four words with the expected answers, 0 to 100."),
    ),
    "rouge-1": ("ROUGE-1", mark("Overlap of words with the expected answers, 0 to 100.")),
    "rouge-2": ("ROUGE-2", mark("Overlap of word pairs with the expected answers, 0 to 100.")),
    "rouge-l": ("ROUGE-L", mark("Longest common sequence of words with the expected answers, 0 to 100.")),
    "judge": (mark("Judge score"), mark("Mean score by a judge model, 1 to 10.")),
    "answers_per_second": (
        mark("Answers per second"),
        mark("Generation speed on the machine that measured."),
    ),
}
_TITLES |= {
    f"llamafactory/{name}": (
        f"{_TITLES[name][0]} (LLaMA-Factory)",
        mark("The number that LLaMA-Factory gives under this name."),
    )
    for name in ("bleu-4", "rouge-1", "rouge-2", "rouge-l")
}
_TITLES |= {f"decisions/{name}": said for name, said in decisions.FIGURES.items()}
_SHARES = {"exact": 1, "score/correct": 100, "score/preferred": 100}
_SHARES |= {f"decisions/{name}": 100 for name in decisions.PERCENT}
"""What makes a share of a metric a percentage."""
_LOW = frozenset({"perplexity", *(f"decisions/{name}" for name in decisions.LOW)})
"""Metrics that are better when they are lower."""
_NEITHER = ("answers_per_second", "reward_std")
"""Metrics that are neither better nor worse."""


@dataclass(frozen=True)
class Row:
    """A question with what each version said, by the version's label."""

    number: int
    prompt: str
    expected: str
    said: Mapping[str, str]
    rewards: Mapping[str, str] = field(default_factory=dict)
    """What rewards gave each version's answer, in words."""

    @property
    def disagreement(self) -> float:
        """How far the two answers that differ most are apart, 0 to 1."""
        pairs = combinations(dict.fromkeys(self.said.values()), 2)
        return max((1 - SequenceMatcher(None, one, other).ratio() for one, other in pairs), default=0.0)


def panel(run: Run) -> None:
    """The figures, then the answers."""
    found = results(run)
    if not found:
        theme.empty("rule", tr("Nothing measured yet"), tr("Figures appear once every version has answered."))
        return
    _left_out(found)
    theme.frame(figures(found["versions"]), hide_index=True)
    _answers(run, found)


def title(metric: str) -> str:
    """What a metric is called."""
    part = re.fullmatch(r"rewards/(.+)/(mean|std)", metric)
    if part:
        return tr("{name}, spread", name=part[1]) if part[2] == "std" else part[1]
    return tr(_TITLES.get(metric, (metric, ""))[0])


def figures(versions: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row a metric, a column a version; all but the first are held against it."""
    names = list(dict.fromkeys(name for one in versions for name in one["metrics"]))
    names.sort(key=lambda name: list(_TITLES).index(name) if name in _TITLES else len(_TITLES))
    first = versions[0]["metrics"]
    return [
        {"Metric": title(name)}
        | {
            one["label"]: held(one["metrics"].get(name), first.get(name) if place else None, name)
            for place, one in enumerate(versions)
        }
        | {"What it is": tr(_TITLES.get(name, ("", ""))[1])}
        for name in names
    ]


def held(value: float | None, origin: float | None, metric: str) -> str:
    """A figure, and how far it is from another; the triangle points to better or worse."""
    if value is None or origin is None or value == origin or metric in _NEITHER:
        return figure(value, metric)
    mark = tr("▲ better by") if (value < origin) == (metric in _LOW) else tr("▼ worse by")
    return f"{figure(value, metric)}   {mark} {figure(abs(value - origin), metric)}"


def figure(value: float | None, metric: str) -> str:
    """A metric's value with its unit."""
    if value is None:
        return NONE
    return f"{value * _SHARES[metric]:.1f}%" if metric in _SHARES else number(value)


def briefly(measured: Sequence[Measured]) -> str:
    """The newest evaluation in a few words: its reward if one was asked for, else its first metric; what the base had
    there, and the data set."""
    if not measured:
        return ""
    newest = measured[0]
    known = (name for name in ("reward", *_TITLES) if name in newest.metrics)
    name = next(known, next(iter(newest.metrics), ""))
    base = tr(" (base {figure})", figure=figure(newest.base[name], name)) if name in newest.base else ""
    return tr(
        "{title} {figure}{base} on {dataset}",
        title=title(name),
        figure=figure(newest.metrics.get(name), name),
        base=base,
        dataset=newest.dataset,
    )


def of_version(measured: Sequence[Measured]) -> None:
    """A version's evaluations, a data set each, held against its base's figures where they were measured with it."""
    for one in measured:
        names = [name for name in _TITLES if name in one.metrics and name != "answers_per_second"]
        names += [
            name for name in one.metrics if name not in _TITLES and not name.startswith("llamafactory/")
        ]
        rows = [
            {
                "Metric": title(name),
                "This version": held(one.metrics[name], one.base.get(name), name),
                "Base": figure(one.base.get(name), name),
            }
            for name in names
        ]
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.markdown(f"**{safe(one.dataset)}** :gray[{count(one.rows, 'row')}]", width="content")
            st.space("stretch")
            st.page_link(
                "pages/runs.py",
                label=tr("Answers"),
                icon=":material/rule:",
                query_params={"run": one.run_id},
            )
        theme.frame(rows, hide_index=True)


def compared(names: Mapping[str, str], baseline: str) -> None:
    """What the adapters of several runs scored, a table a data set that two of them were measured on, held against the
    run `baseline`; `names` goes by run id. Nothing where there is none. Raises TrackerError."""
    scored = {row.run_id: row.evaluations for row in adapters_of(names) if row.evaluations}
    datasets = dict.fromkeys(one.dataset for found in scored.values() for one in found)
    tables = {name: _of_dataset(name, scored, names) for name in datasets}
    tables = {name: table for name, table in tables.items() if len(table) > 1}
    if not tables:
        return
    st.subheader(tr("Scores of their adapters"), anchor=False)
    for name, found in tables.items():
        st.caption(tr("Evaluated on {name}.", name=safe(name)))
        theme.frame(figures(found), hide_index=True)


def _of_dataset(
    dataset: str, scored: Mapping[str, Sequence[Measured]], names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The runs that were measured on a data set, in the order of their names, each with its newest figures there."""
    newest = {i: next((m for m in scored[i] if m.dataset == dataset), None) for i in names if i in scored}
    return [{"label": names[i], "metrics": one.metrics} for i, one in newest.items() if one]


def _left_out(found: Mapping[str, Any]) -> None:
    if not found.get("dataset"):
        return
    asked = tr(
        "{questions} of {found}",
        questions=count(int(found.get("rows") or 0), "question"),
        found=", ".join(found.get("dataset") or ()),
    )
    said = [
        tr("{number} left out ({reason})", number=count(number), reason=tr(reason))
        for reason, number in (found.get("left_out") or {}).items()
    ]
    st.caption(safe(tr("{said}.", said="; ".join([asked, *said]))))


# --- answers -------------------------------------------------------------------------------------------------------


def _answers(run: Run, found: Mapping[str, Any]) -> None:
    labels = {
        str(one["label"]): run.folder / "output" / str(one["folder"]) / FILE for one in found["versions"]
    }
    files = tuple(
        (label, str(file), file.stat().st_mtime_ns) for label, file in labels.items() if file.is_file()
    )
    if not files:
        return
    st.subheader(tr("Answers"), anchor=False)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        order = st.segmented_control(
            tr("Order"),
            ORDERS,
            format_func=tr,
            default=ORDERS[0],
            required=True,
            key="answers-order",
            label_visibility="collapsed",
        )
        words = st.text_input(
            tr("Search"), type="search", key="answers-search", placeholder=tr("text"), live=True, width=220,
            label_visibility="collapsed",
        )  # fmt: skip
        st.space("stretch")
        differences = st.toggle(tr("Mark differences"), True, key="answers-marked")
    rows = [
        row for row in _read(files, order == ORDERS[0], language()) if _has(row, str(words or "").lower())
    ]
    if not rows:
        theme.empty("search_off", tr("No matching answer"), tr("Change the search."))
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        at = int(st.pagination(max(1, -(-len(rows) // A_PAGE)), key="answers-page"))
        st.caption(count(len(rows), "question"), width="content")
        st.space("stretch")
        for label, file in labels.items():
            st.download_button(
                safe(label), file.read_bytes, f"{label.replace('/', '-')}.jsonl", icon=":material/download:",
                on_click="ignore", key=f"get-{label}", type="tertiary",
            )  # fmt: skip
    for row in rows[(at - 1) * A_PAGE : at * A_PAGE]:
        _row(row, differences)


@st.cache_resource(show_spinner=False, max_entries=16)
def _read(files: Sequence[tuple[str, str, int]], by_disagreement: bool, spoken: str) -> list[Row]:
    """The rows of each version's file (label, path, when it was written), put side by side; what is said of rewards is in
    the language `spoken`."""
    sides = {label: dict(_rows(Path(file))) for label, file, _ in files}
    numbers = sorted({number for rows in sides.values() for number in rows})
    found = []
    for place in numbers:
        one = next(rows[place] for rows in sides.values() if place in rows)
        said = {label: str(rows[place]["predict"]) for label, rows in sides.items() if place in rows}
        got = {label: told for label, rows in sides.items() if (told := _reward(rows.get(place, {})))}
        found.append(Row(place, str(one["prompt"]), str(one["label"]), said, got))
    return sorted(found, key=lambda row: (-row.disagreement, row.number)) if by_disagreement else found


def _reward(row: Mapping[str, Any]) -> str:
    """An answer's reward and its parts; empty where none were asked."""
    if "rewards" not in row:
        return ""
    parts = ", ".join(f"{name} {number(value)}" for name, value in row["rewards"].items())
    return tr("Reward {reward}: {parts}", reward=number(row["reward"]), parts=parts)


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield int(row["row"]), row


def _has(row: Row, word: str) -> bool:
    return any(word in text.lower() for text in (row.prompt, row.expected, *row.said.values()))


def _row(row: Row, differences: bool) -> None:
    from tuner.ui.answers import spoken

    first = next(iter(row.said.values()))
    with st.container(border=True, key=f"card-row-answer-{row.number}", gap="small"):
        st.markdown(tr("**Question {number}**", number=count(row.number + 1)))
        chat.turns(spoken(row.prompt), f"question-{row.number}")
        with st.grid(len(row.said) + 1, min_column_width=220, gap="small") as grid:
            for place, (label, said) in enumerate(row.said.items()):
                with grid.cell():
                    _said(row, label, said, first if differences and place else said, place)
            with grid.cell():
                chat.bubble(
                    "before", row.expected, f"expected-{row.number}", name=tr("Expected"), icon="flag"
                )


def _said(row: Row, label: str, said: str, other: str, place: int) -> None:
    icon = "check_circle" if said == row.expected else "smart_toy"
    with st.container(key=f"bubble-after-{row.number}-{place}", gap="xsmall"):
        st.caption(f":material/{icon}: {safe(label)}")
        st.markdown(marked(said, other) or tr(":gray[nothing]"))
        if label in row.rewards:
            st.caption(safe(row.rewards[label]), help=tr("Rewards of this answer before weighting."))


def marked(text: str, other: str) -> str:
    """The text as Markdown, on a coloured ground what does not stand in the other one."""
    mine, theirs = (re.findall(r"\S+|\s+", one) for one in (text, other))
    parts = []
    for what, start, end, _, _ in SequenceMatcher(None, mine, theirs, autojunk=False).get_opcodes():
        piece = "".join(mine[start:end])
        plain = what == "equal" or not piece.strip()
        parts.append(safe_lines(piece) if plain else _lit(piece))
    return "".join(parts)


def _lit(piece: str) -> str:
    """On a coloured ground, line by line: the ground does not go over a line's end."""
    lines = [
        f":primary-background[{safe(line.strip())}]" if line.strip() else "" for line in piece.splitlines()
    ]
    before, after = piece[: len(piece) - len(piece.lstrip())], piece[len(piece.rstrip()) :]
    return safe_lines(before) * (not lines[0]) + "  \n".join(lines).strip() + (" " if after else "")
