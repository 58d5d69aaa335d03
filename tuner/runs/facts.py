"""What a run ran on: versions, commit and machine, found without importing any of it."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from contextlib import suppress

from tuner import hardware, paths
from tuner.text.lookup import ENGLISH, speaking

LIBRARIES = ("tuner", "torch", "transformers", "peft", "trl", "datasets", "accelerate", "mlflow")


def facts() -> dict[str, str]:
    """Tags of a run: `version/<library>`, the commit of the folder it was launched in, the hardware."""
    with speaking(ENGLISH):  # a record keeps it
        machine = hardware.describe()
    found = {
        "version/python": platform.python_version(),
        "hardware": machine,
        "host": platform.node(),
    }
    for library in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[f"version/{library}"] = importlib.metadata.version(library)
    commit = git_commit()
    if commit:
        found["mlflow.source.git.commit"] = commit
    return found | {"mlflow.source.type": "LOCAL"}


def git_commit() -> str:
    """The commit of the folder the run was launched in, else of the studio's own code; empty where neither has one."""
    for folder in (paths.home(), paths.package()):
        with suppress(OSError, subprocess.SubprocessError):
            words = ["git", "-C", str(folder), "rev-parse", "HEAD"]
            done = subprocess.run(words, capture_output=True, text=True, timeout=5)
            if done.returncode == 0:
                return done.stdout.strip()
    return ""
