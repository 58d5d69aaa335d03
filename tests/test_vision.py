"""Models that take pictures: what is trained of them, and that a step's loss is TRL's with the model's own processor."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_vision
import torch
from peft import PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from test_stages import config_of, losses, trained
from transformers import AutoModelForImageTextToText

from tuner import samples
from tuner.config.config import make
from tuner.config.knobs import ConfigError
from tuner.config.reading import read
from tuner.config.vision import language_config, part_of
from tuner.engine import methods
from tuner.generate.answers import answers
from tuner.generate.request import Sampling
from tuner.jobs.live import Outcome
from tuner.models import loading, vision
from tuner.models.llama_family import causal_lm
from tuner.plan import memory
from tuner.plan.engine import model_refusal
from tuner.plan.facts import model_of
from tuner.plan.shape import ModelShape
from tuner.runs.run import series

ASKED = ["red or blue", "two cats", "the sea", "one dog"]
SAID = ["red", "two big cats", "warm", "old dog near"]
PICTURES = [[0], [], [1, 2], [3]]
"""Which pictures each of the rows has; one has none."""


def families() -> list[Any]:
    """All of them; in the fast suite one of each way to show pictures to a model."""
    quick = ("qwen2_5_vl", "gemma3", "smolvlm")
    return [pytest.param(k, marks=[] if k in quick else [pytest.mark.slow]) for k in tiny_vision.FAMILIES]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("vision")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(home))
        for kind in tiny_vision.FAMILIES:
            tiny_vision.model(home / kind, kind)
        tiny_vision.data(tiny.data(home / "data"))
        tiny_vision.pictures(home / "pictures", 4)
        yield home


def built(
    studio: Path, patch: pytest.MonkeyPatch, kind: str, stage: str = "sft", **changes: Any
) -> tuple[Any, Any]:
    """The trainer a stage builds, before it trains, and what it was begun with."""
    module = importlib.import_module(f"tuner.stages.{stage}")
    kept: list[Any] = []
    patch.setattr(module, "fit", lambda *given, **_: kept.append(given) or Outcome())
    said = {"model_name_or_path": kind, "image_min_pixels": 1, "lora_target": "all", "engine": "trl"}
    name = "-".join([kind, stage, *map(str, changes.values())])
    trained(config_of(stage, **said | changes), name.replace(" ", "")[:80])
    return kept[0][0], kept[0][3]


def asked_of(studio: Path, row: int) -> list[dict[str, Any]]:
    """A row's question in content parts, its pictures first."""
    parts = [{"type": "image"} for _ in PICTURES[row]]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": ASKED[row]}]}]


def paths(studio: Path, row: int) -> tuple[str, ...]:
    return tuple(str(studio / "pictures" / f"{i}.png") for i in PICTURES[row])


def opened(studio: Path, row: int) -> list[Any]:
    return [Image.open(path).convert("RGB") for path in paths(studio, row)]


@pytest.mark.parametrize("kind", families())
def test_the_first_loss_of_answers_is_trls(studio: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from trl import SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    trainer, _ = built(studio, monkeypatch, kind)
    processor = tiny_vision.whole_processor(studio / kind, kind)
    examples = [
        {
            "prompt": asked_of(studio, i),
            "completion": [{"role": "assistant", "content": [{"type": "text", "text": SAID[i]}]}],
            "images": opened(studio, i),
        }
        for i in range(4)
    ]
    theirs = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)(examples)
    ours = trainer.data_collator(rows_of(studio, theirs))
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    trainer.args.loss_type = "nll"
    expected = SFTTrainer.compute_loss(trainer, trainer.model, dict(theirs))
    found = trainer.compute_loss(trainer.model, dict(ours))
    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)


def rows_of(studio: Path, batch: Any) -> list[dict[str, Any]]:
    """A batch's rows as they come encoded."""
    kept = batch["attention_mask"].bool()
    return [
        {
            "input_ids": batch["input_ids"][i][kept[i]].tolist(),
            "labels": batch["labels"][i][kept[i]].tolist(),
            "images": paths(studio, i),
        }
        for i in range(len(kept))
    ]


