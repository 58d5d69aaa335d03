"""A run in several processes: it learns what one process would, and is one run whatever happens to any of them."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import forks
import psutil
import pytest
import tiny
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from tests import ranks_worker
from tuner import cli, hardware
from tuner.cli import launchers
from tuner.config.config import Config, check, make
from tuner.config.knobs import ConfigError
from tuner.config.writing import to_yaml
from tuner.data.rows import Rows
from tuner.engine import dealing
from tuner.engine.live import LiveRun
from tuner.jobs import control, launch, planning, queue, ranks, slots, submit, supervisor
from tuner.jobs.executors.local import Local
from tuner.runs import checkpoints, reasons
from tuner.runs.metrics import MetricsLog, SystemMetrics
from tuner.runs.run import Run, all_runs
from tuner.runs.status import ENDED
from tuner.ui.chart_table import charts_of

SETS = {"pt": "text", "sft": "chat", "rm": "pairs", "dpo": "pairs", "kto": "labelled"}
REWARDED: dict[str, dict[str, Any]] = {
    "grpo": {"beta": 0.1, "num_iterations": 2},
    "rloo": {},
    "ppo": {"ppo_epochs": 2, "temperature": 1.0},
}
"""Stages that learn from answers of their own, each with what makes it ask for more than one score a token."""
STAGES = tuple(SETS)
"""Those that several processes can run."""
CLOCKS = ("tokens_per_second", "time", "runtime", "per_second", "time/rollout", "time/learning")


@pytest.fixture
def studio(launching_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    tiny.model(launching_home / "model")
    tiny.data(launching_home / "data", rows=13)
    yield launching_home


def config_of(stage: str, processes: int, **changes: Any) -> Config:
    """10 rows to learn from in steps of 8: in the last batch of an epoch the second of two processes has none."""
    values = {
        "model_name_or_path": "model",
        "stage": stage,
        "do_train": True,
        "dataset": SETS.get(stage, "chat"),
        "dataset_dir": "data",
        "val_size": 3,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4 // processes,
        "per_device_eval_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "do_eval": True,
        "cutoff_len": 16 if stage == "pt" else 48,
        "learning_rate": 3e-4,  # Adam makes steps of this size of gradients that are rounding errors
        "logging_steps": 1,
        "save_steps": 3,
        "use_cpu": True,
        "engine": "trl",
    }
    if processes > 1:
        values["nproc_per_node"] = processes
    return make(values | changes)


def rewarded(stage: str, processes: int) -> Config:
    """8 answers to 4 prompts a step, of which each process writes and learns its share."""
    more = {"num_generations": 2, "reward_funcs": [{"contains": {"text": "e"}}], "max_new_tokens": 5}
    more |= {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4 // processes,
        "engine": "auto",
    }
    if stage == "rloo":  # to one prompt a step, so that a process has nothing to write
        more["num_generations"] = 8
    if stage == "ppo":
        del more["num_generations"]
    return config_of(stage, processes, **more | REWARDED[stage])


def answers_of(run: Run) -> list[tuple[Any, ...]]:
    """The step, prompt, text, reward and advantage of each answer that it wrote."""
    lines = map(json.loads, (run.folder / "rollouts.jsonl").read_text().splitlines())
    return [
        (line["step"], line["prompt"], one["text"], one["reward"], one["advantage"])
        for line in lines
        for one in line["answers"]
    ]


def by_one(config: Config, name: str) -> Run:
    """A run of one process, trained here."""
    run = Run(name)
    run.create(config, name)
    run.update(state="finished")
    module = importlib.import_module(f"tuner.stages.{config.stage}")
    module.train(config, LiveRun(run, config))
    return run


def measured(run: Run) -> list[dict[str, float]]:
    """What it logged, without clocks."""
    rows, _ = run.metrics()
    return [
        {n: v for n, v in row.items() if not n.endswith(CLOCKS)}
        for row in rows
        if "system/cpu" not in str(row)
    ]


def weights(run: Run) -> dict[str, Any]:
    """The adapter or the model that it left."""
    (file,) = checkpoints.output_of(run, run.config()).glob("*model.safetensors")
    found: dict[str, Any] = load_file(file)
    return found


def assert_alike(one: Run, two: Run) -> None:
    assert len(measured(one)) == len(measured(two)) >= 3
    assert_rows_alike(measured(one), measured(two))
    assert_weights_alike(one, two)


def assert_rows_alike(before: list[dict[str, float]], after: list[dict[str, float]]) -> None:
    """Losses to 1e-6; sums of many numbers, as norms and log-probabilities are, to a few roundings."""
    for was, got in zip(before, after, strict=True):
        losses = {n: v for n, v in got.items() if n.endswith("loss")}
        assert losses == pytest.approx({n: was[n] for n in losses}, rel=0, abs=1e-6)
        assert got == pytest.approx(was, rel=1e-6, abs=4e-6)


def assert_weights_alike(one: Run, two: Run) -> None:
    learned, expected = weights(two), weights(one)
    assert set(learned) == set(expected)
    for name, value in expected.items():
        assert abs(learned[name] - value).max() < 1e-6, name


def by_two(configs: dict[str, Config], launched: bool = True) -> dict[str, Run]:
    """Runs of two processes, one after the other in the same two (needs TUNER_WORKER_MODULE=tests.ranks_worker).

    Launched by the supervisor, or begun here as copies of a process that has the libraries.
    """
    runs = {}
    for name, config in configs.items():
        runs[name] = inner = Run(f"two-{name}")
        inner.create(config, inner.id)
        inner.update(state="finished")  # nobody is to look after it
        ranks.folder(inner).mkdir()
    outer = submit.create(next(iter(configs.values())), " ".join(inner.id for inner in runs.values()))
    if launched:
        submit.launch(outer)
    else:
        planning.keep(outer)
        forks.started((ranks_worker.forked, (outer.id,)), log=outer.folder / "said")
    return runs | {"": outer}


def ended_well(run: Run) -> None:
    status = control.wait(run, timeout=600)
    assert status.state == "finished", (status.reason, run.log_tail(4000))
    assert (ranks.folder(run) / "1.log").read_text().strip() == ""


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_learn_what_one_does(
    studio: Path, monkeypatch: pytest.MonkeyPatch, every: bool
) -> None:
    """Every stage's losses, metrics, evaluations and adapter, with both engines; here those that differ most."""
    by_trl = STAGES if every else ("sft", "kto")
    by_rows = STAGES if every else ("dpo",)
    learning = tuple(REWARDED) if every else ("grpo",)
    monkeypatch.setenv("TUNER_WORKER_MODULE", "tests.ranks_worker")
    at_three = {"resume_from_checkpoint": "mlruns/runs/two-sft/checkpoints/checkpoint-3"}
    again = {"again": config_of("sft", 2, **at_three)}
    packed = {f"{stage}-packed": config_of(stage, 2, engine="auto") for stage in by_rows}
    own = {stage: rewarded(stage, 2) for stage in learning}
    twos = by_two({stage: config_of(stage, 2) for stage in by_trl} | packed | again | own, launched=every)
    ones = {stage: by_one(config_of(stage, 1), f"one-{stage}") for stage in by_trl}
    for (
        stage
    ) in by_rows:  # packed rows keep the batch of a process together, so one process takes it as often
        alone = config_of(
            stage, 1, engine="auto", per_device_train_batch_size=2, gradient_accumulation_steps=4
        )
        ones[f"{stage}-packed"] = by_one(alone, f"one-{stage}-packed")
    ones |= {stage: by_one(rewarded(stage, 1), f"one-{stage}") for stage in learning}
    ended_well(twos[""])
    for stage in learning:
        one, two = answers_of(ones[stage]), answers_of(twos[stage])
        assert [a[:4] for a in two] == [a[:4] for a in one] and len(one) >= 16
        assert [a[4] for a in two] == pytest.approx([a[4] for a in one], abs=3e-6)
    for resumed in (twos["again"], by_one(config_of("sft", 1, **at_three), "again-by-one")):
        assert_rows_alike(measured(ones["sft"])[-2:], measured(resumed)[-2:])
        assert_weights_alike(ones["sft"], resumed)
    assert "another number of processes (2)" in " ".join(Run("again-by-one").status().notes)
    for name, one in ones.items():
        assert_alike(one, twos[name])
        assert ("packed" in name or name in ("grpo", "rloo")) == any(
            "Engine: packed rows" in said for said in twos[name].status().notes
        )
        kept = {p.name for p in checkpoints.of(twos[name])[-1].iterdir()}
        assert {"rng_state_0.pth", "rng_state_1.pth"} <= kept
    assert json.loads((twos[""].folder / "plan.json").read_text())["plan"]["devices"] == 2


