"""Start the dashboard: `python -m tuner.ui.server --port 8501`."""

from __future__ import annotations

import argparse
import ipaddress
import os
import stat
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tuner import hosts, paths, process, samples
from tuner.config import settings
from tuner.config.knobs import ConfigError
from tuner.jobs.supervisor import ensure_supervisor
from tuner.runs.reasons import refused_by_system
from tuner.text.lookup import of_environment, speak_everywhere, tr
from tuner.tracking.outcome import forget_old_secrets
from tuner.ui import login, people
from tuner.ui.redraws import Redraws

PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; worker-src 'self' blob:;"
    " connect-src 'self' ws://{host} wss://{host} data: blob:; frame-src 'self' blob: data:; object-src 'none';"
    " base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
"""What a page may load: Streamlit's own files, and nothing of another host, whatever a data set or a name makes of it."""


def main() -> None:
    """Serve app.py until it is interrupted: on this machine only, unless people have to log in."""
    process.begin()
    speak_everywhere(of_environment())
    parser = argparse.ArgumentParser(
        prog="tuner webui",
        description=tr("Serve the dashboard: on this machine only, unless people have to log in."),
    )
    parser.add_argument("--port", type=int, default=8501, help=tr("the port to listen on (default 8501)"))
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help=tr("the address to listen on (default 127.0.0.1); any but this machine's own needs a login"),
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME[:PORT]",
        help=tr(
            "a further name that browsers may reach it by, behind a proxy or a tunnel; may be given several times"
        ),
    )
    given = parser.parse_args()
    settings.go_offline()
    os.environ.setdefault("TUNER_HOME", str(paths.home()))
    try:
        allowed = hosts.configured(given.allow_host) + guarded(given.host)
    except (ValueError, ConfigError) as error:
        parser.error(str(error))
    lay_out()
    root = paths.shipped()
    os.chdir(root)  # Streamlit reads .streamlit/config.toml from the folder it starts in
    with suppress(OSError):  # what a reboot left in the queue goes on, browser or not
        ensure_supervisor(only_if_needed=True)
        forget_old_secrets()
    serve(root / "app.py", given.port, allowed, given.host)


def lay_out() -> None:
    """Make a new studio's folders and samples; one that cannot be written to is still there to be looked at."""
    try:
        paths.mlruns().mkdir(parents=True, exist_ok=True)
        samples.lay_out()
    except OSError as error:
        print(
            tr(
                "tuner cannot lay out the samples: {refused_by_system}",
                refused_by_system=refused_by_system(error),
            ),
            file=sys.stderr,
        )


def guarded(host: str) -> tuple[hosts.Authority, ...]:
    """The name that people who log in reach the studio by, which their proxy keeps; none where nobody logs in.

    Raises ValueError where this address may not be listened on, or a login that is set up cannot work; ConfigError for
    a login section with faults.
    """
    configured = people.login()
    if configured is None:
        if not loopback(host):
            raise ValueError(
                tr(
                    "{host} can be reached from other machines, and whoever reaches the studio may train, read and delete"
                    " as you; set up a login first ({manual}), or leave --host out and use ssh -L.",
                    host=host,
                    manual=people.manual(),
                )
            )
        return ()
    if not login.authlib_there():
        raise ValueError(tr(login.LACKING).format(people.file()))
    if people.file().stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        print(
            tr("{file} can be read by others, and it holds secrets: chmod 600 it.", file=people.file()),
            file=sys.stderr,
        )
    return (configured.address,)


def loopback(host: str) -> bool:
    """Whether an address is one that only this machine reaches."""
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def serve(script: Path, port: int, allowed: Sequence[hosts.Authority], host: str = "127.0.0.1") -> None:
    """Serve a Streamlit script, guarded, until it is interrupted."""
    from starlette.middleware import Middleware
    from streamlit.runtime.pages_manager import PagesManager
    from streamlit.starlette import App

    # A folder called pages/ makes Streamlit guess, until app.py has run once, that a deep link names a script in it.
    PagesManager.uses_pages_directory = False
    ignore_pages_left_behind()
    redraw_in_turn()
    let_callbacks_finish()
    guard = Middleware(hosts.HostGuard, allowed=allowed, page_policy=PAGE_POLICY)
    sys.argv = [str(script)]  # as `streamlit run` has it
    print(
        tr("tuner is at http://{host}:{port}", host=f"[{host}]" if ":" in host else host, port=port),
        flush=True,
    )
    flags = {"server.address": host, "server.port": port, "server.headless": True}
    flags["secrets.files"] = [str(people.file())]  # the file that was checked, and no other
    if configured := people.login():  # or Streamlit asks a server of the Internet what this machine is called
        flags["browser.serverAddress"] = configured.address.name
    App(script, middleware=[guard]).run(config=flags)


def ignore_pages_left_behind() -> None:
    """Let no piece be redrawn for a page that is not shown any more.

    Pieces redraw themselves by the browser's clock, and a browser that has not yet heard of the next page still asks
    for those of the last one. Streamlit would take the session back to that page, and the browser would wipe out the
    new one, with nothing to draw in its place.
    """
    from streamlit.runtime.scriptrunner.script_runner import ScriptRunner
    from streamlit.runtime.scriptrunner_utils.script_requests import RerunData

    run_script = ScriptRunner._run_script

    def run(self: ScriptRunner, rerun_data: RerunData) -> None:
        here = self._pages_manager.current_page_script_hash
        if not rerun_data.fragment_id_queue or rerun_data.page_script_hash in ("", here):
            run_script(self, rerun_data)

    ScriptRunner._run_script = run  # type: ignore[method-assign]


def redraw_in_turn() -> None:
    """Let pieces be redrawn by the browser's clock in their turn only; see redraws. One that is not stays as it is."""
    from streamlit.proto.ClientState_pb2 import ClientState
    from streamlit.runtime.app_session import AppSession
    from streamlit.runtime.scriptrunner.script_runner import ScriptRunner
    from streamlit.runtime.scriptrunner_utils.script_requests import RerunData

    request, run_script, turns = AppSession.request_rerun, ScriptRunner._run_script, Redraws()

    def asked(self: AppSession, state: ClientState | None) -> None:
        if state is None or not state.is_auto_rerun or turns.due(self.id, state.fragment_id):
            request(self, state)

    def run(self: ScriptRunner, rerun_data: RerunData) -> None:
        began = time.thread_time()
        try:
            run_script(self, rerun_data)
        finally:
            if rerun_data.is_auto_rerun:
                turns.took(time.thread_time() - began)

    AppSession.request_rerun = asked  # type: ignore[method-assign, assignment]
    ScriptRunner._run_script = run  # type: ignore[method-assign]


def let_callbacks_finish() -> None:
    """Let nothing interrupt what a click or a typed value sets off.

    Where the next event is already waiting, Streamlit leaves a callback at its first look at the session's state, and
    never comes back to it: the field shows a value that nobody has heard of.
    """
    from streamlit.runtime.scriptrunner.script_runner import ScriptRunner
    from streamlit.runtime.scriptrunner_utils.script_run_context import RunLocation, ThreadState

    give_way = ScriptRunner._maybe_handle_execution_control_request

    def called_back() -> bool:
        try:
            return ThreadState.get().run_location is RunLocation.CALLBACK
        except RuntimeError:  # a thread that runs no script has no place in one
            return False

    def unless_called_back(self: ScriptRunner) -> None:
        if not called_back():  # asked with every element that is drawn
            give_way(self)

    ScriptRunner._maybe_handle_execution_control_request = unless_called_back  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
