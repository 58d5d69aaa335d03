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
# Where the machine says otherwise, each of the hundred processes started here would compile the whole tree again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
sys.path.insert(0, str(Path(__file__).parent))

hypothesis.settings.register_profile("studio", deadline=None)  # machines are shared: no test is timed
hypothesis.settings.load_profile("studio")

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


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


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and fixtures that the project does not ship; tests that want them are skipped without."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared with real data is not here")
    return SHARED