@pytest.mark.parametrize("kind", families())
def test_the_first_loss_of_pairs_is_trls(studio: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from trl import DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    trainer, _ = built(studio, monkeypatch, kind, "dpo")
    moved(trainer)
    processor = tiny_vision.whole_processor(studio / kind, kind)
    examples = [
        {
            "prompt": asked_of(studio, i),
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": SAID[i]}]}],
            "rejected": [{"role": "assistant", "content": [{"type": "text", "text": SAID[i - 1]}]}],
            "images": opened(studio, i),
        }
        for i in range(4)
    ]
    theirs = DataCollatorForVisionPreference(processor)(examples)
    ours = trainer.data_collator(pairs_of(studio, theirs))
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    expected = DPOTrainer.compute_loss(trainer, trainer.model, dict(theirs))
    found = trainer.compute_loss(trainer.model, dict(ours))
    assert abs(float(found.detach()) - 0.6931) > 1e-3, (
        "the adapter was moved, and so the reference is another"
    )
    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)


def moved(trainer: Any) -> None:
    """Move an adapter off zero, so that it differs from the reference."""
    torch.manual_seed(3)
    for weight in trainer.model.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn_like(weight)


def pairs_of(studio: Path, batch: Any) -> list[dict[str, Any]]:
    """The same of pairs: the first half of a batch is chosen, the second rejected."""
    kept, answer = batch["attention_mask"].bool(), batch["completion_mask"].bool()
    count = len(kept) // 2

    def ids(i: int, of: torch.Tensor) -> list[int]:
        return list(batch["input_ids"][i][of[i]].tolist())

    return [
        {
            "prompt_ids": ids(i, kept & ~answer),
            "chosen_ids": ids(i, answer),
            "rejected_ids": ids(i + count, answer),
            "images": paths(studio, i),
        }
        for i in range(count)
    ]


PARTS = {
    "tower": {"freeze_vision_tower": False, "freeze_language_model": True},
    "projector": {"freeze_multi_modal_projector": False, "freeze_language_model": True},
    "language": {},
}


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "gemma3", "smolvlm"])
def test_only_the_parts_that_are_not_frozen_are_trained(
    studio: Path, kind: str, part: str, method: str
) -> None:
    config = config_of("sft", model_name_or_path=kind, finetuning_type=method, **PARTS[part])
    model = loading.load(config, loading.find(config), bits=None, whole=False)
    if (kind, part, method) == (
        "gemma3",
        "projector",
        "lora",
    ):  # no linear layer, which an adapter could lie on
        with pytest.raises(ConfigError, match="--freeze_vision_tower"):
            methods.attach(config, model)
        return
    model, fresh = methods.attach(config, model)
    named, trained_model = vision.parts_of(model), get_peft_model(model, fresh) if fresh else model
    assert named is not None
    weights = causal_lm(trained_model).named_parameters()
    assert {part_of(named, n) for n, w in weights if w.requires_grad} == {part}