@pytest.mark.slow
def test_what_else_a_run_can_be_is_the_same_in_two_processes(
    studio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams, packs, whole models, recomputed layers, held-out questions, answers written in the end."""
    monkeypatch.setenv("TUNER_WORKER_MODULE", "tests.ranks_worker")
    stream = {"streaming": True, "buffer_size": 8, "max_steps": 6, "val_size": 0.0, "do_eval": False}
    twists: dict[str, tuple[str, dict[str, Any]]] = {
        "streamed": ("sft", stream),
        "streamed-pairs": ("rm", stream),
        "packs": ("sft", {"packing": True, "cutoff_len": 64}),
        "recomputed": ("dpo", {"finetuning_type": "full", "gradient_checkpointing": True}),
        "bco": ("dpo", {"pref_bco_weight": 0.5}),
        "trls-own": ("dpo", {"pref_loss": "discopop", "do_eval": False, "val_size": 0.0}),
        "asked": ("sft", {"probe": "chat", "probe_samples": 4, "probe_new_tokens": 4}),
        "predicted": ("sft", {"do_predict": True, "max_new_tokens": 4, "do_sample": False}),
    }
    twos = by_two(
        {name: config_of(stage, 2, **more) for name, (stage, more) in twists.items() if name != "predicted"}
    )
    ones = {
        name: by_one(config_of(stage, 1, **more), f"one-{name}") for name, (stage, more) in twists.items()
    }
    ended_well(twos[""])
    stage, more = twists["predicted"]
    twos["predicted"] = submit.submit(config_of(stage, 2, **more), "predicted")
    ended_well(twos["predicted"])
    for name, one in ones.items():
        assert_alike(one, twos[name])
    for name, file in (("asked", "samples.json"), ("predicted", "output/generated_predictions.jsonl")):
        assert (ones[name].folder / file).read_text() == (twos[name].folder / file).read_text()


SPREAD = {
    **{f"{stage}-lora": (stage, {}) for stage in STAGES},
    **{f"{stage}-full": (stage, {"finetuning_type": "full", "learning_rate": 1e-4}) for stage in STAGES},
}


@pytest.mark.slow
def test_a_model_that_is_spread_learns_the_same(studio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDP2 of adapters and of whole models, in every stage; what is left behind is whole."""
    monkeypatch.setenv("TUNER_WORKER_MODULE", "tests.ranks_worker")
    fsdp = {"fsdp": "full_shard auto_wrap"}
    configs = {name: config_of(stage, 2, **fsdp, **more) for name, (stage, more) in SPREAD.items()}
    for name in ("sft-lora", "sft-full"):
        begin = f"mlruns/runs/two-{name}/checkpoints/checkpoint-3"
        configs[f"{name}-again"] = configs[name].with_values(resume_from_checkpoint=begin)
    twos = by_two(configs)
    ones = {
        name: by_one(config_of(stage, 1, **more), f"one-{name}") for name, (stage, more) in SPREAD.items()
    }
    ended_well(twos[""])
    for name, one in ones.items():
        two = twos[name]
        assert {(ranks.folder(two) / f"{rank}.kind").read_text() for rank in (0, 1)} == {"FSDP"}
        assert_alike(one, two)
    for name in ("sft-lora", "sft-full"):
        assert_weights_alike(ones[name], twos[f"{name}-again"])


# --- what is decided before launch -----------------------------------------------------------------------------------


def cards(count: int, used: int = 0) -> tuple[hardware.Gpu, ...]:
    return tuple(hardware.Gpu(i, "A100", 80 << 30, (used << 30) * i, (8, 0)) for i in range(count))


def test_the_plan_counts_devices_once(studio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = planning.planned(config_of("sft", 1, val_size=0.0, do_eval=False))
    two = planning.planned(config_of("sft", 2, val_size=0.0, do_eval=False))
    assert (one.devices, two.devices) == (1, 2)
    assert one.examples_per_step == two.examples_per_step == 8 and one.steps == two.steps == 4
    assert two.free * 2 <= one.free * 1.1  # they share the CPU's memory
    assert slots.wanted(None, True, (), two.devices) == (("cpu",), 1)
    monkeypatch.setattr(hardware, "gpus", lambda: cards(4, used=10))
    four = planning.planned(config_of("sft", 1, num_gpus=4, use_cpu=False, val_size=0.0, do_eval=False))
    assert (four.devices, four.examples_per_step, four.free) == (4, 32, 50 << 30)
    assert slots.wanted(None, False, range(4), four.devices)[1] == 4
    assert planning.planned(config_of("sft", 1, num_gpus=2, use_cpu=False), gpus=(0, 1)).free == 70 << 30


def test_what_is_spread_takes_a_part_of_the_memory_on_each(studio: Path) -> None:
    values = {"finetuning_type": "full", "val_size": 0.0, "do_eval": False}
    whole = planning.planned(config_of("sft", 2, **values)).memory
    part = planning.planned(config_of("sft", 2, fsdp="full_shard", **values)).memory
    assert whole and part
    assert part.optimizer == whole.optimizer // 2 and part.gradients == whole.gradients // 2


def test_chosen_gpus_make_as_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: cards(4))
    config = config_of("sft", 1, use_cpu=False)
    assert submit.spread(config, None) is config
    several = submit.spread(config, [0, 2])
    assert isinstance(several, Config) and several.num_gpus == several.processes == 2
    for asked, gpus in ((4, [0, 1]), (2, [0])):
        with pytest.raises(ConfigError, match=f"names {len(gpus)}, and the run takes {asked}"):
            submit.spread(config.with_values(num_gpus=asked), gpus)


def test_a_worker_sees_its_own_gpus_and_nothing_of_what_launched_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "ACCELERATE_USE_FSDP", "TUNER_RANK"):
        monkeypatch.setenv(name, "1")
    given = launch.environment(("gpu1", "gpu3"))
    assert given["CUDA_VISIBLE_DEVICES"] == "1,3"
    assert not {"RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "ACCELERATE_USE_FSDP", "TUNER_RANK"} & set(given)
    other = ranks.environment(1, 2, 29400)
    assert (other["RANK"], other["LOCAL_RANK"], other["WORLD_SIZE"]) == ("1", "1", "2")
    assert (other["MASTER_ADDR"], other["MASTER_PORT"]) == ("127.0.0.1", "29400")


@pytest.mark.parametrize(
    ("values", "knob", "said"),
    [
        ({"num_gpus": 2, "nproc_per_node": 4}, "nproc_per_node", "leave one of them out"),
        ({"num_gpus": 2, "use_cpu": True}, "num_gpus", "--nproc_per_node 2"),
        ({"fsdp": "full_shard"}, "fsdp", "set --num_gpus 2 or more"),
        ({"fsdp": "full_shard", "nproc_per_node": 2, "quantization_bit": 4}, "fsdp", "quantized"),
        ({"fsdp": "full_shard", "nproc_per_node": 2, "probe": "a"}, "probe", "tuner evaluate"),
    ],
)
def test_what_does_not_go_together_is_said(values: dict[str, Any], knob: str, said: str) -> None:
    found = check({"model_name_or_path": "m", "dataset": "a", "do_train": True} | values)[1]
    assert [(p.knob, said in p.sentence) for p in found] == [(knob, True)]


# --- rows ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4))
def test_every_row_is_dealt_to_one_rank_and_shares_add_up(rows: int, size: int, count: int) -> None:
    for start in range(0, rows, size * count):
        batch = list(range(start, min(rows, start + size * count)))
        pieces = [dealing.dealt(batch, rank, count, size) for rank in range(count)]
        assert [row for mine, share in pieces if share for row in mine] == batch
        assert sum(share for _, share in pieces) == pytest.approx(count)
        assert all(len(mine) == 1 for mine, share in pieces if not share)


def test_rows_that_one_process_wrote_are_read_by_another(tmp_path: Path) -> None:
    rows = Rows()
    for number in range(5):
        rows.append({"ids": list(range(number)), "label": bool(number % 2)})
    for part in (rows, rows.take([3, 1]), rows.take([])):
        folder = tmp_path / str(len(part))
        part.save(folder)
        read = Rows.saved(folder)
        assert list(read) == list(part) and read.lengths("ids").tolist() == part.lengths("ids").tolist()
        assert list(read.take(range(len(part) // 2))) == list(part.take(range(len(part) // 2)))


# --- the queue -------------------------------------------------------------------------------------------------------


def waiting(name: str, devices: int, created: float) -> Run:
    run = Run(name)
    run.create(make({"model_name_or_path": "m", "num_gpus": devices}), name)
    run.update(created=created)
    submit.place(run)
    return run


@pytest.mark.usefixtures("home")
def test_a_run_that_needs_several_gpus_is_not_starved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of four are free, and it needs three: no later run takes one of them. Runs before it in the order do."""
    monkeypatch.setattr(hardware, "gpus", lambda: cards(4))
    started: dict[str, dict[str, int]] = {}

    def begin(self: Any, run: Run, lock: int, taken: dict[str, int]) -> None:
        started[run.id] = taken
        run.update(state="preparing")
        os.close(lock)

    monkeypatch.setattr(Local, "_launch", begin)
    busy = slots.take("other", ("gpu0", "gpu1"), 2)
    assert busy
    first, big, small = (waiting(*row) for row in (("first", 2, 1.0), ("big", 3, 2.0), ("small", 1, 3.0)))
    queue.move(big.id, 1)
    machine = supervisor.Supervisor()

    def look() -> dict[str, tuple[str, ...]]:
        machine._start_next(queue.waiting(), queue.unended())
        return {run: tuple(taken) for run, taken in started.items()}

    assert look() == {}
    assert "Waits for" in next(row.why for row in queue.queue() if row.id == big.id)
    queue.move(first.id, 1)
    assert look() == {first.id: ("gpu2", "gpu3")}
    slots.release(busy)
    assert set(look()) == {first.id}  # two are free again, and kept for the one that waits for three
    slots.release(started.pop(first.id))
    assert look() == {big.id: ("gpu0", "gpu1", "gpu2"), small.id: ("gpu3",)}


@pytest.mark.usefixtures("home")
def test_a_sweep_fills_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: cards(4))
    monkeypatch.setattr(submit, "ensure_supervisor", lambda: False)
    started: list[tuple[str, ...]] = []

    def begin(self: Any, run: Run, lock: int, taken: dict[str, int]) -> None:
        started.append(tuple(taken))
        run.update(state="preparing")
        os.close(lock)

    monkeypatch.setattr(Local, "_launch", begin)
    rates = "1e-4,2e-4,3e-4"
    submit.sweep(
        {"model_name_or_path": "m", "dataset": "a", "do_train": True, "learning_rate": rates, "num_gpus": 2}
    )
    supervisor.Supervisor()._start_next(queue.waiting(), queue.unended())
    assert started == [("gpu0", "gpu1"), ("gpu2", "gpu3")] and len(queue.waiting()) == 1


@pytest.mark.usefixtures("home")
def test_a_run_that_needs_more_gpus_than_there_are_lets_others_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: cards(2))
    big, small = waiting("big", 3, 1.0), waiting("small", 1, 2.0)
    started: list[str] = []
    monkeypatch.setattr(Local, "_launch", lambda self, run, lock, taken: started.append(run.id))
    supervisor.Supervisor()._start_next(queue.waiting(), queue.unended())
    assert started == [small.id]
    assert "Waits for 3 GPUs, and this machine has 2" in next(r.why for r in queue.queue() if r.id == big.id)


# --- death of a process ----------------------------------------------------------------------------------------------


@pytest.fixture
def short(launching_home: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run of three short processes, all at work."""
    monkeypatch.setenv("TUNER_WORKER_MODULE", "tests.faults.short_ranks")
    run = Run("short")
    run.create(make({"model_name_or_path": "m", "nproc_per_node": 3}), "short")
    submit.launch(run)
    until(lambda: len(pids(run)) == 3)
    return run


def until(true: Any, seconds: float = 60.0) -> float:
    began = time.monotonic()
    while not true():
        assert time.monotonic() < began + seconds, f"not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - began


def pids(run: Run) -> dict[int, int]:
    with suppress(FileNotFoundError):
        return {int(p.name): int(p.read_text()) for p in (run.folder / "pids").glob("[!.]*")}
    return {}


def left(run: Run) -> list[int]:
    """Which of its processes still live."""
    return [rank for rank, pid in pids(run).items() if psutil.pid_exists(pid) and alive(pid)]


def alive(pid: int) -> bool:
    with suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_a_killed_process_ends_the_run_and_is_named(short: Run) -> None:
    os.kill(pids(short)[2], signal.SIGKILL)
    took = until(lambda: short.status().state in ENDED)
    status = short.status()
    assert took < 30 and (status.state, status.reason_code) == ("failed", "rank")
    assert status.reason.startswith("Rank 2 (3 processes): The worker was killed by signal 9 (SIGKILL)")
    assert status.remedies == [reasons.RESUME] and control.why_not_resumable(short) is None
    until(lambda: not left(short))


def test_the_last_words_of_a_process_are_the_runs_reason(short: Run) -> None:
    (short.folder / "words").write_text("1")
    until(lambda: short.status().state in ENDED)
    status = short.status()
    assert status.reason.startswith("Rank 1 (3 processes): Out of memory: batch"), status.reason
    assert status.remedies[0]["code"] == "halve_batch"
    until(lambda: not left(short))


def test_nothing_is_left_where_the_first_process_and_the_supervisor_die_together(short: Run) -> None:
    leader = supervisor.leader()
    assert leader
    os.kill(leader, signal.SIGKILL)
    os.kill(pids(short)[0], signal.SIGKILL)
    until(lambda: not left(short), 10)  # by the kernel: nobody of ours is there
    supervisor.ensure_supervisor()
    until(lambda: short.status().state in ENDED)
    assert control.why_not_resumable(short) is None


PHASES = (
    "1:phase@loading_libraries",
    "1:phase@loading_model",
    "1:substep@3",
    "1:step@3",
    "1:saved@4",
    "1:phase@saving",
    "1:phase@evaluating",
    "0:step@3",
)


@pytest.mark.faults
@pytest.mark.parametrize("fault", PHASES)
def test_a_run_whose_process_was_killed_goes_on(
    studio: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """At any phase: explained within 30 s, nothing left, and resumed it ends as if nothing had been."""
    monkeypatch.setenv("TUNER_WORKER_MODULE", "tests.faults.mortal_worker")
    run = submit.create(config_of("sft", 2, save_steps=2), fault)
    (run.folder / "fault").write_text(fault)
    submit.launch(run)
    until(lambda: not (run.folder / "fault").exists(), 300)
    took = until(lambda: run.status().state in ENDED, 120)
    status = run.status()
    assert status.state == "failed" and "SIGKILL" in status.reason, (status.reason, run.log_tail(3000))
    assert status.reason.startswith("Rank 1 (2 processes)") == fault.startswith("1:")
    assert took < 60  # some of them seconds in which the killed one was only armed
    until(lambda: not members(run), 10)
    control.resume(run)
    status = control.wait(run, timeout=300)
    assert status.state == "finished", (status.reason, run.log_tail(3000))
    one = by_one(config_of("sft", 1, save_steps=2), "undisturbed")
    assert_weights_alike(one, run)


def members(run: Run) -> list[int]:
    """Processes that work on a run."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if run.id in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


# --- ways in ---------------------------------------------------------------------------------------------------------

TORCHRUN = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_WORLD_SIZE": "1",
}
ACCELERATE = TORCHRUN | {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
SPREAD_BY_FILE = {"fsdp": "true", "fsdp_config": {"version": "2", "reshard_after_forward": "true"}}


@pytest.fixture
def unlaunched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in launch.LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, {}),
        ({"WORLD_SIZE": "1", "RANK": "0"}, {}),
        ({"FORCE_TORCHRUN": "1"}, {"nproc_per_node": 3}),
        ({"FORCE_TORCHRUN": "0"}, {}),
        ({"NPROC_PER_NODE": "gpu"}, {"nproc_per_node": 3}),
        ({"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2", "NNODES": "1"}, {"nproc_per_node": 2}),
        (TORCHRUN, {"nproc_per_node": 2}),
        (ACCELERATE, {"nproc_per_node": 2} | SPREAD_BY_FILE),
        (
            TORCHRUN | {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "z3.json"},
            {"nproc_per_node": 2, "deepspeed": "z3.json"},
        ),
    ],
)
def test_what_launchers_ask_for(
    unlaunched: pytest.MonkeyPatch, environment: dict[str, str], asked: dict[str, Any]
) -> None:
    unlaunched.setattr(hardware, "gpus", lambda: cards(3))
    for name, value in environment.items():
        unlaunched.setenv(name, value)
    assert launchers.asked() == asked and not launchers.spare()
    made = make({"model_name_or_path": "m", "dataset": "a", "do_train": True} | launchers.asked())
    assert made.processes == asked.get("nproc_per_node", 1)


@pytest.mark.parametrize("junk", ["two", "0", "-1"])
def test_a_number_of_processes_that_is_none_is_refused(unlaunched: pytest.MonkeyPatch, junk: str) -> None:
    unlaunched.setenv("NPROC_PER_NODE", junk)
    with pytest.raises(ConfigError, match="NPROC_PER_NODE in the environment is"):
        launchers.asked()


def test_a_process_that_a_launcher_started_beside_the_first_makes_no_run(
    unlaunched: pytest.MonkeyPatch, home: Path
) -> None:
    for name, value in (TORCHRUN | {"RANK": "1", "LOCAL_RANK": "1"}).items():
        unlaunched.setenv(name, value)
    assert cli.main(["train", "--model_name_or_path", "m"]) == 0
    assert not (home / "mlruns").exists()


@pytest.mark.parametrize(
    "environment", [{"NNODES": "2"}, TORCHRUN | {"WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2"}]
)
def test_several_machines_are_refused_in_a_sentence(
    unlaunched: pytest.MonkeyPatch, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment.items():
        unlaunched.setenv(name, value)
    assert cli.main(["train", "--model_name_or_path", "m"]) == 2
    assert "asks for several machines" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["torch.distributed.run", "--nproc_per_node", "2"],
        ["accelerate.commands.launch", "--config_file", "two.yaml"],
        [],
    ],
    ids=["torchrun", "accelerate", "variables"],
)
def test_a_launcher_makes_one_run(studio: Path, unlaunched: pytest.MonkeyPatch, words: list[str]) -> None:
    (studio / "my file.yaml").write_text(to_yaml(config_of("sft", 1, max_steps=2).changed()))
    said = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "num_processes": 2}
    said |= {"num_machines": 1, "machine_rank": 0, "mixed_precision": "no"}
    (studio / "two.yaml").write_text(yaml.safe_dump(said))
    if not words:
        unlaunched.setenv("FORCE_TORCHRUN", "1")
        unlaunched.setenv("NPROC_PER_NODE", "2")
    command = [sys.executable, *(["-m"] if words else []), *words, "-m", "tuner", "train", "my file.yaml"]
    done = subprocess.run(command, cwd=studio, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (run,) = all_runs()
    config, status = run.config(), run.status()
    assert isinstance(config, Config) and config.processes == 2
    assert (status.state, status.step) == ("finished", 2)
    assert f"run {run.id} finished" in done.stdout
    until(lambda: not members(run), 10)


@pytest.mark.slow
def test_stop_reaches_all_and_saves(studio: Path) -> None:
    run = submit.submit(config_of("sft", 2, num_train_epochs=500, save_strategy="no"), "long")
    until(lambda: run.status().step >= 3, 300)
    control.stop(run)
    status = control.wait(run, timeout=120)
    assert (status.state, status.reason_code) == ("stopped", "stopped"), (status.reason, run.log_tail(3000))
    (kept,) = checkpoints.of(run)
    assert checkpoints.step_of(kept) == status.checkpoint_step >= status.step
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {p.name for p in kept.iterdir()}
    until(lambda: not members(run), 10)
    assert control.why_not_resumable(run) is None


# --- what a page shows -----------------------------------------------------------------------------------------------


def test_charts_have_a_line_for_every_gpu_and_process() -> None:
    measured = [f"system/gpu_{n}_utilization_percentage" for n in (3, 1)]
    measured += [f"system/gpu_{n}_memory_usage_megabytes" for n in (1, 3)] + [
        "system/rank_1_memory_usage_megabytes"
    ]
    charts = {chart.key: [line.label for line in chart.lines] for chart in charts_of("sft", measured)}
    assert charts["load"] == ["CPU", "GPU 1", "GPU 3"]
    assert charts["memory"][1:] == ["RAM, process 0", "GPU 1", "RAM, process 1", "GPU 3"]
    for chart in charts_of("sft", measured):
        marks = [(line.tone, line.place) for line in chart.lines]
        assert len(set(marks)) == len(marks), (chart.key, marks)
    assert [line.label for chart in charts_of("sft") if chart.key == "load" for line in chart.lines] == [
        "CPU",
        "GPU",
    ]


def test_the_memory_of_other_processes_is_measured(home: Path) -> None:
    run = Run("a")
    run.create(make({"model_name_or_path": "m"}), "a")
    system = SystemMetrics(run, MetricsLog(run), others=lambda: {1: os.getpid(), 2: 2**22 + 1})
    found = system.sample()
    system.close()
    assert found["system/rank_1_memory_usage_megabytes"] == pytest.approx(
        found["system/process_memory_usage_megabytes"], rel=0.5
    )
    assert "system/rank_2_memory_usage_megabytes" not in found  # it is gone
