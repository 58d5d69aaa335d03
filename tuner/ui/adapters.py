"""The adapters page's mechanism: the versions there are, page by page, and one of them open: aliases, files, code."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from tuner.config.importing import ImportConfig
from tuner.config.knobs import knobs_of
from tuner.jobs.checking import of_import
from tuner.runs.run import Run
from tuner.text.lookup import mark, tr
from tuner.tracking import adapters, usage
from tuner.tracking.adapters import AdapterRow, list_adapters
from tuner.tracking.rows import Page
from tuner.ui import draft, evaluation, exporting, lineage, picking, scoreboard, state, theme, ways, writes
from tuner.ui.picking import Column, Place
from tuner.ui.words import NONE, ago, count, date, listed, place, safe, safe_lines, size

_STATES = {
    "ok": (mark("Files in place"), "green", ":material/verified:"),
    "missing": (mark("Files missing"), "red", ":material/error:"),
    "changed": (mark("Files changed"), "orange", ":material/warning:"),
}
SUGGESTED = ("champion", "candidate")
IMPORTED = knobs_of(ImportConfig)


COLUMNS = (
    Column(mark("Name"), "link"),
    Column(mark("Version"), "figure"),
    Column(mark("Score")),
    Column(mark("Method")),
    Column(mark("Data")),
    Column(mark("Aliases"), "tags"),
    Column(mark("Created")),
)
SIZE = 10
"""Versions on a page of the list."""


def listed_here() -> Page[AdapterRow]:
    """The page of versions that the search field leaves; both live in the URL. Raises TrackerError."""
    text = st.text_input(
        tr("Search"),
        type="search",
        icon=":material/search:",
        placeholder=tr("name, base, data, alias"),
        key="q",
        live=True,
        bind="query-params",
        width=260,
        on_change=state.first_page,
    )
    found = adapters.find_adapters(text or "", state.page(), SIZE)
    return found if found.number == state.page() else adapters.find_adapters(text or "", 1, SIZE)


def table(page: Page[AdapterRow], chosen: str) -> None:
    """The versions of one page, of which another one is opened by its name."""
    rows = {_id(row): _cells(row) for row in page.items}
    also = {"q": state.asked("q")} if state.asked("q") else {}
    above = (None, *page.items)
    places = {_id(row): _place(row, before) for row, before in zip(page.items, above, strict=False)}
    picking.one(
        "adapters",
        tr("Adapters"),
        COLUMNS,
        rows,
        chosen,
        "adapter",
        lambda id: state.tell(adapter=id),
        also,
        places,
    )
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption(count(page.total, "version"), width="content")
        st.space("stretch")
        if page.pages > 1:
            st.pagination(page.pages, key="page", bind="query-params")


def opened(page: Page[AdapterRow]) -> tuple[str, AdapterRow | None]:
    """Which version is open, `name/version`: that of the URL, else the first one listed; None where it is not there."""
    if not (id := state.asked("adapter")):
        return _id(page.items[0]), page.items[0]
    name, _, number = id.rpartition("/")
    return id, adapters.get_adapter(name, int(number)) if number.isdecimal() else None


def _id(row: AdapterRow) -> str:
    return f"{row.name}/{row.version}"


def _place(row: AdapterRow, above: AdapterRow | None) -> Place:
    """Its base is the heading; a version below another of the same adapter is a further one."""
    further = above is not None and (above.base, above.name) == (row.base, row.name)
    return Place(place(row.base) or tr("Unknown base"), further)


def _cells(row: AdapterRow) -> dict[str, object]:
    return {
        "Name": row.name,
        "Version": str(row.version),
        "Score": evaluation.briefly(row.evaluations) or NONE,
        "Method": " ".join(filter(None, (row.stage, row.method))) or NONE,
        "Data": listed(row.datasets),
        "Aliases": list(row.aliases),
        "Created": ago(row.created),
    }


def card(row: AdapterRow) -> None:
    """The version that is open, with all there is to it."""
    with theme.card(f"adapter-{row.name}"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.subheader(safe(row.name), anchor=False, width="content")
            st.caption(f":material/neurology: {safe(place(row.base) or tr('unknown base'))}", width="content")
            st.space("stretch")
            st.button(
                tr("All versions"),
                icon=":material/search:",
                type="tertiary",
                on_click=_search_for,
                args=(row.name,),
                key=f"all-{row.name}",
            )
        version(row)


def _search_for(name: str) -> None:
    st.session_state["q"] = name
    state.first_page()


def version(row: AdapterRow) -> None:
    """One version: what it is, what it came from, what can be done with it."""
    with st.container(key=f"version-{row.name}-{row.version}", gap="small"):
        with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
            st.markdown(tr("**Version {version}**", version=row.version), width="content")
            for alias in row.aliases:
                st.badge(safe(alias), icon=":material/bookmark:", color="primary")
            said, colour, icon = _STATES[row.state]
            st.badge(tr(said), icon=icon, color=colour)  # type: ignore[arg-type]
            st.space("stretch")
            st.caption(ago(row.created), width="content")
        with st.grid("auto", min_column_width=150, gap="small") as grid:
            for name, (figure, help) in _figures(row).items():
                grid.metric(tr(name), safe(figure), help=help)
        _doings(row)
        _card_text(row)
        with st.expander(tr("Origin"), icon=":material/account_tree:", on_change="rerun") as fold:
            if fold.open:
                lineage.draw(row, list_adapters(row.name))
        if row.evaluations:
            with st.expander(tr("Evaluations"), icon=":material/rule:", expanded=True):
                evaluation.of_version(row.evaluations)


def _card_text(row: AdapterRow) -> None:
    """What people wrote about it, and a field to change that; MLflow's own page shows it too."""
    key = f"{row.name}-{row.version}"
    with st.expander(tr("Model card"), icon=":material/description:", expanded=bool(row.note)):
        if row.note:
            st.markdown(safe_lines(row.note))
        with st.popover(tr("Edit"), icon=":material/edit:", type="tertiary"):
            text = st.text_area(
                tr("Intended use and limitations"),
                row.note,
                key=f"note-{key}-{hash(row.note)}",
                height=180,
                max_chars=5000,
            )
            if st.button(tr("Save"), key=f"save-{key}", type="primary", **writes.locked()):
                _said(
                    lambda: writes.set_card(row.name, row.version, str(text or "")), tr("The card is saved.")
                )