def test_a_frozen_tower_whose_layers_are_named_is_told(studio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--freeze_vision_tower"):
        built(studio, monkeypatch, "qwen2_5_vl", lora_target="qkv")


def test_layers_that_are_trained_whole_are_the_language_models(
    studio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"finetuning_type": "freeze", "freeze_trainable_layers": 1}
    trainer, _ = built(studio, monkeypatch, "qwen2_5_vl", **said)
    names = {n.rpartition(".layers.")[0] for n, w in trainer.model.named_parameters() if w.requires_grad}
    assert names == {"model.language_model"}


@pytest.mark.parametrize("kind", families())
def test_answers_to_pictures_are_those_of_transformers(studio: Path, kind: str) -> None:
    """Rows with one picture, with two and without stand in one batch, which is read and continued together."""
    config = config_of("sft", model_name_or_path=kind, image_min_pixels=1)
    model = loading.load(config, loading.find(config), bits=None, whole=False).eval()
    processor = tiny_vision.whole_processor(studio / kind, kind)
    prompts, expected = [], []
    for i in range(4):
        text = processor.apply_chat_template(asked_of(studio, i), add_generation_prompt=True)
        given = processor(
            images=opened(studio, i) or None, text=[text], return_tensors="pt", add_special_tokens=False
        )
        made = model.generate(**given, max_new_tokens=6, do_sample=False, eos_token_id=-1, use_cache=True)
        prompts.append(given["input_ids"][0].tolist())
        expected.append(tuple(made[0, len(prompts[-1]) :].tolist()))
    found = answers(
        model,
        lambda ids, skip: " ".join(map(str, ids)),
        prompts,
        Sampling(max_tokens=6),
        pictures=[paths(studio, i) for i in range(4)],
        sight=vision.sight_of(model, studio / kind, config),
    )
    assert [one.ids for one in found] == expected
    assert len({one.ids for one in found}) > 1


def test_a_runs_first_loss_is_that_of_trls_own_run(studio: Path) -> None:
    """From the data set's files on one side, from images and messages on the other."""
    from datasets import Dataset
    from transformers import AutoModelForImageTextToText
    from trl import SFTConfig, SFTTrainer

    config = config_of(
        "sft", model_name_or_path="qwen2_5_vl", dataset="seen", max_steps=1, image_min_pixels=1
    )
    live, _ = trained(config, "beside trl")
    records = json.loads((studio / "data" / "seen.json").read_text())
    rows = Dataset.from_list(
        [
            {
                "prompt": [
                    {"role": "user", "content": r["conversations"][0]["value"].replace("<image>", "")}
                ],
                "completion": [{"role": "assistant", "content": r["conversations"][1]["value"]}],
                "images": [Image.open(studio / "data" / name).convert("RGB") for name in r["images"]],
            }
            for r in records
        ]
    )
    theirs = SFTTrainer(
        model=AutoModelForImageTextToText.from_pretrained(studio / "qwen2_5_vl"),
        args=SFTConfig(
            output_dir=str(studio / "theirs"), max_steps=1, per_device_train_batch_size=8, bf16=False, use_cpu=True,
            gradient_checkpointing=False, max_length=None, logging_steps=1, save_strategy="no", report_to="none",
        ),
        train_dataset=rows,
        processing_class=tiny_vision.whole_processor(studio / "qwen2_5_vl", "qwen2_5_vl"),
    )  # fmt: skip
    theirs.train()
    assert losses(live)[0] == pytest.approx(theirs.state.log_history[0]["loss"], abs=1e-5)


@pytest.mark.parametrize("stage", ["sft", pytest.param("dpo", marks=pytest.mark.slow)])
def test_a_run_with_pictures_learns_and_goes_on_where_it_stopped(studio: Path, stage: str) -> None:
    said = {
        "model_name_or_path": "qwen2_5_vl", "dataset": "seen" if stage == "sft" else "seen_pairs", "max_steps": 8,
        "image_min_pixels": 1, "save_strategy": "steps", "save_steps": 4, "per_device_train_batch_size": 4,
    }  # fmt: skip
    live, outcome = trained(config_of(stage, **said), f"goes on {stage}")
    curve = losses(live)
    assert curve[-1] < 0.9 * curve[0]
    begin = live.run.checkpoints / "checkpoint-4"
    again, second = trained(config_of(stage, **said, resume_from_checkpoint=str(begin)), f"went on {stage}")
    assert losses(again) == curve[4:]
    assert outcome.weights is not None and second.weights is not None
    one, two = (load_file(w / "adapter_model.safetensors") for w in (outcome.weights, second.weights))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_held_out_pictures_are_asked_while_a_run_learns_and_at_its_end(studio: Path) -> None:
    said = {
        "model_name_or_path": "qwen2_5_vl", "dataset": "seen", "eval_dataset": "seen", "probe": "seen", "max_steps": 2,
        "image_min_pixels": 1, "probe_new_tokens": 8, "do_predict": True, "max_new_tokens": 8,
        "do_sample": False,
    }  # fmt: skip
    live, outcome = trained(config_of("sft", **said), "asks")
    asked = json.loads((live.run.folder / "samples.json").read_text())["data"]
    assert [row[0] for row in asked] == [0] * 8 + [2] * 8
    assert asked[1][1].startswith("<image>") and not asked[0][1].startswith("<image>")
    lines = (live.output / "generated_predictions.jsonl").read_text().splitlines()
    predicted = [json.loads(line) for line in lines]
    # both ways ask the model that came out, and take the likeliest token
    assert [row["predict"] for row in predicted] == [row[3] for row in asked[8:]]
    assert outcome.metrics["predict_rouge-1"] >= 0


def test_an_answer_depends_on_its_picture(studio: Path) -> None:
    """Two questions with the same ids and other pictures stand side by side."""
    config = config_of("sft", model_name_or_path="qwen2_5_vl", image_min_pixels=1)
    model = loading.load(config, loading.find(config), bits=None, whole=False).eval()
    files = [str(studio / "pictures" / f"plain-{colour}.png") for colour in ("red", "white", "blue")]
    for file, colour in zip(files, ("red", "white", "blue"), strict=True):
        Image.new("RGB", (56, 56), colour).save(file)
    begin, image, end = (model.config.vision_start_token_id, model.config.image_token_id, 9)
    prompt = [4, begin, *[image] * 4, end, 260, 2]
    sight = vision.sight_of(model, studio / "qwen2_5_vl", config)
    wish = Sampling(max_tokens=12)
    found = answers(
        model, lambda ids, skip: "", [prompt] * 3, wish, pictures=[[f] for f in files], sight=sight
    )
    alone = [
        answers(model, lambda ids, skip: "", [prompt], wish, pictures=[[f]], sight=sight)[0] for f in files
    ]
    assert [one.ids for one in found] == [one.ids for one in alone]
    assert len({one.ids for one in found}) > 1


@pytest.mark.parametrize("kind", families())
def test_the_plan_counts_what_sees(studio: Path, kind: str) -> None:
    config = config_of("sft", model_name_or_path=kind)
    model = loading.load(config, loading.find(config), bits=None, whole=False)
    shape = model_of(config).shape
    assert shape is not None and shape.tower is not None and model_of(config).layers == 2
    assert shape.parameters == sum(w.numel() for w in model.parameters() if w.ndim > 1)
    for part, said in PARTS.items():
        for method in ("lora", "full"):
            asked = config.with_values(finetuning_type=method, **said)
            model = loading.load(config, loading.find(config), bits=None, whole=False)
            if (kind, part, method) == ("gemma3", "projector", "lora"):
                assert memory.trained(asked, shape, 8) == 0
                continue
            model, fresh = methods.attach(asked, model)
            learnt = get_peft_model(model, fresh) if fresh else model
            found = sum(w.numel() for w in learnt.parameters() if w.requires_grad and w.ndim > 1)
            # three more mergers of Qwen3-VL's get an adapter with its tower: counted whole, not as adapters
            deep = kind == "qwen3_vl" and part == "tower" and method == "lora"
            assert memory.trained(asked, shape, 8) == pytest.approx(found, rel=0.5 if deep else 1e-9)


def test_older_files_have_the_language_models_numbers_beside_the_towers() -> None:
    """As Qwen/Qwen2.5-VL-3B-Instruct and google/gemma-3-4b-it came."""
    qwen = {
        "model_type": "qwen2_5_vl", "hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16,
        "num_hidden_layers": 36, "num_key_value_heads": 2, "tie_word_embeddings": True, "vocab_size": 151936,
        "hidden_act": "silu", "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
                          "out_hidden_size": 2048, "patch_size": 14, "model_type": "qwen2_5_vl"},
    }  # fmt: skip
    assert ModelShape.from_config(qwen).parameters == pytest.approx(3.75e9, rel=0.01)
    assert not model_refusal(qwen) and model_refusal(language_config(qwen)) == model_refusal(qwen)
    gemma = {
        "model_type": "gemma3", "mm_tokens_per_image": 256,
        "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
                        "num_hidden_layers": 34},
        "vision_config": {"hidden_size": 1152, "image_size": 896, "intermediate_size": 4304,
                          "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14},
    }  # fmt: skip
    assert ModelShape.from_config(gemma).parameters == pytest.approx(4.3e9, rel=0.01)


