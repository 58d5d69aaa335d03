"""Supervised fine-tuning and reward models: the packed engine beside TRL on the same rows, one line of JSON a case.

    python tests/bench/tokens.py                       # what this machine can: a GPU's table, or a CPU's
    python tests/bench/tokens.py --cases sft8-trl-packed,sft8-packed

Every case runs in a process of its own, on the same token ids (alpaca's instructions; Anthropic's pairs for reward
models), with the same LoRA. Rates are of real tokens, never padding, in steady state: the steps after `first`. `before`
is the studio's own trainer of TRL's engine with its defaults. The names end in the examples of a step.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import preference

NO_CHECKPOINTING = {"gradient_checkpointing": False}
GPU_CASES: dict[str, dict[str, Any]] = {
    "sft8-before": {"engine": "before", "batch": (8, 1), "first": 4, "last": 14},
    "sft8-trl": {"engine": "trl_sft", "batch": (8, 1), "first": 4, "last": 14, "options": NO_CHECKPOINTING},
    "sft8-trl-packed": {"engine": "trl_sft", "batch": (1, 1), "first": 4, "last": 14,
                        "options": {**NO_CHECKPOINTING, "packing": True}},
    "sft8-packed": {"engine": "packed", "batch": (8, 1), "first": 80, "last": 160, "profile": True},
    "sft8-packed-memory": {"engine": "packed", "batch": (8, 1), "first": 80, "last": 120, "preset": "memory"},
    "sft64-before": {"engine": "before", "batch": (8, 8), "first": 2, "last": 6},
    "sft64-trl": {"engine": "trl_sft", "batch": (32, 2), "first": 3, "last": 9, "options": NO_CHECKPOINTING},
    "sft64-trl-packed": {"engine": "trl_sft", "batch": (8, 1), "first": 3, "last": 9,
                         "options": {**NO_CHECKPOINTING, "packing": True}},
    "sft64-packed": {"engine": "packed", "batch": (64, 1), "first": 30, "last": 60, "profile": True},
    "sft64-packed-memory": {"engine": "packed", "batch": (64, 1), "first": 30, "last": 50, "preset": "memory"},
    "sft64-packed-fp8": {"engine": "packed", "batch": (64, 1), "first": 30, "last": 60, "float8": True, "profile": True},
    "sft8-packed-fp8": {"engine": "packed", "batch": (8, 1), "first": 80, "last": 120, "float8": True},
    "qlora8-trl": {"engine": "trl_sft", "batch": (8, 1), "first": 4, "last": 14, "load": "nf4",
                   "options": NO_CHECKPOINTING},
    "qlora8-packed": {"engine": "packed", "batch": (8, 1), "first": 80, "last": 140, "load": "nf4"},
    "qlora64-packed": {"engine": "packed", "batch": (64, 1), "first": 20, "last": 40, "load": "nf4"},
    "qlora64-packed-memory": {"engine": "packed", "batch": (64, 1), "first": 20, "last": 36, "load": "nf4",
                              "preset": "memory"},
    "full64-trl": {"engine": "trl_sft", "batch": (8, 8), "first": 2, "last": 6, "load": "full",
                   "options": NO_CHECKPOINTING},
    "full64-trl-packed": {"engine": "trl_sft", "batch": (4, 2), "first": 2, "last": 8, "load": "full",
                          "options": {**NO_CHECKPOINTING, "packing": True}},
    "full64-packed": {"engine": "packed", "batch": (64, 1), "first": 24, "last": 44, "load": "full", "profile": True},
    "rm8-trl": {"engine": "trl_rm", "batch": (8, 1), "first": 4, "last": 14, "options": NO_CHECKPOINTING},
    "rm8-packed": {"engine": "packed_rm", "batch": (8, 1), "first": 80, "last": 140, "profile": True},
    "kto8-trl": {"engine": "trl_kto", "batch": (8, 1), "first": 4, "last": 14, "options": NO_CHECKPOINTING},
    "kto8-packed": {"engine": "packed_kto", "batch": (8, 1), "first": 80, "last": 140},
}  # fmt: skip
CPU_CASES: dict[str, dict[str, Any]] = {
    "sft8-trl": {"engine": "trl_sft", "batch": (2, 4), "first": 1, "last": 4, "options": NO_CHECKPOINTING},
    "sft8-packed": {"engine": "packed", "batch": (2, 4), "first": 2, "last": 12},
    "rm8-trl": {"engine": "trl_rm", "batch": (2, 4), "first": 1, "last": 4, "options": NO_CHECKPOINTING},
    "rm8-packed": {"engine": "packed_rm", "batch": (2, 4), "first": 2, "last": 12},
    "kto8-trl": {"engine": "trl_kto", "batch": (4, 2), "first": 1, "last": 4, "options": NO_CHECKPOINTING},
    "kto8-packed": {"engine": "packed_kto", "batch": (4, 2), "first": 2, "last": 12},
}


def instructions(name: str, count: int) -> tuple[list[dict[str, list[int]]], Any]:
    """Alpaca's rows as ids with labels on the answers, in the words of LLaMA-Factory's default template."""
    folder = next(p.parent for p in preference.DATA if (p.parent / "alpaca_en_demo.json").is_file())
    raw = json.loads((folder / "alpaca_en_demo.json").read_text())[:count]
    small = name == "tiny-3m"
    pairs = json.loads(next(p for p in preference.DATA if p.is_file()).read_text()) if small else []
    encode, end, tokenizer = (
        preference._small_vocabulary(pairs)
        if small
        else preference._qwen_vocabulary(preference.SHAPES[name][1])
    )
    rows = []
    for row in raw:
        question = "\n".join(part for part in (row["instruction"], row["input"]) if part)
        prompt = [*encode(f"Human: {question}"), end, *encode("\nAssistant:")]
        answer = [*encode(row["output"]), end]
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return rows, tokenizer


class Clock:
    """Wall time and tokens between two steps; waits for the device there only."""

    def __init__(self, first: int, last: int) -> None:
        import time

        import torch
        from transformers import TrainerCallback

        clock, self.first, self.last = self, first, last
        self.times: dict[int, float] = {}
        self.logs: list[tuple[float, float]] = []
        cuda = torch.cuda.is_available()

        class Callback(TrainerCallback):  # type: ignore[misc]
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                if cuda:
                    torch.cuda.synchronize()
                    torch.cuda.reset_peak_memory_stats()
                clock.times[0] = time.time()

            def on_step_end(self, args: Any, state: Any, control: Any, **__: Any) -> None:
                if cuda and state.global_step in (1, first, last):
                    torch.cuda.synchronize()
                clock.times[state.global_step] = time.time()

            def on_log(
                self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **__: Any
            ) -> None:
                if logs and "loss" in logs:
                    clock.logs.append((round(logs["loss"], 4), round(float(logs["grad_norm"]), 3)))

        self.callback = Callback()


def child(spec: dict[str, Any]) -> dict[str, Any]:
    """Runs one case in this process and returns its row of the table."""
    import torch

    cuda = torch.cuda.is_available()
    clock = Clock(spec["first"], spec["last"])
    batch, accumulation = spec["batch"]
    common = {
        "output_dir": tempfile.mkdtemp(), "learning_rate": 5e-5, "max_steps": spec["last"], "save_strategy": "no",
        "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "logging_steps": 5,
        "logging_first_step": True, "report_to": "none", "bf16": cuda, "use_cpu": not cuda, "seed": 42,
        "disable_tqdm": True, "include_num_input_tokens_seen": "non_padding",
    }  # fmt: skip
    cases = {
        "before": before, "trl_sft": trl_sft, "trl_rm": trl_rm, "packed": packed, "packed_rm": packed_rm,
        "trl_kto": trl_kto, "packed_kto": packed_kto,
    }  # fmt: skip
    trainer, mean = cases[spec["engine"]](spec, common, clock)
    span = clock.times[clock.last] - clock.times[clock.first]
    steps = clock.last - clock.first
    examples = batch * accumulation * steps
    out = {
        "case": spec["case"],
        "model": spec["model"],
        "ms_per_step": round(1e3 * span / steps, 2),
        "examples_per_s": round(examples / span, 2),
        "real_tokens_per_s": round(examples * mean / span),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
        "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2) if cuda else None,
        "step_1_s": round(clock.times[1] - clock.times[0], 2),
        "logs": clock.logs[:3],
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }
    if spec.get("profile") and cuda:
        rows = [trainer.train_dataset[i] for i in range(batch * accumulation)]
        out |= preference.profile(trainer, rows)
        out |= {"graphs": len(trainer.runner.graphs.captured), "in_use": trainer.in_use()}
    return out


def _mean(rows: list[dict[str, list[int]]]) -> float:
    names = [n for n in rows[0] if n.endswith("_ids")]
    pairs = "chosen_ids" in rows[0]  # TRL computes the prompt twice; it is counted twice for both
    return sum(len(r[n]) * (2 if pairs and n == "prompt_ids" else 1) for r in rows for n in names) / len(rows)


def loaded(spec: dict[str, Any]) -> Any:
    """The model as the case trains it: frozen in bf16, in 4 bits, or whole in float32."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if (how := spec.get("load")) is None:
        return preference.load(spec)
    options: dict[str, Any] = {"dtype": torch.float32 if how == "full" else torch.bfloat16}
    if how == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_quant_storage=torch.bfloat16,
        )  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(spec["folder"], device_map={"": 0}, **options)