def _train_on(row: AdapterRow) -> None:
    """Put the version into the form as what training goes on from."""
    made = draft.current()
    wanted = {
        "model_name_or_path": place(row.base),
        "adapter_name_or_path": [str(row.folder)],
        "finetuning_type": row.method,
    }
    for knob, given in wanted.items():
        made = made.with_value(knob, given)
    draft.start_over(made)
    state.go("new_run")


def bring() -> None:
    """A field to take in an adapter that was trained elsewhere."""
    with st.popover(
        tr("Import"), icon=":material/input:", help=tr("Register an adapter that was trained elsewhere.")
    ):
        folder = st.text_input(
            tr("Folder"),
            key="import-folder",
            placeholder="/path/to/adapter",
            help=IMPORTED["adapter_name_or_path"].tooltip,
        )
        base = st.text_input(
            tr("Base model"),
            key="import-base",
            placeholder=tr("the one it names"),
            help=IMPORTED["model_name_or_path"].tooltip,
        )
        name = st.text_input(
            tr("Name"),
            key="import-name",
            placeholder=tr("the folder's name"),
            help=IMPORTED["adapter_name"].tooltip,
        )
        given = {"adapter_name_or_path": folder, "model_name_or_path": base, "adapter_name": name}
        config = ImportConfig(**{knob: text for knob, text in given.items() if text})
        problems = of_import(config) if folder else []
        for problem in problems:
            st.markdown(f":orange[:material/error: {safe(problem.sentence)}]")
        st.button(
            tr("Import"), type="primary", key="import-go", on_click=_take_in, args=(config,),
            **writes.locked(disabled=not folder or bool(problems)),
        )  # fmt: skip


def _take_in(config: ImportConfig) -> None:
    try:
        run = writes.submit(config)
    except writes.FAILED as error:
        st.toast(safe(error), icon=":material/error:")
        return
    state.go("runs", run=run.id)


def _figures(row: AdapterRow) -> dict[str, tuple[str, str | None]]:
    """What a version is, each with more behind it where that is too long for its place."""
    layers = sorted({target.rsplit(".", 1)[-1] for target in row.targets})
    voted = scoreboard.of_version(row)
    return {
        "Method": (" ".join(filter(None, (row.stage, row.method))) or NONE, None),
        "Rank": (row.rank or NONE, None),
        "Layers": _folded(layers, "kind"),
        "Size": (size(row.size), None),
        "Data": _folded(row.datasets, "set"),
        **({"Arena": voted} if voted else {}),
    }


