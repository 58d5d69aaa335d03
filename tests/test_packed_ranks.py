"""Several processes at one packed step: what one process computes, whatever the lengths, and with nothing left for one."""

import os
import socket
from pathlib import Path

import forks
import numpy as np
import pytest
import torch
from test_packed import arguments
from test_packed_scores import build as scorer
from test_packed_scores import rows_of_pairs
from tiny_packed import build, labelled_rows, pair_rows, pairs, token_rows, whole

from tuner.engine.losses import LossSettings
from tuner.engine.packed.objective import PreferenceObjective, RewardObjective, TokenObjective
from tuner.engine.packed.trainer import EngineSettings, PackedTrainer
from tuner.engine.packed.units import deal, units_of_step


def marked(device: torch.device) -> PreferenceObjective:
    return PreferenceObjective(LossSettings(pref_loss="kto"), device)


# model, rows, objective: of 11 rows the last step has 3, which leaves one of two processes less or nothing
CASES = {
    "sft": (build, lambda: token_rows(11), lambda device: TokenObjective()),
    "full": (whole, lambda: token_rows(11), lambda device: TokenObjective()),
    "dpo": (build, lambda: pair_rows(11), pairs),
    "kto": (build, lambda: labelled_rows(11), marked),
    "rm": (lambda: scorer("qwen2"), lambda: (rows_of_pairs() * 2)[:11], lambda device: RewardObjective(0)),
}


def trained(name: str, folder: Path, accumulation: int) -> dict[str, np.ndarray]:
    """What a run of three steps logs and leaves: losses, norms, metrics, of held-out rows too, and the weights."""
    model, rows, objective = CASES[name]
    torch.manual_seed(0)
    order = {"train_sampling_strategy": "sequential"} if name == "kto" else {}
    # plain descent: Adam divides by a gradient's own size, and makes noise of those that are none
    args = arguments(
        folder,
        num_train_epochs=1,
        save_strategy="no",
        optim="sgd",
        eval_strategy="epoch",
        per_device_eval_batch_size=4,
        **order,
    )
    args.gradient_accumulation_steps = accumulation
    trainer = PackedTrainer(
        model(), args, rows(), rows()[:7], objective=objective,
        engine=EngineSettings(reference_cache=folder / "references", token_budget=200),
    )  # fmt: skip
    trainer.train()
    timed = ("runtime", "per_second", "total_flos", "epoch", "train_loss", "preparation_time")
    found = {
        f"{i} {key}": np.array(value)
        for i, logs in enumerate(trainer.state.log_history)
        for key, value in logs.items()
        if not any(word in key for word in timed)
    }
    seen = {"tokens seen": np.array(trainer.state.num_input_tokens_seen)}
    weights = {n: p.detach().numpy() for n, p in trainer.model.named_parameters() if p.requires_grad}
    return found | seen | weights


def one_of_two(rank: int, port: int, folder: Path, names: list[str]) -> None:
    """A process of its own: these cases, what it found kept in a file."""
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({key: str(value) for key, value in place.items()})
    torch.set_num_threads(1)
    for name in names:
        np.savez(folder / f"{name}-{rank}.npz", **trained(name, folder / name, accumulation=1))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory, request: pytest.FixtureRequest) -> Path:
    """What two processes left of the cases that are asked for here."""
    here = [item for item in request.session.items if item.path == request.path]
    asked = {item.callspec.params["name"] for item in here if hasattr(item, "callspec")}
    names = [name for name in CASES if name in asked | {"dpo"}]
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [(one_of_two, (rank, port, folder, names)) for rank in (0, 1)]
    assert forks.done(*both, log=folder / "said") == [0, 0], (folder / "said" / "0.log").read_text()[-3000:]
    return folder


QUICK = ("sft", "dpo")
"""Tokens and pairs; the others share their way through the processes and are tested with `make test-slow`."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES]
)
def test_two_processes_train_as_one_does(two: Path, tmp_path: Path, name: str) -> None:
    alone = trained(name, tmp_path, accumulation=2)
    ranks = [dict(np.load(two / f"{name}-{rank}.npz")) for rank in (0, 1)]
    assert ranks[0].keys() == ranks[1].keys() == alone.keys() and len(alone) > 10
    for key, value in alone.items():
        assert np.array_equal(ranks[0][key], ranks[1][key]), key
        assert ranks[0][key] == pytest.approx(value, rel=1e-6, abs=1e-6), key


def test_the_first_process_alone_keeps_the_references(two: Path) -> None:
    (file,) = (two / "dpo" / "references").iterdir()
    with np.load(file) as kept:
        assert len(kept["values"]) == 2 * 11 - 1  # one pair has the same answer twice


def test_shares_are_even_and_groups_stay_whole() -> None:
    units = units_of_step(pair_rows(24), micro_batch=2)
    for count in (1, 2, 3, 5):
        shares = deal(units, count, keep_groups=False)
        loads = [sum(u.tokens for u in share) for share in shares]
        assert sorted(map(id, units)) == sorted(id(u) for share in shares for u in share)
        assert max(loads) - min(loads) <= max(u.tokens for u in units)
        groups = [{u.group for u in share} for share in deal(units, count, keep_groups=True)]
        assert sum(map(len, groups)) == 12
    assert [len(share) for share in deal(units[:1], 3, keep_groups=False)] == [1, 0, 0]
