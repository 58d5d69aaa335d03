"""What a worker measures: written to metrics.jsonl at once, sent to MLflow by another thread (mirror.py)."""

from __future__ import annotations

import json
import os
import posixpath
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import psutil

from tuner import hardware
from tuner.runs.run import Run

# What waits in memory while the disk is full; later rows are dropped, training goes on.
MOST_WAITING = 16 * 1024**2


class MetricsLog:
    """Appends to a run's metrics.jsonl. Any thread may log; a full or slow disk never raises into training.

    A line is handed to the system at once, so it outlives a kill of this process; the mirror syncs it to disk.
    """

    def __init__(self, run: Run):
        self._lock = threading.Lock()
        self._waiting = bytearray()
        self._file = os.open(run.metrics_path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        if not _ends_a_line(self._file):
            self._waiting += b"\n"

    def log(self, step: int, values: Mapping[str, float], at: float | None = None) -> None:
        """One row: the values measured at `step`, at `at` seconds since the epoch (now, if not given).

        The steps of one metric only rise; after a resume a step logged before is shown with its new value.
        """
        numbers = {metric_name(n): float(v) for n, v in values.items() if _is_number(v)}
        if not numbers:
            return
        row = {"step": int(step), "time": round(at or time.time(), 3), **numbers}
        with self._lock:
            if len(self._waiting) < MOST_WAITING:
                self._waiting += (json.dumps(row) + "\n").encode()
            self._write()

    def close(self) -> None:
        """Write what still waits and let go of the file."""
        with self._lock:
            self._write()
            with suppress(OSError):
                os.fsync(self._file)
            os.close(self._file)

    def _write(self) -> None:
        # A disk that fills takes part of a line: the rest goes first when there is room again.
        with suppress(OSError):
            while self._waiting:
                written = os.write(self._file, self._waiting)
                del self._waiting[:written]


class SilentLog(MetricsLog):
    """The log of a process that is not the first of its run: it keeps nothing."""

    def __init__(self) -> None:
        pass

    def log(self, step: int, values: Mapping[str, float], at: float | None = None) -> None:
        pass

    def close(self) -> None:
        pass


def _is_number(value: object) -> bool:
    # numpy's and torch's scalars convert too; a bool or a word is no measure.
    if isinstance(value, bool | str | bytes) or value is None:
        return False
    with suppress(TypeError, ValueError):
        float(value)  # type: ignore[arg-type]
        return True
    return False


def _ends_a_line(file: int) -> bool:
    size = os.fstat(file).st_size
    return size == 0 or os.pread(file, 1, size - 1) == b"\n"


class SystemMetrics:
    """A thread that samples CPU, memory and GPUs into the metrics log, under the names MLflow's own page knows.

    The step is whole seconds since the first sample of the run, so that a resumed run goes on to the right.
    """

    def __init__(
        self, run: Run, log: MetricsLog, every: float = 5.0, others: Callable[[], Mapping[int, int]] = dict
    ):
        """`others` tells the run's other processes, pids by their ranks."""
        self._log, self._every, self._others = log, every, others
        # Counted by a clock that nobody sets: a step back would drop an hour of points.
        self._before, self._since = _sampled_until(run), time.monotonic()
        self._end = threading.Event()
        self._process = psutil.Process()
        psutil.cpu_percent()  # the first reading is always 0
        self._process.cpu_percent()
        self._thread = threading.Thread(target=self._work, name="system-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        self._thread.join(timeout=5)

    def _work(self) -> None:
        while not self._end.wait(self._every):
            with suppress(psutil.Error, OSError):
                step = self._before + int(time.monotonic() - self._since)
                self._log.log(step, self.sample())

    def sample(self) -> dict[str, float]:
        """Percent, and MiB as MLflow counts them."""
        memory = psutil.virtual_memory()
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": (memory.total - memory.available) / 2**20,
            "system_memory_usage_percentage": memory.percent,
            "process_memory_usage_megabytes": self._process.memory_info().rss / 2**20,
        }
        for rank, pid in self._others().items():
            with suppress(psutil.Error):
                found[f"rank_{rank}_memory_usage_megabytes"] = psutil.Process(pid).memory_info().rss / 2**20
        for gpu in hardware.gpus():
            found[f"gpu_{gpu.index}_memory_usage_megabytes"] = gpu.memory_used / 2**20
            if gpu.utilisation is not None:
                found[f"gpu_{gpu.index}_utilization_percentage"] = float(gpu.utilisation)
        return {f"system/{name}": value for name, value in found.items()}


def _sampled_until(run: Run) -> int:
    """The step a run's samples go on from: seconds since the first one, and beyond the last one in any case."""
    samples: list[tuple[int, float]] = []
    with suppress(OSError), run.metrics_path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if '"system/' in line:
                with suppress(ValueError):
                    row = json.loads(line)
                    samples = [*samples[:1], (int(row["step"]), float(row["time"]))]
    if not samples:
        return 0
    first, last = samples[0], samples[-1]
    return max(last[0] + 1, first[0] + int(time.time() - first[1]))


def metric_name(name: str) -> str:
    """The name as MLflow takes it, at most 250 characters: what is forbidden there becomes an underscore."""
    allowed = re.sub(r"[^\w/.\- :]", "_", name.strip())[:250]
    norm = posixpath.normpath(allowed).lstrip("/").replace("../", "").strip(".")
    return norm or "unnamed"