def _folded(names: Sequence[str], noun: str) -> tuple[str, str | None]:
    if len(names) < 2:
        return listed(names), None
    return count(len(names), noun), safe(", ".join(names))


def _doings(row: AdapterRow) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if row.base:
            ways.ask(place(row.base), _id(row), row.stage, f"chat-{row.name}-{row.version}", type="tertiary")
        if row.run_id and _there(row.run_id):
            st.page_link(
                "pages/runs.py",
                label=tr("Open run"),
                icon=":material/monitoring:",
                query_params={"run": row.run_id},
            )
        ways.evaluate(_id(row), row.stage)
        st.button(
            tr("Continue training"),
            icon=":material/school:",
            type="tertiary",
            key=f"on-{row.name}-{row.version}",
            help=tr("Opens New run with this adapter as the starting point."),
            on_click=_train_on,
            args=(row,),
            disabled=row.folder is None or not row.base,
        )
        with st.popover(tr("Use it"), icon=":material/code:", type="tertiary", width="content"):
            _code(row)
        export = st.popover(
            tr("Export"),
            icon=":material/ios_share:",
            type="tertiary",
            key=f"export-of-{row.name}-{row.version}",
            on_change="rerun",
        )
        if export.open:  # what it says is looked up: files, room, llama.cpp's tools
            with export:
                exporting.offer(row)
        with st.popover(tr("Aliases"), icon=":material/bookmark:", type="tertiary"):
            _aliases(row)
        with st.popover(tr("Files"), icon=":material/folder:", type="tertiary"):
            st.caption(tr("The folder that PEFT loads."))
            st.code(str(row.folder or tr("on the tracking server")), language=None, wrap_lines=True)
            st.caption(tr("sha256 of the weights."))
            st.code(row.sha256 or NONE, language=None, wrap_lines=True)
        if st.button(
            tr("Verify checksum"),
            icon=":material/fact_check:",
            type="tertiary",
            key=f"check-{row.name}-{row.version}",
            help=tr("Compares the sha256 of the files with the registered one."),
        ):
            said, _, icon = _STATES[adapters.check(row)]
            st.toast(tr("{said}: {files} read.", said=said, files=count(len(row.files), "file")), icon=icon)


def _code(row: AdapterRow) -> None:
    """The lines that load it, ready to copy, in any folder."""
    st.caption(tr("Python, from any folder, in the environment of the studio."))
    if code := usage.with_mlflow(row):
        st.markdown(tr("**With MLflow**; an alias such as `@champion` may replace the version"))
        st.code(code, language="python", wrap_lines=True)
    if code := usage.with_peft(row):
        st.markdown(tr("**With Transformers and PEFT**"))
        st.code(code, language="python", wrap_lines=True)


def _there(run_id: str) -> bool:
    try:
        return Run(run_id).exists
    except ValueError:
        return False


def _aliases(row: AdapterRow) -> None:
    key = f"{row.name}-{row.version}"
    st.caption(tr("An alias points to one version. Setting it here removes it from the other version."))
    choice = st.selectbox(
        tr("Alias"),
        SUGGESTED,
        index=None,
        accept_new_options=True,
        key=f"alias-{key}",
        placeholder="champion",
        **writes.locked(),
    )
    if st.button(tr("Set"), key=f"set-{key}", type="primary", **writes.locked(disabled=not choice)):
        _said(
            lambda: writes.set_alias(row.name, row.version, str(choice)),
            tr("{choice} is version {version} now.", choice=choice, version=row.version),
        )
    for turn in row.turns[:8]:
        told = {"when": date(turn.at), "alias": safe(turn.alias)}
        st.caption(
            tr("{when}: became {alias}", **told) if turn.got else tr("{when}: was no longer {alias}", **told)
        )
    for alias in row.aliases:
        if st.button(
            tr("Remove alias {alias}", alias=safe(alias)),
            key=f"drop-{key}-{alias}",
            type="tertiary",
            icon=":material/close:",
            **writes.locked(),
        ):
            gone = tr("Removed alias {alias}.", alias=alias)
            _said(lambda alias=alias: writes.delete_alias(row.name, alias), gone)  # type: ignore[misc]


def _said(act: Callable[[], None], word: str) -> None:
    try:
        act()
    except writes.FAILED as error:
        st.toast(safe(error), icon=":material/error:")
        return
    st.toast(safe(word), icon=":material/bookmark:")
    st.rerun()