def before(spec: dict[str, Any], common: dict[str, Any], clock: Clock) -> tuple[Any, float]:
    from trl import SFTConfig

    from tuner.config.config import make
    from tuner.engine.completion import PLACEHOLDER, CompletionTrainer, collator

    rows, tokenizer = instructions(spec["model"], spec["rows"])
    config = make({"model_name_or_path": spec["folder"], "stage": "sft", "dataset": "x", "do_train": True})
    trainer = CompletionTrainer(
        model=preference.load(spec),
        args=SFTConfig(max_length=None, remove_unused_columns=False, **common),
        data_collator=collator(0, False),
        train_dataset=PLACEHOLDER,
        processing_class=tokenizer,
        peft_config=preference.lora(),
        callbacks=[clock.callback],
        config=config,
    )
    trainer.train_dataset = rows
    trainer.train()
    return trainer, _mean(rows)


def trl_sft(spec: dict[str, Any], common: dict[str, Any], clock: Clock) -> tuple[Any, float]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows, tokenizer = instructions(spec["model"], spec["rows"])
    trainer = SFTTrainer(
        model=loaded(spec),
        args=SFTConfig(max_length=2048, **common, **spec.get("options", {})),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=None if spec.get("load") == "full" else preference.lora(),
        callbacks=[clock.callback],
    )
    trainer.train()
    packed_rows = len(trainer.train_dataset)
    return trainer, _mean(rows) * len(rows) / packed_rows


