"""`tuner webui` serves the dashboard, `tuner doctor` says what this machine has."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata

from tuner import __version__, hardware, paths
from tuner.cli.words import OK, parser, refuse
from tuner.config.settings import settings


def webui(words: list[str]) -> int:
    """Serve the dashboard, on this machine only unless people log in."""
    # A process of its own name and memory; an argument list, no shell.
    os.execv(sys.executable, [sys.executable, "-m", "tuner.ui.server", *words])  # noqa: S606


def doctor(words: list[str]) -> int:
    """Say what this machine has and what is missing."""
    parser(doctor).parse_args(words)
    load = hardware.usage(paths.home())
    print(f"tuner     {__version__} in {paths.home()}")
    print(f"machine   {hardware.describe()}; {load.disk_free / hardware.GIB:.0f} GiB disk free")
    print(f"runs      {_where_runs_live()}")
    print(f"Python    {platform.python_version()} on {platform.system()} {platform.machine()}")
    print(f"bfloat16  {'yes' if hardware.bf16() else 'no: leave --bf16 off'}")
    missing = []
    for package in (
        "torch",
        "transformers",
        "peft",
        "trl",
        "datasets",
        "accelerate",
        "mlflow",
        "streamlit",
        "plotly",
    ):
        try:
            print(f"{package:<13} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            missing.append(package)
            print(f"{package:<13} missing")
    for package, use in EXTRAS.items():
        try:
            print(f"{package:<13} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            print(f"{package:<13} not installed ({use})")
    if not hardware.gpus():
        print("No GPU is visible: runs go on the CPU, one at a time.")
    return refuse([f"{', '.join(missing)} missing; install tuner again."]) if missing else OK


def _where_runs_live() -> str:
    """The executor, as settings.yaml names it. Raises ConfigError."""
    known = settings()
    return f"on the nodes of the Ray cluster at {known.ray_address}" if known.elsewhere else "on this machine"


EXTRAS = {
    "Authlib": "a login for more than one person: pip install 'tuner[auth]'",
    "bitsandbytes": "4 and 8 bit QLoRA: pip install 'tuner[qlora]'",
    "deepspeed": "ZeRO over several GPUs: pip install deepspeed",
    "ray": "runs on many machines: pip install 'tuner[ray]'",
    "liger-kernel": "fused kernels on a GPU: pip install liger-kernel",
}
