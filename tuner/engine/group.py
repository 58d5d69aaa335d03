"""The processes of a run together: how they meet, agree and wait. Each is a no-op in a run of one process."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tuner.config.knobs import ConfigError, Problem
from tuner.jobs.live import Asked
from tuner.text.lookup import tr

WISHES: tuple[Asked | None, ...] = (None, "stop", "cancel")


@contextmanager
def joined(processes: int, on_gpu: bool, timeout: float, listener: socket.socket | None) -> Iterator[None]:
    """Be one of a run's processes in this block, by torch's standard environment; `listener` is the first one's socket.

    `timeout` is how long they wait for each other, in seconds. Raises ConfigError where there are too few GPUs.
    """
    if processes == 1:
        yield
        return
    if on_gpu and (seen := torch.cuda.device_count()) < processes:
        said = tr(
            "--nproc_per_node {processes} needs as many GPUs, and this run sees {seen}.",
            processes=processes,
            seen=seen,
        )
        raise ConfigError([Problem("nproc_per_node", said)])
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    wait = timedelta(seconds=timeout)
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        processes,
        listener is not None,
        wait,
        wait_for_workers=False,
        master_listen_fd=listener.detach() if listener is not None else None,
    )
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",  # what is agreed on never waits for a GPU
        store=store,
        rank=int(os.environ["RANK"]),
        world_size=processes,
        timeout=wait,
    )
    yield
    leave()  # not after an error: the others may be gone


def leave() -> None:
    """Part, all at once; what follows is for the first one alone. The others end here: taking apart what still holds
    connections waits for the first one, which has let go of them."""
    if size() == 1:
        return
    last = rank() > 0
    wait()
    dist.destroy_process_group()
    if last:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def size() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is."""
    return dist.get_rank() if dist.is_initialized() else 0


def agreed(asked: Asked | None) -> Asked | None:
    """What any of the processes was asked, the same answer for all: they end at the same step or wait for ever."""
    if size() == 1:
        return asked
    wish = torch.tensor(WISHES.index(asked))
    dist.all_reduce(wish, dist.ReduceOp.MAX)
    return WISHES[int(wish)]


def own_part(count: int) -> slice:
    """This process's of so many things in a row: as many as any other's, give or take one."""
    return slice(count * rank() // size(), count * (rank() + 1) // size())


def wait() -> None:
    """Until all processes are here."""
    agreed(None)


def gathered(thing: Any) -> list[Any]:
    """A small object of each process, in the order of their ranks."""
    if size() == 1:
        return [thing]
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, thing)
    return found


def all_rows(rows: Tensor) -> Tensor:
    """The rows of all processes, one behind the other; each may have another number of them."""
    if size() == 1:
        return rows
    counts = gathered(len(rows))
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded.contiguous())
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
