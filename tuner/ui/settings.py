"""What the Settings page is made of."""

from __future__ import annotations

import os
import shlex
import time

import streamlit as st

from tuner import hardware, paths
from tuner.config.knobs import ConfigError
from tuner.config.settings import Settings
from tuner.config.settings import path as file
from tuner.config.settings import settings as of_file
from tuner.jobs import diagnostics as bundles
from tuner.jobs import room
from tuner.runs.run import Run
from tuner.text.lookup import tr
from tuner.tracking import store
from tuner.tracking.runs import are_there
from tuner.tracking.store import TrackerError
from tuner.ui import browser, theme, writes
from tuner.ui.words import NONE, count, number, safe, size

MOST = 15
"""Runs in the table of those that take most room."""


def machine() -> None:
    """Processor, memory, GPUs, disk, and the versions of the libraries."""
    st.subheader(tr("Hardware"), anchor=False)
    usage = hardware.usage(paths.home())
    rows = {
        tr("Machine"): hardware.describe(),
        tr("Memory"): tr(
            "{used} of {total} in use", used=size(usage.memory_used), total=size(usage.memory_total)
        ),
        tr("Disk"): tr("{free} free", free=size(usage.disk_free)),
        "bfloat16": tr("yes") if hardware.bf16() else tr("no: leave --bf16 off"),
        tr("Studio"): str(paths.home()),
    }
    rows |= {f"GPU {gpu.index}": f"{size(gpu.memory_used)} / {size(gpu.memory_total)}" for gpu in usage.gpus}
    theme.frame([{"What": name, "Value": value} for name, value in rows.items()], hide_index=True)
    theme.frame(
        [{"Library": n, "Version": v or NONE} for n, v in _versions().items()],
        hide_index=True,
        height="content",
    )


@st.cache_resource(show_spinner=False)
def _versions() -> dict[str, str]:
    return bundles.versions()


def tracker() -> None:
    """Where MLflow keeps the runs, whether it answers, and the way to its own pages."""
    st.subheader("MLflow", anchor=False)
    st.code(store.shown_uri(), language=None, wrap_lines=True)
    began = time.monotonic()
    try:
        are_there(1)
    except TrackerError as error:
        st.markdown(f":red[:material/error: {safe(error)}]")
        return
    took = number(1000 * (time.monotonic() - began))
    st.markdown(f":green[:material/check_circle: {tr('MLflow answers in {took} ms.', took=took)}]")
    if store.database():
        st.caption(tr("Start MLflow's own pages in a shell:"))
        st.code(
            f"mlflow ui --backend-store-uri {shlex.quote(store.shown_uri())}",
            language="bash",
            wrap_lines=True,
        )
    else:
        st.link_button(tr("Open MLflow"), store.shown_uri(), icon=":material/open_in_new:")


def network() -> None:
    """The switch that lets nothing be asked of a hub."""
    st.subheader(tr("Network"), anchor=False)
    chosen = _settings()
    by_hand = os.environ.get("HF_HUB_OFFLINE") == "1" and not (chosen and chosen.offline)
    st.toggle(
        tr("Offline"),
        value=by_hand or bool(chosen and chosen.offline),
        key="offline",
        on_change=_switch,
        **writes.locked(
            help=tr("Models and data sets are taken from this machine only, by pages and by new runs."),
            disabled=by_hand or chosen is None,
        ),
    )
    if by_hand:
        st.caption(tr("HF_HUB_OFFLINE is set where the studio was started."))


def _settings() -> Settings | None:
    try:
        return of_file()
    except ConfigError as error:
        st.warning(safe(error), icon=":material/error:")
        return None


def _switch() -> None:
    try:
        writes.set_offline(bool(st.session_state["offline"]))
    except writes.FAILED as error:
        st.toast(safe(error), icon=":material/error:")


def notifications() -> None:
    """What tells that a run ended: this browser, and an address of the owner's choice."""
    st.subheader(tr("Notifications"), anchor=False)
    browser.allow()
    chosen = _settings()
    if chosen is None or not chosen.webhook:
        st.caption(tr("A webhook is told as well if {file} has one, for example:", file=safe(file())))
        st.code("webhook: https://chat.example/hook", language="yaml")
        return
    st.caption(tr("The webhook in settings.yaml is told when a run ends or its loss diverges."))
    st.button(tr("Send a test"), icon=":material/send:", on_click=_test, **writes.locked())


def _test() -> None:
    try:
        taken = writes.test_webhook()
    except writes.FAILED as error:
        st.toast(safe(error), icon=":material/error:")
        return
    st.toast(tr("The webhook took it.") if taken else tr("The webhook did not take it."))


def runs_by_size() -> None:
    """The runs that take most room."""
    taken = _room()
    rows = sorted(taken.items(), key=lambda one: -one[1].total)[:MOST]
    if rows:
        st.markdown(f"**{tr('Largest runs')}**")
        theme.frame(
            [
                {
                    "Run": Run(run_id).name,
                    "Checkpoints": size(one.checkpoints),
                    "Output": size(one.output),
                    "Logs": size(one.logs),
                    "Total": size(one.total),
                }
                for run_id, one in rows
            ],
            hide_index=True,
        )


@st.cache_data(ttl=20, show_spinner=False)
def _room() -> dict[str, room.RunRoom]:
    return room.of_runs()


def diagnostics() -> None:
    """The zip to send along with a question."""
    st.subheader(tr("Diagnostics"), anchor=False)
    st.caption(
        tr(
            "Versions, machine, settings, the supervisor's log, and configs and logs of the last {runs} that failed. No data and no secrets.",
            runs=count(bundles.FAILED, "run"),
        )
    )
    st.download_button(
        tr("Download"),
        bundles.bundle,
        "tuner-diagnostics.zip",
        "application/zip",
        icon=":material/download:",
        on_click="ignore",
        **writes.locked(),
    )