def packed(spec: dict[str, Any], common: dict[str, Any], clock: Clock) -> tuple[Any, float]:
    from tuner.engine.packed.objective import TokenObjective

    rows, _ = instructions(spec["model"], spec["rows"])
    return _packed(
        loaded(spec),
        None if spec.get("load") == "full" else preference.lora(),
        spec,
        common,
        clock,
        rows,
        lambda d: TokenObjective(),
    )


def _packed(
    model: Any,
    adapter: Any,
    spec: dict[str, Any],
    common: dict[str, Any],
    clock: Clock,
    rows: Any,
    objective: Any,
) -> tuple[Any, float]:
    import torch
    from peft import get_peft_model
    from transformers import TrainingArguments

    from tuner.engine.packed.trainer import EngineSettings, PackedTrainer

    torch.manual_seed(42)
    model = get_peft_model(model, adapter) if adapter else model
    settings = EngineSettings(
        preset=spec.get("preset", "speed"), run_by=_layers(spec, model), float8=spec.get("float8", False)
    )
    trainer = PackedTrainer(
        model, TrainingArguments(**common), rows, engine=settings,
        callbacks=[clock.callback], objective=objective,
    )  # fmt: skip
    trainer.train()
    return trainer, _mean(rows)


def _layers(spec: dict[str, Any], model: Any) -> Any:
    """What a run of the studio knows of the layers before it sizes its rows."""
    from tuner.config.config import make
    from tuner.plan.memory import layers_of
    from tuner.plan.shape import ModelShape

    values = {
        "model_name_or_path": spec["folder"],
        "stage": "sft",
        "dataset": "x",
        "do_train": True,
        "bf16": True,
    }
    config = make(values | {"finetuning_type": "full" if spec.get("load") == "full" else "lora"})
    return layers_of(config, ModelShape.from_config(model.config.to_dict()), 8, written_out=False)


def _scorer(spec: dict[str, Any]) -> tuple[Any, Any]:
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification

    cuda = torch.cuda.is_available()
    where = {"device_map": {"": 0}} if cuda else {}
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(
        spec["folder"], dtype=torch.bfloat16 if cuda else None, num_labels=1, **where
    )
    model.config.pad_token_id = 1
    return model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="SEQ_CLS")


