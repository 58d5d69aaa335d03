"""Start the dashboard: `python -m tuner.ui.serve --port 8501`."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress

from tuner import paths
from tuner.jobs.supervisor import ensure_supervisor


def main() -> None:
    """Serve app.py on this machine only, until it is interrupted."""
    parser = argparse.ArgumentParser(
        prog="tuner webui", description="Serve the dashboard on this machine only."
    )
    parser.add_argument("--port", type=int, default=8501, help="the port to listen on (default 8501)")
    port = parser.parse_args().port
    os.environ.setdefault("TUNER_HOME", str(paths.home()))
    root = paths.package().parent
    os.chdir(root)  # Streamlit reads .streamlit/config.toml from the folder it starts in
    with suppress(OSError):  # what a reboot left in the queue goes on, browser or not
        ensure_supervisor(only_if_needed=True)
    from streamlit.runtime.pages_manager import PagesManager
    from streamlit.web import cli

    # A folder called pages/ makes Streamlit guess, until app.py has run once, that a deep link names a script in it.
    PagesManager.uses_pages_directory = False
    flags = ["--server.address", "127.0.0.1", "--server.port", str(port), "--server.headless", "true"]
    sys.argv = ["streamlit", "run", str(root / "app.py"), *flags]
    print(f"tuner is at http://127.0.0.1:{port}", flush=True)
    sys.exit(cli.main())


if __name__ == "__main__":
    main()
