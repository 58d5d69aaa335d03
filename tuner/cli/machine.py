"""`tuner webui` serves the dashboard, `tuner doctor` says what this machine has."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata

from tuner import __version__, hardware, paths
from tuner.cli.words import OK, parser, refuse
from tuner.config import libraries
from tuner.config.settings import settings
from tuner.text.lookup import mark, tr


def webui(words: list[str]) -> int:
    """Serve the dashboard, on this machine only unless people log in."""
    # A process of its own name and memory; an argument list, no shell.
    os.execv(sys.executable, [sys.executable, "-m", "tuner.ui.server", *words])  # noqa: S606


def doctor(words: list[str]) -> int:
    """Say what this machine has and what is missing."""
    parser(doctor).parse_args(words)
    load = hardware.usage(paths.home())
    print(tr("tuner     {version} in {home}", version=__version__, home=paths.home()))
    print(
        tr(
            "machine   {describe}; {disk_free:.0f} GiB disk free",
            describe=hardware.describe(),
            disk_free=load.disk_free / hardware.GIB,
        )
    )
    print(tr("runs      {where_runs_live}", where_runs_live=_where_runs_live()))
    print(
        tr(
            "Python    {python_version} on {system} {machine}",
            python_version=platform.python_version(),
            system=platform.system(),
            machine=platform.machine(),
        )
    )
    print(f"bfloat16  {tr('yes') if hardware.bf16() else tr('no: leave --bf16 off')}")
    found = libraries.versions()
    for package, version in found.items():
        print(f"{package:<13} {version}" if version else tr("{package:<13} missing", package=package))
    missing = [package for package, version in found.items() if not version]
    for package, use in EXTRAS.items():
        try:
            print(f"{package:<13} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            print(tr("{package:<13} not installed ({use})", package=package, use=tr(use)))
    if not hardware.gpus():
        print(tr("No GPU is visible: runs go on the CPU, one at a time."))
    return (
        refuse([tr("{missing} missing; install tuner again.", missing=", ".join(missing))]) if missing else OK
    )


def _where_runs_live() -> str:
    """The executor, as settings.yaml names it. Raises ConfigError."""
    known = settings()
    return (
        tr("on the nodes of the Ray cluster at {ray_address}", ray_address=known.ray_address)
        if known.elsewhere
        else tr("on this machine")
    )


EXTRAS = {
    "Authlib": mark("a login for more than one person: pip install 'tuner[auth]'"),
    "bitsandbytes": mark("4 and 8 bit QLoRA: pip install 'tuner[qlora]'"),
    "deepspeed": mark("ZeRO over several GPUs: pip install deepspeed"),
    "ray": mark("runs on many machines: pip install 'tuner[ray]'"),
    "liger-kernel": mark("fused kernels on a GPU: pip install liger-kernel"),
}
