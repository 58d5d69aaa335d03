"""The first-step loss and gradient of each stage against TRL's own, and of both preference engines against each other."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_stages import config_of, trained
from transformers import MistralConfig, MistralForCausalLM

from tuner.jobs.live import Outcome
from tuner.runs.run import series


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("parity")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(home))
        tiny.model(home / "model", hidden=32)
        tiny.data(home / "data")
        yield home


PAIRS = [
    {"prompt_ids": [4, 260, 261], "chosen_ids": [270, 271, 2], "rejected_ids": [280, 2]},
    {"prompt_ids": [4, 262], "chosen_ids": [2], "rejected_ids": [281, 282, 283, 2]},
]
MARKED = [
    {"prompt_ids": [4, 260], "completion_ids": [270, 2], "KL_completion_ids": [271, 272, 2], "label": True},
    {"prompt_ids": [4, 261], "completion_ids": [271, 272, 2], "KL_completion_ids": [270, 2], "label": False},
]


def built(stage: str, monkeypatch: pytest.MonkeyPatch, name: str, **changes: Any) -> Any:
    """The trainer a stage builds, before it trains; its adapter moved off zero so that gradients reach everything."""
    module = importlib.import_module(f"tuner.stages.{stage}")
    kept: list[Any] = []

    def fit(trainer: Any, *_: Any, **__: Any) -> Outcome:
        kept.append(trainer)
        return Outcome()

    monkeypatch.setattr(module, "fit", fit)
    trained(config_of(stage, engine="trl", **changes), name)
    torch.manual_seed(3)
    for weight in kept[0].model.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn_like(weight)
    return kept[0]


def graded(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
    weights = [p for p in trainer.model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])


def agree(trainer: Any, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)
    one, other = graded(trainer, ours), graded(trainer, theirs)
    assert one.abs().max() > 0
    assert (one - other).norm() <= 1e-6 * other.norm()


SHARED = [
    "sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down",
    "sigmoid_norm",
]  # fmt: skip


@pytest.mark.parametrize("loss", SHARED)
def test_pairs_agree_with_trl(studio: Path, monkeypatch: pytest.MonkeyPatch, loss: str) -> None:
    from trl import DPOTrainer

    smoothing = 0.1 if loss in ("robust", "exo_pair") else 0.0
    trainer = built(
        "dpo", monkeypatch, f"trl-{loss}", pref_loss=loss, dpo_label_smoothing=smoothing, pref_beta=0.3
    )
    batch = trainer.data_collator(PAIRS)
    theirs = DPOTrainer.compute_loss(trainer, trainer.model, batch)
    agree(trainer, trainer.compute_loss(trainer.model, batch), theirs)


def test_a_mixture_agrees_with_trl(studio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl import DPOTrainer

    said = {"pref_loss": "sigmoid,bco_pair", "pref_loss_weights": "0.8,0.2", "ld_alpha": 0.5}
    trainer = built("dpo", monkeypatch, "trl-mixture", **said)
    batch = trainer.data_collator(PAIRS)
    agree(
        trainer,
        trainer.compute_loss(trainer.model, batch),
        DPOTrainer.compute_loss(trainer, trainer.model, batch),
    )


def test_marked_answers_agree_with_trl(studio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl import KTOTrainer

    trainer = built("kto", monkeypatch, "trl-kto", kto_chosen_weight=1.2)
    batch = trainer.data_collator(MARKED)
    ours = trainer.compute_loss(trainer.model, batch)
    trainer.loss_type, trainer.calculate_KL, trainer.desirable_weight = "kto", True, 1.2
    agree(trainer, ours, KTOTrainer.compute_loss(trainer, trainer.model, batch))


@pytest.mark.parametrize("dft", [False, True])
def test_answers_agree_with_trl(studio: Path, monkeypatch: pytest.MonkeyPatch, dft: bool) -> None:
    from trl import SFTTrainer

    trainer = built("sft", monkeypatch, f"trl-sft-{dft}", use_dft_loss=dft)
    rows = [
        {"input_ids": [4, 260, 270, 2], "labels": [-100, -100, 270, 2]},
        {"input_ids": [4, 2], "labels": [-100, 2]},
    ]
    batch = trainer.data_collator(rows)
    trainer.args.loss_type = "dft" if dft else "nll"
    ours = trainer.compute_loss(trainer.model, dict(batch))
    agree(trainer, ours, SFTTrainer.compute_loss(trainer, trainer.model, dict(batch)))


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_experts_are_balanced_as_in_trl(studio: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    import trl

    if not (studio / "experts").exists():
        tiny.model(studio / "experts", hidden=16, layers=1, experts=4)
    said = {"model_name_or_path": "experts", "moe_aux_loss_coef": 0.5, "lora_target": "q_proj,v_proj"}
    trainer = built(stage, monkeypatch, f"experts-{stage}", **said)
    kind = trl.DPOTrainer if stage == "dpo" else trl.KTOTrainer
    batch = trainer.data_collator(PAIRS if stage == "dpo" else MARKED)
    ours = trainer.compute_loss(trainer.model, batch)
    if stage == "kto":
        trainer.loss_type, trainer.calculate_KL = "kto", True
    agree(trainer, ours, kind.compute_loss(trainer, trainer.model, batch))


def test_scores_agree_with_trl(studio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trl

    trainer = built("rm", monkeypatch, "trl-rm")
    batch = trainer.data_collator(PAIRS)
    ours = trainer.compute_loss(trainer.model, dict(batch))
    agree(trainer, ours, trl.RewardTrainer.compute_loss(trainer, trainer.model, dict(batch)))


def test_a_sliding_window_is_obeyed_by_both_engines(studio: Path) -> None:
    """Mistral's, of 8 tokens, which rows are longer than."""
    said = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**said, **heads, sliding_window=8))
    model.save_pretrained(studio / "mistral")
    tiny.tokenizer(studio / "mistral")
    losses = {}
    for engine in ("packed", "trl"):
        config = config_of("sft", model_name_or_path="mistral", engine=engine, max_steps=2, logging_steps=1)
        live, _ = trained(config, f"sliding-{engine}")
        losses[engine] = series(list(live.run.metrics()[0]), "loss")[1]
        assert any(
            f"Engine: {'packed' if engine == 'packed' else 'TRL'}" in n for n in live.run.status().notes
        )
    assert len(losses["trl"]) == 2 and losses["packed"] == pytest.approx(losses["trl"], rel=1e-5)