def trl_rm(spec: dict[str, Any], common: dict[str, Any], clock: Clock) -> tuple[Any, float]:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    rows, tokenizer = preference.pairs(spec["model"], spec["rows"])
    model, adapter = _scorer(spec)
    whole = [{s: [*r["prompt_ids"], *r[s]] for s in ("chosen_ids", "rejected_ids")} for r in rows]
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(max_length=2048, **common, **spec.get("options", {})),
        train_dataset=Dataset.from_list(whole),
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[clock.callback],
    )
    trainer.train()
    return trainer, _mean(rows)


def packed_rm(spec: dict[str, Any], common: dict[str, Any], clock: Clock) -> tuple[Any, float]:
    from tuner.engine.packed.objective import RewardObjective

    rows, _ = preference.pairs(spec["model"], spec["rows"])
    model, adapter = _scorer(spec)
    return _packed(model, adapter, spec, common, clock, rows, partial(_reward, RewardObjective))


def _reward(objective: Any, device: Any) -> Any:
    return objective(1)


def _marked(spec: dict[str, Any]) -> tuple[list[dict[str, Any]], Any]:
    """The better and the worse answer of the pairs in turn, marked so, each with a mismatched answer."""
    from tuner.config.config import make
    from tuner.engine.kto_negatives import mismatched

    rows, tokenizer = preference.pairs(spec["model"], spec["rows"])
    marked = [
        {"prompt_ids": r["prompt_ids"], "completion_ids": r["rejected_ids" if i % 2 else "chosen_ids"],
         "label": i % 2 == 0}
        for i, r in enumerate(rows)
    ]  # fmt: skip
    config = make({"model_name_or_path": spec["folder"], "stage": "kto", "dataset": "x", "do_train": True})
    return mismatched(marked, config, spec["batch"][0]), tokenizer


def trl_kto(spec: dict[str, Any], common: dict[str, Any], clock: Clock) -> tuple[Any, float]:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    class Tokenised(KTOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    rows, tokenizer = _marked(spec)
    trainer = Tokenised(
        model=loaded(spec),
        args=KTOConfig(max_length=2048, remove_unused_columns=False, **common, **spec.get("options", {})),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=preference.lora(),
        callbacks=[clock.callback],
    )
    trainer.train()
    return trainer, _mean(rows)


def packed_kto(spec: dict[str, Any], common: dict[str, Any], clock: Clock) -> tuple[Any, float]:
    from tuner.engine.losses import LossSettings
    from tuner.engine.packed.objective import PreferenceObjective

    rows, _ = _marked(spec)
    made = partial(PreferenceObjective, LossSettings(pref_loss="kto"))
    return _packed(loaded(spec), preference.lora(), spec, common, clock, rows, made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", choices=preference.SHAPES, help="default: qwen-1.8b on a GPU, tiny-3m on a CPU"
    )
    parser.add_argument("--rows", type=int, help="default: 640 on a GPU, 48 on a CPU")
    parser.add_argument("--cases", help="comma-separated; default: all that can run here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print("RESULT " + json.dumps(child(json.loads(options.child))))
        return
    import torch

    cuda = torch.cuda.is_available()
    table = GPU_CASES if cuda else CPU_CASES
    model = options.model or ("qwen-1.8b" if cuda else "tiny-3m")
    names = options.cases.split(",") if options.cases else list(table)
    print(f"matmul ceiling {preference.matmul_ceiling():.3f} TFLOP/s")
    with tempfile.TemporaryDirectory() as folder:
        preference.made_apart(model, folder)
        shared = {"model": model, "folder": folder, "rows": options.rows or (640 if cuda else 48)}
        found = {n: preference.launch({"case": n, **shared, **table[n]}, Path(__file__)) for n in names}
    ratios(found)


def ratios(found: dict[str, dict[str, Any] | None]) -> None:
    """The packed engine's rate over every other of the same stage and step."""
    for name, mine in found.items():
        kind, _, engine = name.partition("-")
        if mine and engine.startswith("packed"):
            rate = mine["real_tokens_per_s"]
            others = {
                n: r
                for n, r in found.items()
                if r and n.split("-")[0] == kind and n.split("-")[1] != "packed"
            }
            over = {n: round(rate / r["real_tokens_per_s"], 2) for n, r in others.items()}
            print(json.dumps({"case": name, "times": over}))


if __name__ == "__main__":
    main()
