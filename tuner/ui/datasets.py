"""The datasets page's mechanism: the catalog in rows, pages of a set, its report, and what a model sees of a row."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import streamlit as st

from tuner.config.config import KNOBS, Config
from tuner.config.kinds import REWARDED, usual_for
from tuner.config.knobs import ConfigError
from tuner.data.entries import Entry
from tuner.data.pages import Pages, Row
from tuner.data.prepare import report_of
from tuner.data.report import Finding, Report
from tuner.data.show import Shown, show
from tuner.data.tokens import Tokenizer, load_tokenizer
from tuner.runs import inputs
from tuner.runs.run import Run
from tuner.text.lookup import mark, tr
from tuner.text.message import Message
from tuner.ui import charts, chat, draft, pictures, run_list, theme, tokens_view, writes
from tuner.ui.offers import offer
from tuner.ui.words import NONE, count, number, safe, share

SIZE = 5
"""Rows on a page of the preview."""
FOUND, LOOKING = 20, 2.0
"""Rows that a search shows, and seconds that it looks."""
SAMPLE = 20_000
"""Rows that the report of a larger set is made from."""
KINDS = {
    "text": mark("Plain text"),
    "chat": mark("Chat"),
    "pairs": mark("Pairs"),
    "labelled": mark("Ratings"),
    "decisions": mark("Decisions"),
}


@st.cache_resource(show_spinner=False, max_entries=48)
def _indexed(files: tuple[tuple[str, int], ...]) -> Pages:
    pages = Pages([Path(name) for name, _ in files])
    until = time.monotonic() + 0.2
    while pages.rows is None and time.monotonic() < until:  # a small file is counted before anybody looks
        time.sleep(0.005)
    return pages


def pages_of(entry: Entry) -> Pages:
    """The pages of a set's files; indexed once for each state of them. Raises ConfigError."""
    return _indexed(tuple((str(f), f.stat().st_mtime_ns) for f in entry.files()))


# --- preview -------------------------------------------------------------------------------------------------------


