"""The card beside the form: what the run amounts to, what is wrong and how to mend it, its name, its command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import streamlit as st

from tuner import paths
from tuner.config.config import Config
from tuner.config.knobs import Problem
from tuner.config.writing import command, to_yaml
from tuner.jobs import planning
from tuner.jobs.script import script
from tuner.plan import preflight
from tuner.plan.plan import Plan
from tuner.plan.schedule import Schedule
from tuner.runs.run import fresh_name
from tuner.text.lookup import tr
from tuner.tracking.runs import names
from tuner.ui import draft as drafts
from tuner.ui import field, judged, memory_bar, sweep, theme, writes
from tuner.ui.words import NONE, count, duration, engine, in_form, mending, safe, size, value


def show(launch: Callable[[Config, str], None]) -> None:
    """Draw the card. `launch` is called with the config and the run's name when Launch is pressed."""
    draft, (config, problems) = drafts.current(), judged.current()
    with theme.card("run"):
        taken = _taken()
        typed = draft.name or str(draft.value("run_name") or "")
        name = typed or fresh_name(draft.values, taken)
        key = f"run-name:{'' if typed else name}"  # it follows model and stage until a person types one
        called = tr("The name of this run in lists and charts.")
        st.text_input(tr("Name"), name, key=key, on_change=_renamed, args=(key,), help=called)
        if name in taken:
            st.caption(tr(":material/info: Another run has the same name."))
        if config is not None:
            _figures(config)
        if config is not None and config.dataset:
            st.page_link(
                "pages/datasets.py",
                label=tr("What the model will see"),
                icon=":material/visibility:",
                query_params={
                    "dataset": config.dataset[0],
                    "folder": str(config.dataset_dir),
                    "view": tr("What the model sees"),
                },
            )
        _verdict(problems)
        st.button(
            tr("Launch"),
            type="primary",
            icon=":material/play_arrow:",
            width="stretch",
            key="launch",
            on_click=_launch,
            args=(launch, config, typed),
            **writes.locked(disabled=config is None or bool(problems)),
        )
        sweep.offer(draft, name, disabled=config is None or bool(problems))
    with theme.card("same"):
        _same(config, name, typed=typed if typed not in taken else "")


def _launch(launch: Callable[[Config, str], None], config: Config, name: str) -> None:
    launch(config, name)
    st.rerun()  # the card is a piece of its own, and the way leads to another page


def _figures(config: Config) -> None:
    plan = planning.planned(config)
    for said in preflight.notes(config):
        st.caption(safe(said))
    with st.container(key="figures-run", gap="xsmall"):
        left, right = st.columns(2, wrap=False)
        left.metric(
            tr("Steps"),
            f"≈ {count(plan.steps)}" if plan.roughly and plan.steps else count(plan.steps),
            help=tr("Optimizer steps: examples × epochs ÷ examples per step."),
        )
        what, each = read_as(config)
        right.metric(
            tr("{what} / step", what=what),
            count(plan.examples_per_step),
            help=tr("Batch size × accumulation × devices. Usual: 8 to 64."),
        )
        rows = tr("Prompts") if config.kind.rewarded else what
        left.metric(rows, count(plan.rows), help=tr("Rows of the data sets, before any are dropped."))
        right.metric(
            tr("Tokens / epoch"),
            _tokens(plan, each, config),
            help=tr("≈ from a sample of the rows; ≤ the most, where answers are still to be generated."),
        )
        _needs(plan)


def _tokens(plan: Plan, each: int, config: Config) -> str:
    """How many tokens are read in an epoch: counted where the rows were, else the most there can be."""
    if not plan.rows:
        return NONE
    if plan.data.lengths and not config.kind.rewarded:
        return f"≈ {_short(round(plan.rows * plan.data.lengths.mean))}"
    return f"≤ {_short(plan.rows * each)}"


def read_as(config: Config) -> tuple[str, int]:
    """What a batch counts, and the most tokens that a row comes to."""
    if not config.kind.rewarded:
        return tr("Examples"), config.cutoff_len
    answers = Schedule.of(config, 1).answers
    return tr("Answers"), config.cutoff_len + answers * config.max_new_tokens


