"""Several processes at one step: each computes its share of the rows, and the shares' gradients are added up.

All processes see the whole step, so that each knows its share without asking. A loss is a sum over rows whose weights
were made for the whole step; so sums over processes, and not means, are those of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate.data_loader import prepare_data_loader
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from tuner.engine.packed.units import Unit, deal


@dataclass(frozen=True)
class Ranks:
    """Which of `count` processes this one is, and where they exchange numbers. One alone asks nobody."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @classmethod
    def here(cls) -> Ranks:
        """The processes of torch's default group, or this one alone where there is none."""
        if not (dist.is_available() and dist.is_initialized()):
            return ALONE
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        return cls(dist.get_rank(), dist.get_world_size(), device)

    def share(self, units: Sequence[Unit], keep_groups: bool) -> list[Unit]:
        """This process's units, of about as many tokens as any other's; none where there are too few."""
        return deal(units, self.count, keep_groups)[self.rank]

    def add(self, *tensors: Tensor) -> None:
        """Each becomes its sum over all processes, the same to the last bit on all of them."""
        for tensor in tensors if self.count > 1 else ():
            dist.all_reduce(tensor)

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Each becomes the first process's."""
        for tensor in tensors if self.count > 1 else ():
            dist.broadcast(tensor, src=0)

    def of_first(self, value: dict[bytes, float]) -> dict[bytes, float]:
        """What the first process read, on all: a file may change between two readings."""
        held = [value]
        if self.count > 1:
            dist.broadcast_object_list(held, src=0, device=torch.device(self.device))
        return held[0]

    def add_values(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The sum of an array over all processes."""
        if self.count == 1:
            return values
        found = torch.from_numpy(values).to(self.device)
        self.add(found)
        summed: NDArray[np.float32] = found.cpu().numpy()
        return summed


ALONE = Ranks()


def every_batch(accelerator: Any) -> Callable[..., Any]:
    """What takes the place of `accelerator.prepare_data_loader`: each process gets every batch, in the same order."""

    def prepared(loader: DataLoader[Any], **_: Any) -> Any:
        return prepare_data_loader(
            loader,
            accelerator.device,
            num_processes=1,
            process_index=0,
            use_seedable_sampler=True,
            data_seed=accelerator.dataloader_config.data_seed,
        )

    return prepared
