"""The decide page's mechanism: a state, questions in a table, and beside each other what a base and its adapters answer."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import streamlit as st

from tuner.chats.completions import Unanswered
from tuner.config.kinds import KINDS
from tuner.config.knobs import ConfigError
from tuner.data.catalog import read_catalog
from tuner.data.decisions import CHOICE, NOUL, SCORE, TYPES, Question, QuestionError, questions_of
from tuner.data.entries import Entry
from tuner.data.formats import Dropped, convert
from tuner.text.lookup import LANGUAGES, catalogue, mark, tr
from tuner.text.message import plain, render
from tuner.tracking.adapter_rows import AdapterRow
from tuner.tracking.votes import BASE
from tuner.ui import datasets, serving, talk_view, theme, writes
from tuner.ui.offers import here
from tuner.ui.state import asked
from tuner.ui.words import safe, share

MOST = 3
"""Models that are asked side by side."""
TYPE_WORDS = {NOUL: mark("Yes or no"), CHOICE: mark("One of"), SCORE: mark("How much")}
COLUMNS = ("Name", "Type", "Question", "Options")
FIRST = (
    {"Name": "refund", "Type": TYPE_WORDS[NOUL], "Question": mark("Is a refund asked for?"), "Options": ""},
    {
        "Name": "tone",
        "Type": TYPE_WORDS[CHOICE],
        "Question": mark("What is the tone?"),
        "Options": mark("calm; angry; pushy: presses the reader"),
    },
    {
        "Name": "urgency",
        "Type": TYPE_WORDS[SCORE],
        "Question": mark("How urgent is it?"),
        "Options": mark("can wait; this week; today"),
    },
)
STATE = mark("I was charged twice for my order, and I want my money back today.")


def panel() -> None:
    """Whom to ask, about what, and what they say."""
    with theme.card("decide-settings", gap="small"):
        base, columns = _models()
        _from_a_set()
    state, rows = _asked()
    questions, wrong = read(rows)
    at = serving.standing(base).at if base else None
    lacks = (
        wrong
        or ("" if columns else tr("Choose a model first."))
        or ("" if at else tr("Load the model first."))
    )
    st.button(
        tr("Ask it"),
        type="primary",
        icon=":material/send:",
        key="decide-ask",
        on_click=_ask,
        args=(base, tuple(columns), state, questions),
        **writes.locked(help=lacks or None, disabled=bool(lacks)),
    )
    if wrong:
        st.caption(f":material/error: {safe(wrong)}")
    _answers(base)


def _models() -> tuple[str, list[str]]:
    bases = serving.bases()
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        wanted = asked("base")
        index = bases.index(wanted) if wanted in bases else 0 if bases else None
        base = str(st.selectbox(tr("Base model"), bases, index=index, key="decide-base", width=230) or "")
        known = serving.versions(base)
        columns = st.multiselect(
            tr("Who answers"),
            [BASE, *known],
            default=[BASE, *first(known, asked("adapter"))],
            max_selections=MOST,
            format_func=lambda one: serving.named(one, known),
            key=f"decide-columns-{base}",
        )
    if base:
        serving.line(base, "", columns, "decisions", busy=False, unloaded=tr("Load it to ask."))
    return base, columns


def first(known: Mapping[str, AdapterRow], wanted: str) -> list[str]:
    """The version that answers unasked: the wanted one, else the newest that learnt decisions, else the newest."""
    learnt = [
        one for one, row in known.items() if row.stage in KINDS and KINDS[row.stage].predicts == "decisions"
    ]
    return [wanted] if wanted in known else [*learnt, *known][:1]


# --- what is asked -------------------------------------------------------------------------------------------------


def _from_a_set() -> None:
    sets = _sets()
    if not sets:
        return
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        name = st.selectbox(tr("Records"), list(sets), key="decide-set", width=230)
        st.button(
            tr("Take a row"),
            icon=":material/shuffle:",
            key="decide-row",
            on_click=_take,
            args=(sets[str(name)],),
            help=tr("The state and the questions of a row at random."),
        )


def _sets() -> dict[str, Entry]:
    with suppress(ConfigError):
        entries = read_catalog(talk_view.folder())
        return {n: one for n, one in entries.items() if one.told_kind == "decisions" and here(one)}
    return {}


def _take(entry: Entry) -> None:
    with suppress(ConfigError, OSError):
        pages = datasets.pages_of(entry)
        row = convert(pages.row(secrets.randbelow(max(1, pages.counted))).record, entry)
        if not isinstance(row, Dropped):
            state = row["state"]
            st.session_state["decide-state"] = (
                state if isinstance(state, str) else json.dumps(state, ensure_ascii=False)
            )
            st.session_state["decide-rows"] = table(questions_of(row["questions"]))
            st.session_state["decide-version"] = st.session_state.get("decide-version", 0) + 1
            st.session_state.pop("decide-answers", None)


def table(questions: Sequence[Question]) -> list[dict[str, str]]:
    """Questions as rows of the table."""
    return [
        {
            "Name": one.name,
            "Type": tr(TYPE_WORDS[one.type]),
            "Question": _text(one.instructions),
            "Options": "; ".join(
                filter(
                    None, (_option(one, *pair) for pair in zip(one.options, one.descriptions, strict=True))
                )
            ),
        }
        for one in questions
    ]


def _option(question: Question, option: str, description: Any) -> str:
    said = _marked(_text(description), ";")
    if question.type == SCORE:
        return said
    name = _marked(option, ";:")
    return f"{name}: {said}" if said else "" if question.type == NOUL else name


def _marked(text: str, apart: str) -> str:
    """A text with a backslash before what would part it, and before a backslash that would be taken for such a one."""
    return re.sub(rf"[{apart}]|\\(?=[\\;:]|\Z)", r"\\\g<0>", text)


def _parts(text: str, apart: str) -> list[str]:
    """What stands between the unmarked signs of a text, marks and all."""
    return re.findall(rf"((?:\\.|[^{apart}\\]|\\\Z)*)(?:{apart}|\Z)", text, re.DOTALL)


def _bare(text: str) -> str:
    return re.sub(r"\\([\\;:])", r"\1", text).strip()


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _asked() -> tuple[Any, list[dict[str, Any]]]:
    st.session_state.setdefault("decide-state", tr(STATE))
    st.session_state.setdefault(
        "decide-rows", [{name: tr(said) if said else "" for name, said in row.items()} for row in FIRST]
    )
    text = st.text_area(
        tr("State"), key="decide-state", height=110, help=tr("A text, or JSON: an object or a list.")
    )
    rows = st.data_editor(
        st.session_state["decide-rows"],
        num_rows="dynamic",
        hide_index=True,
        key=f"decide-table-{st.session_state.get('decide-version', 0)}",
        column_order=COLUMNS,
        column_config={
            "Name": st.column_config.TextColumn(tr("Name"), width="small", required=True),
            "Type": st.column_config.SelectboxColumn(
                tr("Type"), options=list(map(tr, TYPE_WORDS.values())), width="small", required=True
            ),
            "Question": st.column_config.TextColumn(tr("Question"), width="medium"),
            "Options": st.column_config.TextColumn(
                tr("Options"),
                width="large",
                help=tr(
                    "Apart by semicolons, each with a description behind a colon if you like; levels the lowest first. "
                    "A backslash before a semicolon keeps it in a text."
                ),
            ),
        },
    )
    return _state(str(text or "")), list(rows)


def _state(text: str) -> Any:
    """What a text says: JSON where it is an object or a list."""
    if text.lstrip().startswith(("{", "[")):
        with suppress(ValueError, RecursionError):
            return json.loads(text)
    return text


def read(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], str]:
    """The questions of the table as a request has them, and what is wrong with them."""
    words = {catalogue(spoken).text(word): kind for kind, word in TYPE_WORDS.items() for spoken in LANGUAGES}
    asked: dict[str, Any] = {}
    for row in rows:
        kind = words.get(str(row.get("Type")), TYPES[0])
        name = str(row.get("Name") or "").strip()
        options = [part for part in _parts(str(row.get("Options") or ""), ";") if part.strip()]
        made: dict[str, Any] = {"type": kind}
        if said := str(row.get("Question") or "").strip():
            made["instructions"] = said
        if options:
            made["criteria"] = list(map(_bare, options)) if kind == SCORE else dict(map(_described, options))
        if name in asked:
            return {}, tr("Two questions are called {name}.", name=name)
        asked[name] = made
    try:
        questions_of(asked)
    except QuestionError as error:
        return {}, f"{str(error)[:1].upper()}{str(error)[1:]}."
    return asked, tr("A question needs a name.") if "" in asked else ""


def _described(option: str) -> tuple[str, str | None]:
    name = _parts(option, ":")[0]
    return _bare(name), _bare(option[len(name) + 1 :]) or None


# --- what they say -------------------------------------------------------------------------------------------------


def _ask(base: str, columns: Sequence[str], state: Any, questions: Mapping[str, Any]) -> None:
    at = serving.standing(base).at
    found: dict[str, Any] = {}
    try:
        for column in columns:
            if at is not None:
                found[column] = writes.decide(at, column, state, questions)
    except (Unanswered, *writes.FAILED) as error:  # the server speaks English
        st.toast(safe(render(plain(str(error)))), icon=":material/error:")
        return
    st.session_state["decide-answers"] = (base, questions, found)


def _answers(base: str) -> None:
    asked, questions, found = st.session_state.get("decide-answers") or ("", {}, {})
    if asked != base or not found:
        return
    known = serving.versions(base)
    with st.grid(2, min_column_width=330, gap="small"):
        for question in questions_of(questions):
            with theme.card(f"decided-{question.name}", gap="xsmall"):
                st.markdown(f"**{safe(question.name)}** :gray[{safe(_text(question.instructions))}]")
                for column, answers in found.items():
                    st.caption(
                        f"{safe(serving.named(column, known))}: **{safe(told(question, answers[question.name]))}**"
                    )
                _shares(question, {serving.named(c, known): a[question.name] for c, a in found.items()})
    with st.expander(tr("The same by the API"), icon=":material/api:"):
        body = {"model": list(found)[-1], "state": "...", "questions": questions}
        st.code(
            f"POST /v1/systemone\n{json.dumps(body, ensure_ascii=False, indent=2)}",
            language="json",
            wrap_lines=True,
        )


def told(question: Question, answer: Mapping[str, Any]) -> str:
    """An answer in a few words."""
    if question.type == NOUL:
        said = tr("Yes") if answer["noul"] >= 0.5 else tr("No")
        return f"{said}, {share(max(answer['noul'], 1 - answer['noul']))}"
    if question.type == CHOICE:
        return f"{answer['choice']}, {share(answer['probabilities'][answer['choice']])}"
    return tr("{score:.2f} of {most}", score=answer["score"], most=len(question.options) - 1)


def shares(question: Question, answer: Mapping[str, Any]) -> dict[str, float]:
    """The probability of each option, by what is read for it."""
    if question.type == NOUL:
        return {tr("Yes"): answer["noul"], tr("No"): 1 - answer["noul"]}
    words = dict(zip(question.options, question.descriptions, strict=True))
    by_option: Mapping[str, float] = answer["probabilities"]
    return {
        f"{option}: {_text(words[option])}" if question.type == SCORE else option: p
        for option, p in by_option.items()
    }


def _shares(question: Question, by_model: Mapping[str, Mapping[str, Any]]) -> None:
    each = {name: shares(question, answer) for name, answer in by_model.items()}
    rows = [
        {"Option": option} | {name: own[option] for name, own in each.items()}
        for option in next(iter(each.values()))
    ]
    bar = {
        n: st.column_config.ProgressColumn(n, width="small", min_value=0.0, max_value=1.0, format="percent")
        for n in each
    }
    theme.frame(rows, {"Option": {"width": "medium"}, **bar}, hide_index=True, height="content")
