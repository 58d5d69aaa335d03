"""Rows dealt to the processes of a run, so that all of them together learn what one process would.

A batch of the whole run is what one process with as many times the batch would take, cut into one piece a rank. At the
end of an epoch pieces are shorter or empty; accelerate would fill them up with rows from the beginning, which then count
twice. Here each rank's mean loss is weighed by the rows it is the mean of, and one without rows computes along with
weight 0, because the others wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate.data_loader import DataLoaderShard, SeedableRandomSampler
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, Sampler
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import seed_worker

from tuner.engine import group

SHARE = "share_of_batch"
"""In a batch: what this rank's mean counts for among the means of all, 1 where all have as many rows, 0 without any."""
Row = Mapping[str, Any]
Place = tuple[int, float]


class DealtBatches(Sampler[list[Place]]):
    """The places of this rank's rows in each batch of the whole run, with its share in it.

    The attributes are those by which accelerate knows a sampler that is cut among processes.
    """

    def __init__(self, sampler: Sampler[int], size: int, drop_last: bool):
        self.sampler, self.batch_size, self.drop_last = sampler, size, drop_last
        self.num_processes, self.rank = group.size(), group.rank()
        self.whole = BatchSampler(sampler, size * self.num_processes, drop_last)

    def __iter__(self) -> Iterator[list[Place]]:
        for batch in self.whole:
            mine, share = dealt(batch, self.rank, self.num_processes, self.batch_size)
            yield [(place, share) for place in mine]

    def __len__(self) -> int:
        return len(self.whole)


def dealt(batch: Sequence[Any], rank: int, ranks: int, size: int) -> tuple[Sequence[Any], float]:
    """A rank's piece of a batch and its share; a spare row with share 0 where there is none left for it."""
    mine = batch[rank * size : (rank + 1) * size]
    return mine or batch[:1], len(mine) * ranks / len(batch)


class DealtRows(Dataset[dict[str, Any]]):
    """Rows by their places, each with its rank's share."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = rows

    def __getitem__(self, place: Place) -> dict[str, Any]:
        return {**self.rows[place[0]], SHARE: place[1]}

    def __len__(self) -> int:
        return len(self.rows)


class DealtStream(IterableDataset[list[dict[str, Any]]]):
    """This rank's piece of each batch of a stream, which every rank reads."""

    def __init__(self, rows: Any, size: int):
        self.rows, self.size = rows, size

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        whole: list[Row] = []
        for row in self.rows:
            whole.append(row)
            if len(whole) == self.size * group.size():
                yield self._mine(whole)
                whole = []
        if whole:
            yield self._mine(whole)

    def _mine(self, whole: Sequence[Row]) -> list[dict[str, Any]]:
        rows, share = dealt(whole, group.rank(), group.size(), self.size)
        return [{**row, SHARE: share} for row in rows]


def collated(rows: Sequence[dict[str, Any]], collate: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """A batch with its share; where that is 0, nothing in it is to be learned."""
    share = rows[0][SHARE]
    batch = collate([{name: value for name, value in row.items() if name != SHARE} for row in rows])
    if not share and "labels" in batch:
        batch["labels"] = torch.full_like(batch["labels"], -100)
    return {**batch, SHARE: share}


class DealingTrainer(Trainer):
    """A Trainer whose rows are dealt so; what its own losses and metrics need to know of it."""

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable[[Any], Any] | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader[Any]:
        if group.size() == 1:
            made: DataLoader[Any] = super()._get_dataloader(
                dataset, description, batch_size, sampler_fn, is_training, dataloader_key
            )
            return made
        args = self.args
        more: dict[str, Any] = {
            "collate_fn": partial(collated, collate=self.data_collator),
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory,
            "persistent_workers": args.dataloader_persistent_workers,
            "multiprocessing_context": args.dataloader_multiprocessing_context,
            "prefetch_factor": args.dataloader_prefetch_factor,
            "in_order": args.dataloader_in_order,
            "worker_init_fn": partial(
                seed_worker, num_workers=args.dataloader_num_workers, rank=group.rank()
            ),
        }
        if isinstance(dataset, IterableDataset):
            return DataLoaderShard(
                DealtStream(dataset, batch_size), self.args.device, batch_size=None, **more
            )
        sampler = sampler_fn(dataset) if is_training and sampler_fn else None
        batches = DealtBatches(_in_step(sampler, dataset, args), batch_size, args.dataloader_drop_last)
        return DataLoaderShard(DealtRows(dataset), self.args.device, batch_sampler=batches, **more)

    def share_of(self, inputs: dict[str, Any]) -> float:
        """Take the share out of a batch: what to multiply its mean loss with. In an evaluation only whether it counts,
        for there each batch is one of the whole run's."""
        share = float(inputs.pop(SHARE, 1.0))
        return share if self.model.training else float(share > 0)

    def of_all(self, values: Tensor, share: float) -> Tensor:
        """Values of a batch, one a row, with those of the other ranks where they learn one batch together."""
        if not self.model.training:
            return values
        return group.all_rows(values.detach() if share else values.detach()[:0])

    @contextmanager
    def gathering(self, share: float) -> Iterator[None]:
        """Let what TRL gathers in this block be rows of different numbers, and of those none that only kept company. At an
        epoch's end `gather_for_metrics` would also cut off what it takes for repeated rows."""
        accelerator = self.accelerator
        before = accelerator.gather, accelerator.gather_for_metrics

        def of_all(values: Tensor, *_: Any, **__: Any) -> Tensor:
            return group.all_rows(torch.atleast_1d(values)[: None if share else 0])

        if group.size() > 1:
            accelerator.gather = accelerator.gather_for_metrics = of_all
        try:
            yield
        finally:
            accelerator.gather, accelerator.gather_for_metrics = before

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        if not inputs.get(SHARE, 1.0):  # all count together, and this one has nothing to count
            inputs = {name: torch.zeros_like(v) if isinstance(v, Tensor) else v for name, v in inputs.items()}
            if "attention_mask" not in inputs and "input_ids" in inputs:
                inputs["attention_mask"] = torch.zeros_like(inputs["input_ids"])
        super()._track_num_input_tokens(inputs)


def _in_step(sampler: Any, dataset: Any, args: Any) -> Any:
    """A sampler that gives every rank the same order: of chance, the one that accelerate gives a single process."""
    if sampler is None:
        return torch.utils.data.SequentialSampler(dataset)
    if isinstance(sampler, RandomSampler):
        return SeedableRandomSampler(dataset, data_seed=args.data_seed)
    if isinstance(sampler, LengthGroupedSampler):
        sampler.generator = torch.Generator().manual_seed(args.seed)
    return sampler
