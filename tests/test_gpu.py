"""The studio on a GPU: a run of the packed engine, with its steps replayed from CUDA graphs, is stopped, killed, resumed and measured.

Slow, and skipped where there is no GPU: `pytest -m slow tests/test_gpu.py`.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from tests.test_generate import model_of, prompts_of, spelled
from tests.test_generate_written import Switched, finished
from tests.tiny_packed import mixture, whole
from tuner.config.config import make
from tuner.data.decision_rows import WHOLE
from tuner.engine.packed.autograd_policy import AutogradPolicy
from tuner.engine.packed.decisions import DecisionObjective
from tuner.engine.packed.float8 import Float8Weight
from tuner.engine.packed.objective import TokenObjective
from tuner.engine.packed.policy import FusedPolicy
from tuner.engine.packed.steps import StepRunner
from tuner.engine.packed.units import units_of_tokens
from tuner.generate.answers import Collected
from tuner.generate.decoder import Decoder
from tuner.generate.request import Sampling
from tuner.generate.scheduler import Scheduler
from tuner.jobs import control, submit
from tuner.runs import checkpoints
from tuner.runs.run import Run, series
from tuner.tracking.adapters import list_adapters
from tuner.tracking.store import open_store

ROOT = Path(__file__).resolve().parents[1]
BF16 = 5e-3  # how far a loss of about 0.5 may be from that of the same step in another run
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
]


def own_layers(kind: str) -> torch.nn.Module:
    """A tiny model of which autograd computes all, with heads that the kernels take."""
    torch.manual_seed(0)
    if kind == "whole":
        return whole("qwen3")
    sizes = {"hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    neox = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=199, **sizes))
    base = (
        neox
        if kind == "neox"
        else mixture("qwen3_moe", hidden_size=64)
        if kind == "experts"
        else whole("qwen3")
    )
    options = {"use_dora": kind == "dora", "lora_dropout": 0.3 * (kind == "dropout")}
    return get_peft_model(
        base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, **options)
    )


def text_rows(count: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    texts = [[draw.randrange(1, 199) for _ in range(draw.randrange(4, 40))] for _ in range(count)]
    return [{"input_ids": ids, "labels": ids} for ids in texts]


@pytest.fixture
def studio(launching_home: Path) -> Path:
    (launching_home / "data").symlink_to(ROOT / "data")
    return launching_home


def launched(name: str) -> Run:
    values: dict[str, Any] = {
        "model_name_or_path": "data/starter", "stage": "dpo", "do_train": True, "dataset": "starter_dpo",
        "val_size": 32, "eval_strategy": "steps", "eval_steps": 150, "save_steps": 100, "max_steps": 900,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "learning_rate": 2e-5,
        "lr_scheduler_type": "constant", "logging_steps": 1, "bf16": True, "seed": 7,
    }  # fmt: skip
    return submit.launch(submit.create(make(values), name))


def curves(run: Run) -> dict[str, dict[int, float]]:
    points = list(run.metrics()[0])
    return {name: dict(zip(*series(points, name), strict=True)) for name in ("loss", "eval_loss")}


def until(run: Run, step: int) -> None:
    end = time.monotonic() + 180
    while run.status().step < step:
        assert run.status().state not in ("failed", "stopped") and time.monotonic() < end, (
            run.status().reason,
            run.log_tail(3000),
        )
        time.sleep(0.02)


def test_a_run_with_graphs_is_stopped_and_killed_and_goes_on_as_if_it_had_not(studio: Path) -> None:
    calm = launched("calm")
    assert control.wait(calm, timeout=300).state == "finished", calm.log_tail(3000)

    broken = launched("broken")
    until(broken, 330)
    control.stop(broken)
    stopped = control.wait(broken, timeout=120)
    assert stopped.state == "stopped", (stopped.reason, broken.log_tail(3000))
    kept = checkpoints.latest(broken)
    assert kept is not None and checkpoints.step_of(kept) >= 330

    control.resume(broken)
    until(broken, 640)
    os.kill(control.pid_of(broken) or 0, signal.SIGKILL)
    assert control.wait(broken, timeout=60).reason_code == "killed"
    control.resume(broken)
    ended = control.wait(broken, timeout=300)
    assert ended.state == "finished", (ended.reason, broken.log_tail(3000))

    for run in (calm, broken):
        assert "replayed from CUDA graphs" in run.log_tail(1 << 20), run.log_tail(4000)
    one, other = curves(calm), curves(broken)
    assert list(one["loss"]) == list(other["loss"]) == list(range(1, 901))
    assert list(one["eval_loss"]) == list(other["eval_loss"])
    apart = [abs(one["loss"][step] - other["loss"][step]) for step in one["loss"]]
    evals = [abs(one["eval_loss"][step] - other["eval_loss"][step]) for step in one["eval_loss"]]
    print(f"mean {sum(apart) / 900:.2e}, largest {max(apart):.2e}, evaluation {max(evals):.2e}")
    assert sum(apart) / len(apart) < BF16 and max(evals) < BF16
    assert one["loss"][1] == pytest.approx(0.6931, abs=1e-4) and one["loss"][900] < 0.6
    assert [p.step for p in open_store().get_metric_history(broken.id, "loss")] == list(range(1, 901))
    assert {adapter.run_id for adapter in list_adapters()} == {calm.id, broken.id}


@pytest.mark.parametrize(("batch", "accumulation"), [(1, 1), (2, 2), (3, 1)])
def test_kto_with_graphs_is_that_of_the_cpu_at_every_size_of_micro_batch(
    studio: Path, batch: int, accumulation: int
) -> None:
    """There `test_packed.py` holds it to TRL."""
    from test_stages import trained

    found = {}
    for where in ("gpu", "cpu"):
        config = make(
            {
                "model_name_or_path": "data/starter", "stage": "kto", "do_train": True, "dataset": "starter_kto",
                "max_samples": 50, "max_steps": 20, "num_train_epochs": 3, "per_device_train_batch_size": batch,
                "gradient_accumulation_steps": accumulation, "learning_rate": 1e-4, "lr_scheduler_type": "constant",
                "logging_steps": 1, "save_strategy": "no", "seed": 7, "bf16": False, "use_cpu": where == "cpu",
            }
        )  # fmt: skip
        live, _ = trained(config, f"kto-{where}-{batch}-{accumulation}")
        points = list(live.run.metrics()[0])
        found[where] = {name: dict(zip(*series(points, name), strict=True)) for name in ("loss", "kl")}
    for name, near in (("loss", 2e-3), ("kl", 2e-2)):
        ours, theirs = found["gpu"][name], found["cpu"][name]
        assert list(ours) == list(theirs) and len(ours) == 20
        apart = max(abs(ours[step] - theirs[step]) for step in ours)
        print(f"{name} at {batch}x{accumulation}: at most {apart:.2e} apart")
        assert apart < near, (name, ours, theirs)


@pytest.mark.parametrize("recompute", [0, 2])
@pytest.mark.parametrize("kind", ["whole", "dora", "neox", "experts"])
def test_a_model_s_own_layers_replayed_from_graphs_learn_as_run_one_by_one(kind: str, recompute: int) -> None:
    """Rows of one shape are replayed from the third on; in float32."""
    found = {}
    for graphs in (False, True):
        # experts are replayed where their product needs nothing of the host: in bfloat16
        model = own_layers(kind).to("cuda", torch.bfloat16 if kind == "experts" else torch.float32)
        policy = AutogradPolicy(model)
        policy.recompute = recompute
        runner = StepRunner(policy, TokenObjective(), torch.device("cuda"), 4096, graphs)
        gradients = []
        for seed in range(6):
            rows = text_rows(8, seed)
            runner.levels = [(512, 512)]
            result = runner.train(units_of_tokens(rows), None)
            gradients.append((result.loss.item(), policy.gradients.flat.clone()))
        assert bool(runner.graphs.captured) == graphs and runner.graphs.enabled == graphs
        found[graphs] = gradients
    for (loss, gradient), (expected, right) in zip(found[True], found[False], strict=True):
        assert loss == pytest.approx(expected, rel=1e-6)
        assert (gradient - right).norm() < (1e-2 if kind == "experts" else 1e-5) * right.norm()


@pytest.mark.parametrize("how", ["ce", "ce_rps", "brier"])
@pytest.mark.parametrize("kind", ["fused", "dora"])
def test_decisions_replayed_from_graphs_are_those_of_the_cpu(kind: str, how: str) -> None:
    """Records with different numbers of questions and options; in float32."""
    found = {}
    for device, graphs in (("cpu", False), ("cuda", False), ("cuda", True)):
        torch.manual_seed(0)
        model = (own_layers(kind) if kind == "dora" else fused()).float().to(device)
        policy = FusedPolicy(model) if kind == "fused" else AutogradPolicy(model)
        policy.read_labels(range(20, 48))
        objective = DecisionObjective(how, 0.1)
        runner = StepRunner(policy, objective, torch.device(device), 4096, graphs)
        steps = []
        for seed in range(6):
            runner.levels = [(1024, 128)] if graphs else []
            result = runner.train(objective.units(decision_rows(8, seed), 8), None)
            steps.append((result.loss.item(), result.metrics.cpu(), policy.gradients.flat.clone().cpu()))
        assert bool(runner.graphs.captured) == graphs
        found[device, graphs] = steps
    for other in (("cuda", False), ("cuda", True)):
        for mine, wanted in zip(found[other], found["cpu", False], strict=True):
            assert mine[0] == pytest.approx(wanted[0], rel=1e-4)
            assert torch.allclose(mine[1], wanted[1], atol=1e-2)
            assert (mine[2] - wanted[2]).norm() < 1e-3 * wanted[2].norm()


def fused() -> torch.nn.Module:
    """A tiny model whose layers are written out."""
    adapter = LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear")
    return get_peft_model(model_of("llama", hidden_size=64, head_dim=16), adapter)


def decision_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Encoded records of 1 to 5 questions of every type."""
    draw, made = random.Random(seed), []
    for _ in range(count):
        asked = [draw.randrange(3) for _ in range(draw.randint(1, 5))]
        options = [2 if kind == 0 else draw.randint(2, 26) for kind in asked]
        sizes = [draw.randint(1, 12) for _ in asked]
        targets = [part for n in options for part in (WHOLE - 250_000, 250_000, *[0] * (n - 2))]
        made.append(
            {
                "prompt_ids": [draw.randrange(1, 199) for _ in range(draw.randint(1, 30))],
                "question_ids": [draw.randrange(1, 199) for _ in range(sum(sizes))],
                "question_sizes": sizes,
                "types": asked,
                "option_sizes": options,
                "targets": targets,
            }
        )
    return made