def _needs(plan: Plan) -> None:
    """Memory, time and disk: what it will take, beside what there is; and what computes it."""
    left, right = st.columns(2, wrap=False)
    left.metric(
        tr("Memory"),
        f"≈ {size(memory_bar.needed(plan))}" if plan.memory else NONE,
        help=tr("Peak per device. The bar shows its parts.")
        if plan.memory
        else tr("Available once model and data are on this machine."),
    )
    right.metric(
        tr("Time"),
        f"≈ {duration(plan.seconds)}" if plan.seconds else NONE,
        help=tr("At the speed of the last finished run with this model, stage and method."),
    )
    left.metric(tr("Engine"), engine(plan.engine), help=_why(plan))
    right.metric(
        tr("Disk"),
        f"≈ {size(plan.disk)}" if plan.disk is not None else NONE,
        help=tr("Kept checkpoints and the final weights."),
    )
    if plan.writing and plan.learning is not None:
        parts = {"writing": duration(plan.writing), "learning": duration(plan.learning)}
        st.caption(tr("A step: ≈ {writing} to write answers, ≈ {learning} to learn from them.", **parts))
    memory_bar.draw(plan)
    if (needed := memory_bar.needed(plan)) and needed > plan.free:
        st.markdown(
            tr(
                ":orange[:material/memory_alt: This may not fit: {free} are free.] "
                "A smaller batch with more accumulation, a shorter cutoff or gradient checkpointing needs less.",
                free=size(plan.free),
            )
        )


def _why(plan: Plan) -> str:
    """Why this engine, and what it does to fit."""
    because = (
        tr("Not packed rows: {why}", why=plan.why)
        if plan.why
        else tr("Examples are packed into rows without padding.")
    )
    again = (
        tr(" {layers} of {layers_2} recomputed.", layers=count(plan.recompute, "layer"), layers_2=plan.layers)
        if plan.recompute
        else ""
    )
    tokens = (
        tr(" At most {token_budget} tokens a row.", token_budget=count(plan.token_budget))
        if plan.token_budget
        else ""
    )
    return f"{because}{tokens}{again}"


def _short(figure: int) -> str:
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if figure >= scale:
            return f"{figure / scale:.3g} {unit}"
    return str(figure)


def _verdict(problems: Sequence[Problem]) -> None:
    if not problems:
        st.markdown(tr(":green[:material/check_circle: Ready to launch]"))
        return
    st.markdown(tr(":red[:material/error: **Fix {things} first**]", things=count(len(problems), "problem")))
    for number, problem in enumerate(problems):
        with st.container(key=f"problem-{number}", gap="xsmall"):
            st.markdown(safe(in_form(problem.sentence)))
            if problem.mend:
                said = mending(problem.mend)
                st.button(
                    safe(said),
                    key=f"mend-{said}-{number}",
                    icon=":material/build:",
                    on_click=field.mend,
                    args=(dict(problem.mend),),
                )


@st.cache_data(ttl=5, show_spinner=False)
def _taken() -> set[str]:
    return names()


def _same(config: Config | None, name: str, typed: str) -> None:
    """The run as a command, as YAML and as Python. Only a name that a person chose goes into them: they may be used twice."""
    shell, yaml, python = st.tabs([tr("Command"), "YAML", "Python"], key="same", on_change="rerun")
    if config is None:
        for tab in (shell, yaml, python):
            tab.caption(tr("Appears when the form is valid."))
        return
    named = config.model_copy(update={"run_name": typed or None})
    if shell.open:
        shell.code(command(named), language="bash", wrap_lines=True)
        shell.caption(
            tr(
                "Run it in a shell in {home}, or anywhere with TUNER\\_HOME set to that folder.",
                home=safe(paths.home()),
            )
        )
    if yaml.open:
        _yaml(yaml, named, name)
    if python.open:
        python.code(script(named, paths.home()), language="python", wrap_lines=True)
        python.caption(tr("Run it in the Python environment of the studio."))


def _yaml(tab: Any, named: Config, name: str) -> None:
    text = to_yaml(named.changed())
    tab.code(text, language="yaml", wrap_lines=True)
    with tab.container(horizontal=True, gap="small"):
        lock = writes.locked(help=tr("Save it as a preset to start from."))
        if st.button(tr("Save"), icon=":material/bookmark:", **lock):
            try:
                path = writes.save_config(name, named.changed())
                st.toast(
                    tr("Saved as {name}/{name_2}.", name=path.parent.name, name_2=path.name),
                    icon=":material/bookmark:",
                )
            except writes.FAILED as error:
                st.toast(safe(error), icon=":material/error:")
        st.download_button(
            tr("Download"), text, f"{name}.yaml", "text/yaml", icon=":material/download:", on_click="ignore"
        )


def _renamed(key: str) -> None:
    """Take a name that a person typed. The one that stood there by itself is none: a browser that is a step behind has
    been seen to send it back after the stage was changed."""
    if key not in st.session_state:
        return
    typed = str(st.session_state[key]).strip()
    if not typed or typed != key.partition(":")[2]:
        drafts.keep(replace(drafts.current(), name=typed))


def changes(base: dict[str, Any]) -> None:
    """What a starting point sets otherwise than the defaults, with the reason of each knob."""
    for knob, given in drafts.differs(base):
        st.markdown(f"`{knob.name}` **{safe(value(given))}** :gray[{safe(tr(knob.help))}]")
