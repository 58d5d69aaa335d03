"""CUDA graphs over rows: a step is launched once instead of a thousand times.

A row's shape runs eagerly the first time it is seen, is captured the second time and replayed from then on,
so that shapes that come once cost no capture. All graphs share one memory pool, for they never run at the
same time; the least recently used are dropped beyond `limit`. Whatever cannot be captured runs eagerly.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tuner.engine.packed.device_row import Beside, DeviceRow
from tuner.engine.packed.rows import Row, RowShape

logger = logging.getLogger(__name__)
Body = Callable[[DeviceRow], tuple[Tensor, ...]]


@dataclass
class Captured:
    graph: torch.cuda.CUDAGraph
    row: DeviceRow
    outputs: tuple[Tensor, ...]


class RowGraphs:
    """Runs `body` over rows, eagerly or by replay. The outputs of a replay are overwritten by the next
    one."""

    def __init__(
        self,
        body: Body,
        device: torch.device,
        enabled: bool,
        limit: int = 96,
        beside: Beside | None = None,
    ) -> None:
        self.body, self.device, self.enabled, self.limit, self.beside = body, device, enabled, limit, beside
        self.captured: OrderedDict[RowShape, Captured] = OrderedDict()
        self.pool: Any = None  # torch's handle of the memory that the graphs share
        self.stream = torch.cuda.Stream() if enabled else None  # one for all: memory is reused per stream
        self.seen: set[RowShape] = set()

    def __call__(self, row: Row) -> tuple[Tensor, ...]:
        if not self.enabled or row.shape not in self.seen:
            self.seen.add(row.shape)
            return self.body(DeviceRow(row, self.device, beside=self.beside))
        entry = self.captured.get(row.shape) or self._capture(row)
        if entry is None:
            return self.body(DeviceRow(row, self.device, beside=self.beside))
        self.captured.move_to_end(row.shape)
        entry.row.load(row)
        entry.graph.replay()
        return entry.outputs

    def clear(self) -> None:
        """Forget all graphs and give their memory back."""
        self.captured.clear()
        self.pool = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _capture(self, row: Row) -> Captured | None:
        static = DeviceRow(row, self.device, beside=self.beside)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        if not self.captured:
            torch.cuda.empty_cache()  # what eager steps held goes back before the graphs' pool grows
        try:
            with torch.cuda.stream(self.stream):
                graph.capture_begin(self.pool, capture_error_mode="thread_local")
                try:
                    outputs = self.body(static)
                finally:
                    graph.capture_end()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            logger.warning("CUDA graphs are off for this run, it goes on without them: %s", error)
            self.enabled = False
            return None
        if self.pool is None:
            self.pool = graph.pool()
            logger.warning("Packed engine: steps of a length met before are replayed from CUDA graphs.")
        entry = self.captured[row.shape] = Captured(graph, static, outputs)
        if len(self.captured) > self.limit:
            self.captured.popitem(last=False)
        return entry
