"""A PiSSA adapter is, at every save, a plain LoRA of the model as it was, and training goes on from any of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import PeftModel
from test_engine import STEADY, StopsAt
from test_stages import IDS, Watched, config_of, losses, trained
from transformers import AutoModelForCausalLM

from tuner.config.knobs import ConfigError
from tuner.plan import preflight
from tuner.runs import checkpoints


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("pissa")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(home))
        tiny.model(home / "model")
        tied = AutoModelForCausalLM.from_pretrained(home / "model").config
        tied.tie_word_embeddings = True
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(tied).save_pretrained(home / "tied")
        tiny.tokenizer(home / "tied")
        tiny.data(home / "data")
        yield home


class Remembers(Watched):
    """The logits of the model that is trained, at each save."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.at: dict[int, torch.Tensor] = {}

    @property
    def callback(self) -> Any:
        made = super().callback
        saved = made.on_save

        def on_save(args: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
            self.at[state.global_step] = answers(model)
            saved(args, state, control, model=model, **rest)

        made.on_save = on_save
        return made


def answers(model: torch.nn.Module) -> torch.Tensor:
    was = model.training
    with torch.no_grad():
        found = model.eval()(input_ids=IDS).logits
    model.train(was)
    return found


def elsewhere(folder: Path) -> torch.nn.Module:
    """The adapter on the base that it names, by PEFT alone."""
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": "sft"},
        {"stage": "sft", "pissa_iter": -1, "use_rslora": True, "lora_rank": 6},
        {"stage": "sft", "use_dora": True},
        {"stage": "sft", "additional_target": "norm", "lora_rank": 24},
        {"stage": "sft", "model_name_or_path": "tied", "lora_target": "embed_tokens,q_proj"},
        {"stage": "sft", "model_name_or_path": "tied", "additional_target": "embed_tokens"},
        pytest.param({"stage": "dpo"}, marks=pytest.mark.slow),
        pytest.param({"stage": "kto"}, marks=pytest.mark.slow),
    ],
    ids=lambda c: "-".join(map(str, c.values())),
)
def test_every_save_fits_the_model_as_it_was(studio: Path, changes: dict[str, Any]) -> None:
    name = "-".join(map(str, changes.values())).replace(",", "-")
    config = config_of(
        **changes, pissa_init=True, max_steps=4, save_strategy="steps", save_steps=2, learning_rate=1e-2
    )
    live, outcome = trained(config, name, kind=Remembers)
    assert isinstance(live, Remembers) and outcome.weights is not None
    kept = checkpoints.of(live.run)
    assert [c.name for c in kept] == ["checkpoint-2", "checkpoint-4"]
    plain = answers(AutoModelForCausalLM.from_pretrained(studio / str(config.model_name_or_path)))
    for folder in kept:
        found = answers(elsewhere(folder))
        assert torch.allclose(found, live.at[checkpoints.step_of(folder)], atol=2e-4)
        assert (found - plain).abs().max() > 1e-2
    assert torch.allclose(answers(elsewhere(outcome.weights)), live.at[4], atol=2e-4)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"stage": "sft"}, marks=pytest.mark.slow),
        pytest.param({"stage": "sft", "use_dora": True}, marks=pytest.mark.slow),
        {"stage": "dpo"},
    ],
    ids=str,
)
def test_a_stopped_run_goes_on_bit_by_bit(studio: Path, changes: dict[str, Any]) -> None:
    config = config_of(**changes, pissa_init=True, save_strategy="steps", save_steps=3, **STEADY)
    name = "-".join(map(str, changes.values()))
    whole, _ = trained(config, f"whole-{name}")
    first, outcome = trained(config, f"parts-{name}", kind=StopsAt)
    assert outcome.stopped
    first.run.forget_requests()
    second, _ = trained(config, f"parts-{name}")
    assert losses(second) == losses(whole)
    ours, theirs = (
        (r.folder / "output" / "adapter_model.safetensors").read_bytes() for r in (second.run, whole.run)
    )
    assert ours == theirs


def test_another_run_goes_on_from_a_checkpoint_whatever_its_seed(studio: Path) -> None:
    """The directions that were taken out come from the checkpoint, not from the random decomposition."""
    settings = {
        "pissa_init": True,
        "pissa_iter": 0,
        "save_strategy": "steps",
        "save_steps": 2,
        "output_dir": "shared",
    }
    config = config_of("sft", max_steps=2, **settings)
    before, _ = trained(config, "one")
    after, outcome = trained(
        config.with_values(max_steps=3, seed=99, learning_rate=1e-9, resume_from_checkpoint="true"), "two"
    )
    assert outcome.weights is not None
    assert "Went on from checkpoint-2" in " ".join(after.run.status().notes)
    found = answers(elsewhere(outcome.weights))
    assert torch.allclose(found, answers(before.model), atol=2e-4)


def test_the_best_checkpoint_is_taken_back(studio: Path) -> None:
    config = config_of(
        "sft", pissa_init=True, max_steps=4, learning_rate=0.5, val_size=4, eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, load_best_model_at_end=True,
    )  # fmt: skip
    live, outcome = trained(config, "best", kind=Remembers)
    assert isinstance(live, Remembers) and outcome.weights is not None
    scores = {row["step"]: row["eval_loss"] for row in live.run.metrics()[0] if "eval_loss" in row}
    best = min((s for s in scores if s in live.at), key=lambda step: scores[step])
    assert best < 4
    assert torch.allclose(answers(elsewhere(outcome.weights)), live.at[best], atol=2e-4)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "loftq"])
@pytest.mark.parametrize("knob", ["adapter_name_or_path", "ref_model_adapters"])
def test_an_adapter_that_does_not_fit_its_base_is_refused(studio: Path, start: str, knob: str) -> None:
    folder = studio / f"from-elsewhere-{start}"
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"init_lora_weights": start, "r": 8}))
    (folder / "adapter_model.safetensors").touch()
    config = config_of("dpo", **{knob: str(folder)}, **({"ref_model": "model"} if knob[0] == "r" else {}))
    (found,) = preflight.problems(config)
    assert found.knob == knob and f"was started by {start}" in found.sentence
    assert "pissa_convert" in found.sentence
    with pytest.raises(ConfigError, match=f"was started by {start}"):
        trained(config, f"refused-{start}-{knob}")
    (folder / "pissa_converted").mkdir(exist_ok=True)
    (folder / "pissa_converted" / "adapter_config.json").write_text(json.dumps({"init_lora_weights": True}))
    assert f"name {folder}/pissa_converted" in preflight.problems(config)[0].sentence
    (folder / "pissa_converted" / "adapter_config.json").unlink()


def test_a_checkpoint_without_its_start_is_refused(studio: Path) -> None:
    config = config_of("sft", max_steps=2, save_strategy="steps", save_steps=2, output_dir="plain")
    trained(config, "plain")
    further = config.with_values(pissa_init=True, max_steps=4, resume_from_checkpoint="true")
    with pytest.raises(ConfigError, match="does not hold what PiSSA started from"):
        trained(further, "plain-further")
