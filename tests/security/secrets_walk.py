"""A person's way through the studio with secrets of every kind; what of them is left anywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

from .canaries import ROOT, Canaries, Shell

RUN = ("model_name_or_path=models/tiny", "dataset=chat", "max_steps=2")
LEAKY = {"TUNER_WORKER_MODULE": "tests.security.leaky_worker"}


def refused_lines(canaries: Canaries) -> list[tuple[str, ...]]:
    """Command lines for `tuner train` that are refused, each with a secret in it."""
    return [
        (f"model_name_or_path=https://me:{canaries['URI: model']}@hub.test/model", "dataset=chat"),
        (f"https://me:{canaries['URI: file']}@files.test/run.yaml",),
        (*RUN, "--wandb_api_key", canaries["flag: unknown key"]),
        (*RUN, "--swanlab_api_key", canaries["flag: refused key"]),
        (*RUN, f"run_name=my {canaries['name: token']}"),
        (*RUN, f'accelerator_config={{"hub_token": "{canaries["JSON: token"]}"}}'),
    ]


class Walk:
    """Each method is one part of the way; `leaked` says what it left."""

    def __init__(self, home: Path):
        self.home, self.canaries = home, Canaries()
        self.shell = Shell(home, self.canaries)
        own = f"ms_hub_token: '{self.canaries['YAML: ms_hub_token']}'\nstage: sft\ndo_train: true\n"
        (home / "mine.yaml").write_text(own, encoding="utf-8")

    def failing_run(self) -> str:
        """Train in the foreground with a worker that says all it knows and fails with it; the run's id."""
        secret = ("--hub_token", self.canaries["flag: hub_token"])
        also = f"--hf_hub_token={self.canaries['flag: hf_hub_token']}"
        done = self.shell.tuner("train", "mine.yaml", *RUN, *secret, also, **LEAKY)
        assert done.returncode == 1, done.stderr.decode()[-2000:]
        return done.stdout.decode().split()[1]

    def resumed_and_deleted(self, run_id: str) -> None:
        """Go on with it, with another token; fail once more, and delete it."""
        again = ("--hub_token", self.canaries["resume: hub_token"])
        assert self.shell.tuner("resume", run_id, *again, **LEAKY).returncode == 0
        assert self.shell.tuner("wait", run_id, "--timeout", "60").returncode == 1
        self.python("from tuner.tracking.runs import delete_run", f"delete_run({run_id!r})")

    def away_tracker(self) -> str:
        """A run while the tracking server, whose URI has a password, is away; what the terminal said."""
        uri = f"http://me:{self.canaries['URI: tracking password']}@127.0.0.1:1"
        started = len(self.shell.said)
        self.shell.tuner("train", "mine.yaml", *RUN, **LEAKY, MLFLOW_TRACKING_URI=uri)
        self.shell.tuner("runs", MLFLOW_TRACKING_URI=uri)
        self.shell.tuner("sync", "--new", MLFLOW_TRACKING_URI=uri)
        return self.shell.said[started:].decode()

    def refusals(self) -> list[int]:
        """What is refused before anything begins; the exit codes."""
        return [self.shell.tuner("train", *line).returncode for line in refused_lines(self.canaries)]

    def trained_to_the_end(self) -> None:
        """A run that really trains and registers its adapter."""
        secret = ("--hub_token", self.canaries["flag: hub_token"])
        done = self.shell.tuner("train", "mine.yaml", *RUN, *secret, "output_dir=saves/one", "save_steps=1")
        assert done.returncode == 0, done.stderr.decode()[-3000:]

    def pages(self, run_id: str) -> None:
        """What the dashboard's own functions write: a note, a draft, a saved config, an uploaded file, the command."""
        c = self.canaries
        note, draft, token = (
            c["note: key"],
            f"http://me:{quote(c['draft: password'])}@h",
            c["flag: hub_token"],
        )
        self.python(
            "from tuner import process; process.begin()",
            "from tuner.ui import draft, state",
            "from tuner.tracking.runs import set_note, set_tag, rename_run",
            "from tuner.config.config import make",
            "from tuner.config.writing import command, to_yaml",
            "refused = 0",
            f"for change in (lambda: set_note({run_id!r}, {note!r}), lambda: set_tag({run_id!r}, 't', {note!r}),"
            f" lambda: rename_run({run_id!r}, {note!r})):",
            "    try: change()",
            "    except ValueError as error: refused += 1; print(error)",
            "assert refused == 3, refused",
            f"values = {{'hub_token': {token!r}, 'output_dir': {draft!r}, 'stage': 'sft'}}",
            "draft.keep(draft.Draft(base=values, changes=values, name=values['output_dir']))",
            "draft.from_text(to_yaml(values).encode(), 'mine.yaml')",
            f"config = make({{'model_name_or_path': 'm', 'dataset': 'd', 'hub_token': {token!r}}})",
            "state.save_config('mine', config.changed())",
            "print(command(config))",
        )

    def python(self, *lines: str) -> None:
        """Lines of Python in this studio, as its pages run them."""
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)],
            cwd=ROOT,
            env=self.shell.environment,
            umask=0,
            capture_output=True,
            timeout=120,
        )
        self.shell.said += done.stdout + done.stderr
        assert done.returncode == 0, done.stderr.decode()[-2000:]
