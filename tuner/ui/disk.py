"""What takes room, and how to make some: a choice, a preview of exactly what would go, and then the word for it."""

from __future__ import annotations

import streamlit as st

from tuner.jobs import cleaning, room
from tuner.jobs.cleaning import Plan
from tuner.runs import files
from tuner.text.lookup import mark, tr
from tuner.tracking.store import TrackerError
from tuner.ui import theme, writes
from tuner.ui.words import count, safe, size

CHOICES: dict[str, tuple[frozenset[str] | None, bool]] = {
    mark("Checkpoints of ended runs except the best and the last"): (frozenset(cleaning.KEEPS), False),
    mark("All checkpoints of ended runs"): (frozenset(), False),
    mark("Caches (computed again when needed)"): (None, True),
}
"""What can be removed: the checkpoints that are kept, and whether caches go."""
_GONE = "disk-gone"


def panel() -> None:
    """Bytes by what they are, and the way to remove some of them."""
    if said := st.session_state.pop(_GONE, ""):
        st.success(said, icon=":material/check:")
    kinds = _kinds()
    with st.grid("auto", min_column_width=150, gap="small") as grid:
        grid.metric(tr("Total"), size(sum(kinds.values())), help=tr("Files in the studio's folders."))
        grid.metric(tr("Free"), size(files.free()))
        for what, taken in kinds.items():
            if taken:
                grid.metric(tr(what).capitalize(), size(taken))
    st.caption(tr("A run's own figure is in the list below. Registered adapters are never removed here."))
    choice = st.radio(tr("Free up space"), CHOICES, index=None, format_func=tr, key="disk-choice")
    if choice:
        _preview(*CHOICES[choice])


@st.cache_data(ttl=20, show_spinner=False)
def _kinds() -> dict[str, int]:
    return room.of_studio(room.of_runs())


def _preview(keep: frozenset[str] | None, caches: bool) -> None:
    try:
        plan = cleaning.plan(keep, caches)
    except TrackerError as error:
        st.warning(tr("Nothing can be removed now. {error}", error=safe(error)), icon=":material/cloud_off:")
        return
    if plan.items:
        theme.frame(
            [
                {
                    "Name": item.path.name,
                    "What": tr(item.what),
                    "Run": item.name,
                    "Size": size(item.size),
                    "Note": item.warning,
                    "Path": str(item.path),
                }
                for item in plan.items
            ],
            hide_index=True,
            column_config={"Note": {"width": "large"}, "Path": {"width": "large"}},
        )
    else:
        st.caption(tr("Nothing to remove."))
    if plan.stays:
        with st.expander(
            tr("{things} that would stay", things=count(len(plan.stays), "thing")), type="compact"
        ):
            st.text("\n".join(plan.stays))
    if warned := sum(bool(item.warning) for item in plan.items):
        st.warning(
            tr(
                "{iss} a run's best or last one; see the notes.",
                iss=count(warned, "of them is", "of them are"),
            ),
            icon=":material/warning:",
        )
    if plan.items:
        with st.popover(tr("Remove these, {size}", size=size(plan.size)), icon=":material/delete_forever:"):
            st.markdown(tr("This cannot be undone."))
            st.button(
                tr("Yes, remove {things}", things=count(len(plan.items), "thing")),
                icon=":material/delete_forever:",
                on_click=_clean,
                args=(plan,),
                key="disk-yes",
                **writes.locked(),
            )


def _clean(plan: Plan) -> None:
    try:
        gone = writes.clean(plan)
    except writes.FAILED as error:
        st.toast(safe(error), icon=":material/error:")
        return
    _kinds.clear()
    stays = f" {safe(' '.join(gone.stays))}" if gone.stays else ""
    st.session_state[_GONE] = tr(
        "{things} removed, {size}.{stays}",
        things=count(len(gone.items), "thing"),
        size=size(gone.size),
        stays=stays,
    )