def test_the_starter_that_sees_sorts_pictures_by_chance_and_learns_to_sort_them(
    studio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short run of the recipe; `slow` below is the whole one."""
    _starter(studio, monkeypatch)
    live, outcome = trained(
        make(read("starter-vision") | {"use_cpu": True, "max_steps": 20, "probe_samples": 30}), "sorts"
    )
    found = _scores(live)
    assert found["score/before"] == 0.5 and found["score/after"] > 0.75
    assert outcome.weights is not None and (outcome.weights / "preprocessor_config.json").is_file()


@pytest.mark.slow
def test_the_recipe_for_pictures_sorts_all_of_them(studio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _starter(studio, monkeypatch)
    live, _ = trained(make(read("starter-vision") | {"use_cpu": True}), "sorts all")
    assert _scores(live) == {"score/before": 0.5, "score/after": 1.0}


def _starter(studio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNER_HOME", str(studio / "starter"))
    samples.lay_out()


def _scores(live: Any) -> dict[str, float]:
    names = ("score/before", "score/after")
    return {name: series(live.run.metrics()[0], name)[1][0] for name in names}


@pytest.mark.parametrize("kind", ["qwen2_5_vl", pytest.param("smolvlm", marks=pytest.mark.slow)])
def test_a_merged_model_sees_as_its_adapter_did(studio: Path, kind: str) -> None:
    from test_export import exported

    said = {"model_name_or_path": kind, "dataset": "seen", "max_steps": 4, "image_min_pixels": 1}
    config = config_of("sft", **said)
    live, outcome = trained(config, f"to merge {kind}")
    exported(
        [
            *("--model_name_or_path", str(studio / kind), "--adapter_name_or_path", str(outcome.weights)),
            *("--export_dir", f"merged-{kind}", "--export_device", "cpu"),
        ]
    )
    card = (outcome.weights / "README.md").read_text()
    assert f'AutoModelForImageTextToText.from_pretrained("{kind}")' in card and "image-text-to-text" in card
    folder = studio / f"merged-{kind}"
    assert (folder / "preprocessor_config.json").read_bytes() == (
        studio / kind / "preprocessor_config.json"
    ).read_bytes()
    merged = AutoModelForImageTextToText.from_pretrained(folder).eval()
    sight = vision.sight_of(merged, folder, config)
    assert sight is not None
    token = merged.config.image_token_id
    count = 6 if kind == "qwen2_5_vl" else 4
    ids = torch.tensor([[4, *[token] * count, 260, 2, 5]])
    seen = sight([paths(studio, 0)], ids)
    with torch.no_grad():
        theirs = merged(input_ids=ids, **seen).logits
        ours = live_model(studio / kind, outcome.weights)(input_ids=ids, **seen).logits
        before = (
            AutoModelForImageTextToText.from_pretrained(studio / kind).eval()(input_ids=ids, **seen).logits
        )
    assert torch.allclose(theirs, ours, atol=1e-4)
    assert (before - ours).abs().max() > 0.05


def live_model(base: Path, adapter: Any) -> Any:
    """A run's adapter as plain PEFT loads it."""
    return PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), str(adapter)).eval()


