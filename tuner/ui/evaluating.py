"""The evaluation page's mechanism: which model, which versions of it, on what; the run and the command that come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from tuner.config.evaluation import BASE, EvaluateConfig
from tuner.config.inference import read_words
from tuner.config.knobs import ConfigError, Problem, knobs_of
from tuner.config.spelling import word
from tuner.config.writing import command, to_yaml
from tuner.jobs.checking import of_evaluation
from tuner.text.lookup import mark, tr
from tuner.tracking.adapters import AdapterRow, get_adapter
from tuner.tracking.rows import RunFilter, RunRow
from tuner.tracking.runs import list_runs
from tuner.tracking.store import TrackerError
from tuner.ui import offers, picking, serving, state, theme, writes
from tuner.ui.picking import Column
from tuner.ui.words import ago, count, listed, look, place, safe, value

KNOBS = knobs_of(EvaluateConfig)
ROWS = 100
"""Questions that are asked unless another number is given: an answer each in a minute or two on a small machine."""
COLUMNS = (
    Column(mark("Name"), "link"),
    Column(mark("Model")),
    Column(mark("Data")),
    Column(mark("Versions")),
    Column(mark("State")),
    Column(mark("Created")),
)


def form() -> tuple[EvaluateConfig | None, list[Problem]]:
    """The fields; the config that they make, and what stands against launching it."""
    asked = state.asked("adapter")
    name, _, number = asked.rpartition("/")
    start = get_adapter(name, int(number)) if number.isdecimal() else None
    values: dict[str, Any] = {"model_name_or_path": _model(place(start.base) if start else "")}
    values["versions"] = _versions(str(values["model_name_or_path"] or ""), asked)
    left, right = st.columns(2, gap="small")
    values["dataset"] = _datasets(left)
    values["max_samples"] = right.number_input(
        tr("Questions"), 1, None, ROWS, key="evaluate-rows", help=KNOBS["max_samples"].tooltip
    )
    with st.expander(tr("More"), icon=":material/tune:"):
        values |= _more()
    return judged({name: given for name, given in values.items() if given not in (None, "", (), [])})


def judged(values: Mapping[str, Any]) -> tuple[EvaluateConfig | None, list[Problem]]:
    """The config that values make, and all that would stop its run."""
    words = [f"--{name}={word(given)}" for name, given in values.items()]
    try:
        config, _ = read_words(EvaluateConfig, words)
    except ConfigError as error:
        return None, error.problems
    return config, of_evaluation(config)


def _model(first: str) -> str:
    options = list(dict.fromkeys([*filter(None, [first]), *serving.bases()]))
    told = st.selectbox(
        tr("Model"),
        options,
        index=0 if options else None,
        accept_new_options=True,
        key=f"evaluate-model-{first}",
        placeholder=tr("a folder or a hub name"),
        help=KNOBS["model_name_or_path"].tooltip,
    )
    return str(told or "")


def _versions(base: str, asked: str) -> list[str]:
    fitting = serving.versions(base) if base else {}
    first = [asked] if asked in fitting else list(fitting)[:1]
    return st.multiselect(
        tr("Versions"),
        [BASE, *fitting],
        default=[BASE, *first],
        accept_new_options=True,
        format_func=lambda word: _called(word, fitting.get(word)),
        key=f"evaluate-versions-{base}-{asked}",
        help=KNOBS["versions"].tooltip,
    )


def _called(word: str, row: AdapterRow | None) -> str:
    if word == BASE:
        return tr("Base model")
    return f"{word}  ·  {', '.join(row.aliases)}" if row and row.aliases else word


def _datasets(column: Any) -> list[str]:
    offer = offers.offer("probe", {})  # what can be asked: chats, and pairs and thumbs by their better answer
    names = list(offer.choices) if offer else []
    first = [name for name in names if "eval" in name][:1] or names[:1]
    told: list[str] = column.multiselect(
        tr("Data"),
        names,
        default=first,
        accept_new_options=True,
        key="evaluate-data",
        help=KNOBS["dataset"].tooltip,
    )
    return told


_REWARD = '[{"contains": {"text": "thanks"}}]'


def _more() -> dict[str, Any]:
    with st.grid(3, min_column_width=200, gap="small") as grid:
        longest = grid.number_input(
            tr("Max new tokens"), 1, None, 256, key="evaluate-longest", help=KNOBS["max_new_tokens"].tooltip
        )
        temperature = grid.number_input(
            tr("Temperature"), 0.0, 5.0, 0.0, step=0.1, key="evaluate-temperature",
            help=tr("0 always takes the most likely token, so that evaluations are reproducible."),
        )  # fmt: skip
        template = grid.text_input(tr("Template"), key="evaluate-template", help=KNOBS["template"].tooltip)
        tasks = grid.text_input(
            tr("Benchmarks"),
            key="evaluate-tasks",
            placeholder=tr("arc_easy, my_task.yaml"),
            help=KNOBS["tasks"].tooltip,
        )
        judge = grid.text_input(
            tr("Judge's address"),
            key="evaluate-judge",
            placeholder="http://127.0.0.1:8000/v1",
            help=KNOBS["judge_url"].tooltip,
        )
        judging = grid.text_input(
            tr("Judge's model"), key="evaluate-judging", help=KNOBS["judge_model"].tooltip
        )
    rewards = st.text_input(  # a row of its own: parameters are long
        tr("Rewards"),
        key="evaluate-rewards",
        placeholder=tr("{name}, or {with_parameters}", name="json_valid", with_parameters=_REWARD),
        help=KNOBS["reward_funcs"].tooltip,
    )
    st.caption(
        tr("Names with commas between, or with their parameters, as the command of a New run shows them.")
    )
    sampled = {"do_sample": True, "temperature": temperature} if temperature else {}
    return sampled | {
        "max_new_tokens": longest, "template": template, "tasks": tasks, "judge_url": judge, "judge_model": judging,
        "reward_funcs": rewards,
    }  # fmt: skip


def card(config: EvaluateConfig | None, problems: Sequence[Problem]) -> None:
    """What it amounts to, what is wrong, Launch, and the same from a shell."""
    with theme.card("evaluate"):
        if config is not None:
            asked = count(config.max_samples, "question")
            st.markdown(
                tr(
                    "**{asked}** to **{versions}**, one after the other.",
                    asked=asked,
                    versions=count(len(config.measured()), "version"),
                )
            )
        for problem in problems:
            st.markdown(f":orange[:material/error: {safe(problem.sentence)}]")
        st.button(
            tr("Evaluate"),
            type="primary",
            icon=":material/play_arrow:",
            width="stretch",
            key="evaluate-launch",
            on_click=launch,
            args=(config,),
            **writes.locked(disabled=config is None or bool(problems)),
        )
    if config is not None:
        with st.expander(tr("The same from a shell"), icon=":material/terminal:"):
            shell, yaml = st.tabs([tr("Command"), "YAML"])
            shell.code(command(config), language="bash", wrap_lines=True)
            yaml.code(to_yaml({k: v for k, v in config.changed().items() if k != "stage"}), language="yaml")


def launch(config: EvaluateConfig) -> None:
    """Queue it and open its page."""
    try:
        run = writes.submit(config)
    except writes.FAILED as error:
        st.toast(safe(error), icon=":material/error:")
        return
    state.go("runs", run=run.id)


def earlier() -> None:
    """Evaluations that were launched before, each a link to its answers."""
    try:
        page = list_runs(RunFilter(stage=EvaluateConfig.of_kind), 1, 20)
    except TrackerError as error:
        st.warning(safe(error), icon=":material/cloud_off:")
        return
    if not page.items:
        theme.empty(
            "rule",
            tr("No evaluation yet"),
            tr("Choose a model and data above: every version answers the same questions."),
        )
        return
    picking.one(
        "evaluations",
        tr("Evaluations"),
        COLUMNS,
        table(page.items),
        "",
        "run",
        lambda id: state.go("runs", run=id),
    )


def table(rows: Sequence[RunRow]) -> dict[str, dict[str, Any]]:
    """A row an evaluation, by its run's id, with the values of COLUMNS."""
    return {
        row.id: {
            "Name": row.name,
            "Model": place(row.params.get("model_name_or_path", "")),
            "Data": value(row.params.get("dataset")),
            "Versions": listed((row.params.get("versions") or BASE).split(",")),
            "State": look(row.state).word,
            "Created": ago(row.created),
        }
        for row in rows
    }
