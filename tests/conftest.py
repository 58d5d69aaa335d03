"""What every test may ask for. Heavy things are made once a session."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import hypothesis
import psutil
import pytest

# Before anything imports them: two spinning threads on two shared cores are many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Nothing here is compiled, and bitsandbytes' `@torch.compile` imports the compiler into every process that has peft.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
# Where the machine says otherwise, each of the hundred processes started here would compile the whole tree again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
sys.path.insert(0, str(Path(__file__).parent))

import forks  # noqa: E402
import mirroring  # noqa: E402
from examples import examples  # noqa: E402

# Machines are shared: no test is timed.
hypothesis.settings.register_profile("studio", deadline=None, max_examples=examples(100))
hypothesis.settings.load_profile("studio")

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


LONG = ("browser", "test_jobs.py", "test_ranks.py", "test_tracking.py", "test_usage.py", "test_worker.py")
"""What takes longest: begun first, or one of two processes is alone with it in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(
        key=lambda item: next((turn for turn, name in enumerate(LONG) if name in item.path.parts), len(LONG))
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    """With every library that the tests import, and before any test has done something to this process."""
    if not session.config.option.collectonly and session.items:
        copy = forks.begin()
        session.config.add_cleanup(lambda: forks.end(copy))


@pytest.fixture(scope="module", autouse=True)
def _libraries_are_no_garbage() -> None:
    """Every training collects garbage; looking through the millions of objects of the libraries takes longer than it."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A studio of its own for one test."""
    monkeypatch.setenv("TUNER_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture
def launching_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A studio that starts supervisors and workers; none of them is left afterwards."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.setenv("TUNER_SUPERVISOR_IDLE", "1")
    yield home
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("TUNER_HOME") == str(home):
                process.kill()


@pytest.fixture(scope="module")
def libraries_looked_through_once() -> Iterator[None]:
    """Every AppTest has a server of its own, and each looks through all installed libraries for components."""
    from streamlit.components.v2 import manifest_scanner

    with pytest.MonkeyPatch.context() as patch:
        looked = cache(manifest_scanner.scan_component_manifests)
        patch.setattr(manifest_scanner, "scan_component_manifests", looked)
        yield


@pytest.fixture(scope="module")
def mirror_here() -> Iterator[None]:
    """What tells MLflow of a run that lives in this process does so here too, where MLflow is imported already.

    The words that the two exchange are the same; that it is a process of its own is in test_mirror_process.py.
    """
    with pytest.MonkeyPatch.context() as patch:
        mirroring.here(patch)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and fixtures that the project does not ship; tests that want them are skipped without."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared with real data is not here")
    return SHARED