THEIRS = """\
### model
model_name_or_path: Qwen/Qwen3-VL-4B-Instruct
image_max_pixels: 262144
video_max_pixels: 16384
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all

### dataset
dataset: mllm_demo,identity,alpaca_en_demo  # video: mllm_video_demo
template: qwen3_vl_nothink
cutoff_len: 2048
max_samples: 1000
preprocessing_num_workers: 16
dataloader_num_workers: 4

### output
output_dir: saves/qwen3-vl-4b/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none  # choices: [none, wandb, tensorboard, swanlab, mlflow]

### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
"""
"""LLaMA-Factory's examples/train_lora/qwen3vl_lora_sft.yaml; that for Qwen2.5-VL differs in names."""


@pytest.mark.parametrize(
    ("kind", "template"),
    [pytest.param("qwen3_vl", "qwen3_vl_nothink", marks=pytest.mark.slow), ("qwen2_5_vl", "qwen2_vl")],
)
def test_llama_factorys_file_runs_with_another_model_and_data(studio: Path, kind: str, template: str) -> None:
    file = studio / f"{kind}.yaml"
    replaced = {
        "Qwen/Qwen3-VL-4B-Instruct": kind, "mllm_demo,identity,alpaca_en_demo": "seen,chat", "bf16: true": "bf16: false",
        "template: qwen3_vl_nothink": f"template: {template}\ndataset_dir: data", "epochs: 3.0": "epochs: 1.0",
        "dataloader_num_workers: 4": "dataloader_num_workers: 0", "saves/qwen3-vl-4b/": f"saves/{kind}/",
    }  # fmt: skip
    text = THEIRS
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    live, outcome = trained(make(read(file)), f"theirs {kind}")
    assert outcome.weights == studio / "saves" / kind / "lora" / "sft" and losses(live)
    kept = json.loads((outcome.weights / "adapter_config.json").read_text())
    assert kept["target_modules"] and "visual" in kept["exclude_modules"]


