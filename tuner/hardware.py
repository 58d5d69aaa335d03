"""What this machine has, found without torch: a page or a flag check must not wait for it."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from tuner.text.lookup import tr

GIB = 1024**3


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA device. Memory in bytes; `capability` is (major, minor)."""

    index: int
    name: str
    memory_total: int
    memory_used: int
    capability: tuple[int, int]
    utilisation: int | None = None

    @property
    def bf16(self) -> bool:
        """Ampere (8.0) and later compute in bfloat16."""
        return self.capability >= (8, 0)


@dataclass(frozen=True)
class Usage:
    """A moment's load. Percent and bytes."""

    cpu_percent: float
    memory_used: int
    memory_total: int
    disk_free: int
    gpus: tuple[Gpu, ...]


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """NVML where there is a driver, None otherwise."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001  no library, no driver, no permission: all mean "no GPU to be seen"
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def gpus() -> tuple[Gpu, ...]:
    """The GPUs this process may use, in CUDA_VISIBLE_DEVICES' terms; empty where there are none."""
    with _nvml() as nvml:
        if nvml is None:
            return ()
        found = []
        for index in range(nvml.nvmlDeviceGetCount()):
            device = nvml.nvmlDeviceGetHandleByIndex(index)
            memory = nvml.nvmlDeviceGetMemoryInfo(device)
            name = nvml.nvmlDeviceGetName(device)
            load: int | None = None
            with contextlib.suppress(nvml.NVMLError):
                load = int(nvml.nvmlDeviceGetUtilizationRates(device).gpu)
            found.append(
                Gpu(
                    index=index,
                    name=name.decode() if isinstance(name, bytes) else str(name),
                    memory_total=int(memory.total),
                    memory_used=int(memory.used),
                    capability=tuple(nvml.nvmlDeviceGetCudaComputeCapability(device)),
                    utilisation=load,
                )
            )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(found)
    wanted = {int(v) for v in visible.split(",") if v.strip().isdigit()}
    return tuple(g for g in found if g.index in wanted)


def own_gpus(count: int = 1) -> str:
    """CUDA_VISIBLE_DEVICES for a process that nobody gave GPUs to: the first `count` that it could see, if there are any.

    Needed where the driver's library does not say what there is: torch may see more all the same.
    """
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    words = map(str, range(count)) if seen is None else [word.strip() for word in seen.split(",")][:count]
    return ",".join(words)


def usage(where: Path) -> Usage:
    """The load of this machine now; `where` names the disk."""
    memory = psutil.virtual_memory()
    return Usage(
        cpu_percent=psutil.cpu_percent(),
        memory_used=int(memory.total - memory.available),
        memory_total=int(memory.total),
        disk_free=shutil.disk_usage(_existing(where)).free,
        gpus=gpus(),
    )


def whole_memory(use_cpu: bool = False) -> int:
    """Bytes that the device of a run has in all, used ones too."""
    if cards := () if use_cpu else gpus():
        return max(g.memory_total for g in cards)
    return int(psutil.virtual_memory().total)


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


@cache
def cpu_flags() -> frozenset[str]:
    """The processor's feature flags as Linux names them; empty where it does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def cpu_bf16() -> bool:
    """Whether the CPU has bfloat16 of its own, and is faster in it. torch computes it on any other CPU as well: a
    matrix product takes 2.5 to 3 times as long as in float32 with AVX-512 alone, 4.5 times with AVX2."""
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    return apple or bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"})


def bf16(use_cpu: bool = False) -> bool:
    """Whether bfloat16 is worth it for a run here: no GPU before Ampere has it, and a CPU without it is slow in it."""
    found = () if use_cpu else gpus()
    return all(g.bf16 for g in found) if found else cpu_bf16()


def describe() -> str:
    """The machine in one line, as a run's tag."""
    cards = ", ".join(f"{g.name} {g.memory_total / GIB:.0f} GiB" for g in gpus())
    memory = psutil.virtual_memory().total / GIB
    return tr(
        "{cards}; {cpu_count} CPU cores, {memory:.0f} GiB memory",
        cards=cards or tr("no GPU"),
        cpu_count=os.cpu_count(),
        memory=memory,
    )


def boot_id() -> str:
    """A word that changes at each boot: a pid means nothing across one."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return str(int(psutil.boot_time()))