@pytest.mark.parametrize("good", [True, False])
def test_answers_of_one_label_or_of_one_prompt_are_said(studio: Path, good: bool) -> None:
    catalog = json.loads((studio / "data" / "dataset_info.json").read_text())
    name = f"only-{good}"
    rows = [{"instruction": "one", "output": f"answer {i}", "kto_tag": good} for i in range(4)]
    (studio / "data" / f"{name}.json").write_text(json.dumps(rows))
    columns = {"prompt": "instruction", "response": "output", "kto_tag": "kto_tag"}
    (studio / "data" / "dataset_info.json").write_text(
        json.dumps(catalog | {name: {"file_name": f"{name}.json", "columns": columns}})
    )
    live, _ = trained(config_of("kto", dataset=name, max_steps=1, per_device_train_batch_size=1), name)
    notes = " ".join(live.run.status().notes)
    assert f"All answers are marked {'good' if good else 'bad'}" in notes and "All rows ask the same" in notes


COMPARED = ("loss", "grad_norm", "rewards", "logps", "learning_rate", "kl")
EPOCHS = {"max_steps": -1, "per_device_train_batch_size": 2}
UNEVEN = {"per_device_eval_batch_size": 2, "val_size": 5, "eval_strategy": "steps", "eval_steps": 3}


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("dpo", UNEVEN),
        pytest.param("kto", {}, marks=pytest.mark.slow),  # the next one, evenly
        (
            "kto",
            UNEVEN | {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3, "pref_ftx": 0.3},
        ),
        *(
            pytest.param(
                "dpo",
                UNEVEN
                | {"dataloader_drop_last": True, "gradient_accumulation_steps": steps, "num_train_epochs": 2}
                | EPOCHS,
                marks=marks,
            )
            for steps, marks in ((2, pytest.mark.slow), (5, ()))
        ),
        pytest.param(
            "kto",
            {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "cutoff_len": 12},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_both_engines_draw_one_curve(studio: Path, stage: str, changes: dict[str, Any]) -> None:
    """In evaluation too; the last micro-batches are short, of one row in places."""
    rows = []
    for engine in ("packed", "trl"):
        wanted = {"max_steps": 6, "learning_rate": 1e-3} | changes
        name = f"{engine}-{stage}-{'-'.join(map(str, changes.values()))}"
        live, _ = trained(config_of(stage, engine=engine, **wanted), name)
        rows.append([r for r in live.run.metrics()[0] if "loss" in r or "eval_loss" in r])
    assert len(rows[0]) == len(rows[1])
    assert any("eval_loss" in r for r in rows[0]) == ("val_size" in changes)
    for one, other in zip(*rows, strict=True):
        shared = {n for n in one if n.removeprefix("eval_").startswith(COMPARED)}
        shared -= {
            "rewards/accuracies",
            "eval_rewards/accuracies",
        }  # at the start both are even but for a digit
        assert len(shared) >= (5 if "eval_loss" in one else 6)
        assert {n: one[n] for n in shared} == pytest.approx({n: other[n] for n in shared}, rel=1e-3, abs=2e-5)