@pytest.mark.slow
def test_an_evaluation_asks_and_weighs_with_pictures(studio: Path) -> None:
    """Answers are those that a run's first samples have of the same model, perplexity that of a plain forward."""
    from tuner.config.evaluation import EvaluateConfig
    from tuner.config.inference import read_words
    from tuner.data.prepare import prepare
    from tuner.data.tokens import load_tokenizer
    from tuner.evaluate.evaluate import evaluate
    from tuner.jobs.live import Live
    from tuner.runs.run import Run
    from tuner.tracking.evaluations import results

    words = ["--model_name_or_path=qwen2_5_vl", "--dataset=seen", "--versions=base", "--max_new_tokens=8"]
    config = read_words(EvaluateConfig, [*words, "--image_min_pixels=1"])[0]
    run = Run("weighs")
    run.create(config, "weighs")
    evaluate(config, Live(run))
    lines = (run.folder / "output" / "base" / "generated_predictions.jsonl").read_text().splitlines()
    said = {"model_name_or_path": "qwen2_5_vl", "dataset": "seen", "probe": "seen", "max_steps": 1}
    live, _ = trained(config_of("sft", **said, image_min_pixels=1, probe_new_tokens=8), "beside evaluation")
    first = [row for row in json.loads((live.run.folder / "samples.json").read_text())["data"] if row[0] == 0]
    assert [json.loads(line)["predict"].strip() for line in lines] == [row[3] for row in first]

    folder = studio / "qwen2_5_vl"
    taught = config_of("sft", **said, image_min_pixels=1)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    sight = vision.sight_of(model, folder, taught)
    assert sight is not None
    lost, count = 0.0, 0
    for row in prepare(taught, load_tokenizer(folder)).train:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            logits = model(input_ids=ids, **sight([row["images"]], ids)).logits[0, :-1]
        lost += float(torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum"))
        count += int((labels[0, 1:] != -100).sum())
    [measured] = results(run)["versions"]
    assert measured["metrics"]["perplexity"] == pytest.approx(math.exp(lost / count), rel=1e-4)