def preview(entry: Entry) -> None:
    """The rows of a set, page by page."""
    try:
        known = pages_of(entry)
        total = known.rows
        with st.container(horizontal=True, vertical_alignment="center", gap="small", key="preview-bar"):
            pages = max(1, -(-(total if total is not None else known.counted) // SIZE))
            at = int(st.pagination(pages, key=f"page-{entry.name}"))
            st.caption(count(total, "row"), width="content") if total is not None else _counting(entry)
            st.space("stretch")
            word = st.text_input(
                tr("Search in rows"),
                type="search",
                icon=":material/search:",
                placeholder=tr("Search in rows"),
                key=f"find-{entry.name}",
                live=True,
                label_visibility="collapsed",
                width=200,
            )
            st.number_input(
                tr("Go to row"),
                min_value=0,
                max_value=max(0, known.counted - 1),
                step=1,
                key=f"goto-{entry.name}",
                value=None,
                placeholder=tr("Go to row"),
                label_visibility="collapsed",
                width=150,
                on_change=_go_to,
                args=(entry.name,),
            )
        for found in _found(known, word) if word else known.page(at - 1, SIZE):
            chat.row(found, entry)
    except (ConfigError, OSError) as error:
        st.error(safe(error), icon=":material/error:")


def _found(known: Pages, word: str) -> list[Row]:
    """The rows that hold a text; said where there is none, or not all were looked at."""
    rows, looked = known.find(word, FOUND, LOOKING)
    if not rows or looked < known.counted:
        st.caption(
            tr(
                "{found} in the first {looked}.",
                found=count(len(rows), "match", "matches"),
                looked=count(looked, "row"),
            )
        )
    return rows


def used(entry: Entry) -> None:
    """How many runs read it, and how many versions of it there were."""
    versions = _used(entry.name, tuple(f.name for f in entry.files()))
    if not versions:
        return
    runs = {run_id for ids in versions.values() for run_id in ids}
    said = tr("Used by {runs}", runs=count(len(runs), "run"))
    with st.popover(said, icon=":material/history:", type="tertiary"):
        for digest, ids in versions.items():
            st.markdown(f"`{digest[:12]}` · {count(len(ids), 'run')}")
            for run_id in ids[:FOUND]:
                run_list.link(run_id, Run(run_id).name)


@st.cache_data(ttl=20, show_spinner=False)
def _used(name: str, files: tuple[str, ...]) -> dict[str, list[str]]:
    return inputs.used([name], files)


@st.fragment(run_every=1.0)
def _counting(entry: Entry) -> None:
    """How many rows were found so far, until all are counted."""
    known = pages_of(entry)
    if known.rows is not None:
        st.rerun()
    st.caption(tr("{rows} so far", rows=count(known.counted, "row")), width="content")


def _go_to(name: str) -> None:
    row = st.session_state.get(f"goto-{name}")
    if row is not None:
        st.session_state[f"page-{name}"] = int(row) // SIZE + 1


# --- for a model ---------------------------------------------------------------------------------------------------


def settings(entry: Entry) -> Config | None:
    """Model, stage and cutoff to look at a set with; they begin with the form's. None until there is a model."""
    values = draft.current().values
    given = offer("model_name_or_path", values)
    models = list(given.choices) if given else []
    own = values.get("model_name_or_path")
    if own and own not in models:
        models.insert(0, str(own))
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        model = st.selectbox(
            tr("Model"),
            models,
            index=models.index(str(own)) if own in models else (0 if models else None),
            accept_new_options=True,
            placeholder=tr("A folder with a tokenizer"),
            key="look-model",
            width=240,
            help=tr("Its tokenizer and template are used. Weights are not read."),
        )
        stages = [s for s in KNOBS["stage"].choices if not entry.fits(s)]
        usual = usual_for(entry.kind)
        first = stages.index(usual) if usual in stages else 0
        stage = st.selectbox(tr("Stage"), stages, index=first, key=f"look-stage-{entry.kind}", width=110)
        cutoff = st.number_input(
            tr("Cutoff length"),
            min_value=4,
            value=int(values.get("cutoff_len") or KNOBS["cutoff_len"].default),
            step=64,
            key="look-cutoff",
            width=170,
            help=tr("The longest example, in tokens."),
        )
    if not model or not stage:
        st.caption(tr("Choose a model: its tokenizer counts the tokens."))
        return None
    base = {n: v for n, v in values.items() if n in KNOBS and n not in ("dataset", "eval_dataset")}
    base |= {
        "model_name_or_path": model,
        "stage": stage,
        "cutoff_len": cutoff,
        "dataset": [entry.name],
        "dataset_dir": str(entry.dataset_dir),
    }
    from tuner.config.config import check

    config, problems = check(base)
    if config is None:
        st.error(safe(problems[0].sentence), icon=":material/error:")
    return config


@st.cache_resource(show_spinner=False, max_entries=4)
def _tokenizer(folder: str) -> Tokenizer:
    return load_tokenizer(folder)


def sees(entry: Entry, config: Config) -> None:
    """One row as tokens: what is learnt, what is only read."""
    try:
        known = pages_of(entry)
        number = st.number_input(
            tr("Row"),
            min_value=0,
            max_value=max(0, known.counted - 1),
            step=1,
            key=f"see-{entry.name}",
            width=150,
        )
        found = known.row(int(number))
        shown = show(config, entry, found.record, _tokenizer(str(config.model_name_or_path)))
    except (ConfigError, OSError) as error:
        st.error(safe(error), icon=":material/error:")
        return
    if shown.dropped:
        st.markdown(tr(":orange[:material/block: **Not used: {dropped}**]", dropped=safe(tr(shown.dropped))))
        st.text(shown.detail)
        return
    _legend(shown)
    for place, (side, tokens) in zip(
        st.columns(len(shown.sides), gap="small"), shown.sides.items(), strict=True
    ):
        with place, theme.card(f"sees-{side}", gap="xsmall"):
            trained = sum(t.trained for t in tokens)
            st.markdown(
                tr(
                    "**{side}** :gray[{tokens}, {trained} trained on]",
                    side=tr(side.capitalize()),
                    tokens=count(len(tokens), "token"),
                    trained=count(trained),
                )
            )
            tokens_view.draw(tokens, f"{entry.name}-{side}", shown.pictures)


def _legend(shown: Shown) -> None:
    cut = tr(" Truncated from {tokens}.", tokens=count(shown.length, "token")) if shown.cut else ""
    st.caption(
        tr(
            "Template: **{template}**. Underlined and tinted: trained on. Grey: context only, no loss. Framed: special tokens.{cut}",
            template=safe(shown.template),
            cut=cut,
        )
    )


# --- report --------------------------------------------------------------------------------------------------------


def reported(entry: Entry, config: Config) -> None:
    """The data report: made on demand, kept while the set and the settings stay as they are."""
    spread = _spread(entry)
    key = f"report-{entry.name}-{config.stage}-{config.cutoff_len}-{config.model_name_or_path}-{spread}"
    if key not in st.session_state and st.button(
        tr("Create the report"), type="primary", icon=":material/fact_check:"
    ):
        bar = st.progress(0.0, text=tr("Reading"))
        try:
            tokenizer = _tokenizer(str(config.model_name_or_path))

            def tell(part: float, text: Message) -> None:
                bar.progress(min(1.0, part), safe(text))

            st.session_state[key] = report_of(config, tokenizer, tell, spread)
        except (ConfigError, OSError) as error:
            st.error(safe(error), icon=":material/error:")
            return
        finally:
            bar.empty()
        st.rerun()
    if key in st.session_state:
        _report(cast(Report, st.session_state[key]), entry)
    else:
        st.caption(
            tr(
                "Checks {tr} as training would: which rows are kept, truncated or dropped, and why.",
                tr=tr("{spread} rows, evenly from the whole set,", spread=count(spread))
                if spread
                else tr("every row"),
            )
        )


def _spread(entry: Entry) -> int:
    """How many rows the report reads; 0 for all, as of a set that is not large or where a person wants it so."""
    try:
        rows = pages_of(entry).rows
    except (ConfigError, OSError):
        return 0
    if rows is not None and rows <= SAMPLE:
        return 0
    said = tr("A sample is read because the set is large. All rows take about a minute per million.")
    return 0 if st.checkbox(tr("Check every row"), key=f"every-{entry.name}", help=said) else SAMPLE


LENGTHS = mark("**Length of examples** :gray[{said} tokens]")
LENGTHS_AND_CUTOFF = mark("**Length of examples** :gray[{said} tokens; dashed: cutoff]")


def _report(found: Report, entry: Entry) -> None:
    figures: dict[str, str] = {
        "Rows read": tr("{read} of {there}", read=count(found.read), there=count(found.there))
        if found.sampled
        else count(found.read),
        "Kept": count(found.kept),
        "Dropped": count(found.read - found.kept),
        "Truncated": f"{count(found.cut)} ({share(found.cut_share)})",
        "Duplicates": count(found.duplicates),
        **(
            {"With a label": f"{count(found.labelled)} ({share(found.labelled_share)})"}
            if found.stage in REWARDED
            else {"Tokens trained on": share(found.trained_share)}
        ),
        "Steps": count(found.steps) if found.steps else NONE,
    }
    with st.grid("auto", min_column_width=125, gap="small") as grid:
        for name, figure in figures.items():
            grid.metric(tr(name), figure)
    if found.sampled:
        st.info(safe(found.notes[-1]), icon=":material/filter_alt:")
    if found.histogram:
        with theme.card("lengths", gap="xsmall"):
            words = {"p50": tr("median"), "p95": tr("95% ≤"), "max": tr("max")}
            told = (f"{w} {number(found.tokens[n])}" for n, w in words.items() if n in found.tokens)
            said = tr(", ").join(told)
            edges = np.asarray(found.histogram["edges"])
            shown = charts.shows(edges, found.cutoff_len)
            st.markdown(tr(LENGTHS_AND_CUTOFF if shown else LENGTHS, said=said))
            drawn = charts.lengths(edges, np.asarray(found.histogram["counts"]), found.cutoff_len)
            charts.draw(drawn, "lengths", tr("Lengths of examples in tokens: {said}.", said=said))
            _by_cutoff(found)
    _findings(tr("Dropped rows"), found.dropped, entry)
    _findings(tr("Warnings"), found.findings, entry)
    _mend(found, entry)
    for note in found.notes[:-1] if found.sampled else found.notes:
        st.caption(f":material/info: {safe(note)}")


def _by_cutoff(found: Report) -> None:
    """What another cutoff would truncate, counted anew while it is moved; and tokens by what they are for."""
    longest = max(found.quantiles, default=0)
    if found.kept and longest > 8:
        cutoff = st.slider(
            tr("Cutoff length"), 4, longest, min(found.cutoff_len, longest), key="report-cutoff"
        )
        part = found.longer_than(cutoff)
        st.caption(
            tr(
                "At {cutoff} tokens, {rows} ({share}) would be truncated.",
                cutoff=count(cutoff),
                rows=count(round(part * found.kept), "row"),
                share=share(part),
            )
        )
    trained, context = found.trained_tokens, found.total_tokens - found.trained_tokens
    st.caption(
        tr(
            "Tokens: {trained} answers (trained on), {context} prompts (context).",
            trained=count(trained),
            context=count(context),
        )
    )
    if found.pictures:
        st.caption(
            tr(
                "Pictures: {pictures}, {tokens} (context).",
                pictures=count(found.pictures),
                tokens=count(found.picture_tokens, "token"),
            )
        )


def _mend(found: Report, entry: Entry) -> None:
    """A copy without what cannot be used."""
    if not found.dropped and not found.duplicates:
        return
    with st.popover(tr("Save a clean copy"), icon=":material/cleaning_services:"):
        st.caption(tr("Without unusable rows and duplicates. This data set stays as it is."))
        name = st.text_input(tr("Name in the catalog"), f"{entry.name}_clean", key=f"clean-{entry.name}")
        st.button(
            tr("Save"), icon=":material/save:", on_click=_save_clean, args=(entry, name), **writes.locked()
        )


def _save_clean(entry: Entry, name: str) -> None:
    try:
        media = pictures.folder_of(entry) if entry.pictures else None
        made = writes.mend_dataset(entry, name, str(entry.dataset_dir), media)
    except writes.FAILED as error:
        st.toast(safe(error), icon=":material/error:")
        return
    st.toast(
        tr(
            "{name}: {kept} rows. Left out: {unusable} unusable, {duplicates} duplicates.",
            name=safe(made.entry.name),
            kept=count(made.kept),
            unusable=count(made.unusable),
            duplicates=count(made.duplicates),
        ),
        icon=":material/check:",
    )


def _open_row(entry: Entry, file: str, line: int) -> None:
    """Show a finding's row in the preview. For callbacks."""
    if (number := pages_of(entry).at(file, line)) is not None:
        st.session_state[f"page-{entry.name}"] = number // SIZE + 1
        st.session_state[f"find-{entry.name}"] = ""
        st.session_state["view"] = tr("Preview")


def _findings(title: str, found: Mapping[str, Finding], entry: Entry) -> None:
    if not found:
        return
    st.markdown(f"**{title}**")
    rows: list[dict[str, Any]] = [
        {
            "What": tr(what),
            "Rows": count(finding.count),
            "Example": _places(finding),
            "Detail": str(finding.examples[0]["detail"]) if finding.examples else "",
        }
        for what, finding in sorted(found.items(), key=lambda item: -item[1].count)
    ]
    theme.frame(rows, hide_index=True, column_config={"Detail": {"width": "large"}})
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        for what, finding in found.items():
            for one in (
                finding.examples[:2]
                if finding.examples[:1] and finding.examples[0]["dataset"] == entry.name
                else ()
            ):
                st.button(
                    tr("{what}: line {line}", what=tr(what), line=one["line"]),
                    icon=":material/arrow_forward:",
                    type="tertiary",
                    key=f"finding-{what}-{one['file']}-{one['line']}",
                    on_click=_open_row,
                    args=(entry, one["file"], one["line"]),
                )


def _places(finding: Finding) -> str:
    """The first few lines of a finding; the file's name only where there are several files."""
    found = finding.examples[:3]
    if len({e["file"] for e in finding.examples}) > 1:
        return "; ".join(tr("{file} line {line}", file=e["file"], line=e["line"]) for e in found)
    return tr("line {lines}", lines=", ".join(str(e["line"]) for e in found))