def test_dropout_in_replayed_steps_is_drawn_anew_each_time() -> None:
    policy = AutogradPolicy(own_layers("dropout").to("cuda"))
    runner = StepRunner(policy, TokenObjective(), torch.device("cuda"), 4096, True)
    runner.levels = [(512, 512)]
    losses = [runner.train(units_of_tokens(text_rows(8, 0)), None).loss.item() for _ in range(6)]
    assert runner.graphs.captured and len(set(losses)) == 6
    policy.recompute = 2
    assert not policy.capturable


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral"])
def test_text_from_replayed_steps_is_the_model_s_own(kind: str) -> None:
    """Greedy and drawn, of the base and two adapters beside each other, while rows come and go; in float32."""
    model = get_peft_model(
        model_of(kind, hidden_size=64, head_dim=16),
        LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear"),
    )
    model.add_adapter(
        "other", LoraConfig(r=12, init_lora_weights=False, target_modules=["q_proj", "down_proj"])
    )
    model.to("cuda").eval()
    prompts, names = prompts_of(9), ("default", "", "other")

    def made(decoder: Decoder, rows: int) -> list[tuple[int, ...]]:
        asked = [
            Collected(
                p,
                Sampling(max_tokens=20 + 9 * i, temperature=i % 2, top_k=9 * (i % 4 > 1), seed=i),
                names[i % 3],
            )
            for i, p in enumerate(prompts)
        ]
        scheduler = Scheduler(decoder, spelled, Switched(model), most=rows)
        finished(scheduler, asked, random.Random(1))
        return [one.answer.ids for one in asked]

    expected = made(Decoder(model, written=False), 1)
    decoder = Decoder(model)
    assert made(decoder, 6) == made(decoder, 1) == expected
    assert decoder.statics is not None and decoder.statics.idle[-1].graphs, "nothing was captured"


def test_rows_are_rounded_to_8_bits_as_on_the_cpu_and_a_step_is_near_that_of_bfloat16() -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no 8-bit floats")
    from tuner.engine.packed import kernels_torch, kernels_triton

    torch.manual_seed(0)
    x = torch.randn(70, 5504, dtype=torch.bfloat16, device="cuda")[:, :2816]
    codes, scales = kernels_triton.to_float8(x)
    wanted, same = kernels_torch.to_float8(x)
    assert torch.allclose(scales, same) and float((codes.float() - wanted.float()).abs().max()) <= 32
    assert float((codes.float() != wanted.float()).float().mean()) < 1e-3, "ties alone are rounded otherwise"
    weight = torch.randn(704, 2816, dtype=torch.bfloat16, device="cuda")
    found = Float8Weight(weight, kernels_triton)
    for made, plain in (
        (found.forward(x), x @ weight.t()),
        (found.backward(plain_dy := x[:, :704]), plain_dy @ weight),
    ):
        assert float((made - plain).float().norm() / plain.float().norm()) < 0.05
