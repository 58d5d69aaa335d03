"""How near the packed engine stays to TRL: the distance of its gradient to the float32 one, and its loss curve.

    python tests/bench/exactness.py                        # this machine's device; bf16 on a GPU, float32 on a CPU
    python tests/bench/exactness.py --model tiny-3m --steps 10 --bf16

Both run on the same token ids, adapters and order of rows. Three lines of JSON: `gradient` has each engine's relative
distance to TRL's gradient in float32 at step 0, from adapters whose B is not zero, and their ratio; `curve` the mean
difference between the engines' losses with one seed, beside that between TRL's losses with two seeds; `resume` that
between the packed engine's losses uninterrupted and after a resume halfway, beside that between two runs of the same.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import preference
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments
from trl import DPOConfig, DPOTrainer

from tuner.engine.losses import LossSettings
from tuner.engine.packed.objective import PreferenceObjective
from tuner.engine.packed.trainer import PackedTrainer

CUDA = torch.cuda.is_available()


class Watch(TrainerCallback):
    """Keeps the gradients before the first update and the loss of every step."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}
        self.losses: list[float] = []
        self.measured: list[float] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        if not self.gradients:
            found = {n: p.grad for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
            self.gradients = {n: g.detach().float().cpu().clone() for n, g in found.items()}

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            self.losses.append(logs["loss"])
        if "eval_loss" in logs:
            self.measured.append(logs["eval_loss"])


class Tokenised(DPOTrainer):
    """TRL's trainer on rows that are token ids already."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset


def ran(
    engine: str,
    folder: str,
    rows,
    tokenizer,
    *,
    half: bool,
    steps: int,
    seed: int,
    bent: bool,
    resume: str,
    halfway: dict,
) -> Watch:
    """One training run. `bent` fills every B of the adapters with the same small numbers, so that A has a gradient.

    `halfway` are the options of a run that saves and measures on its way, `resume` the checkpoint to go on from.
    """
    options = {
        "output_dir": tempfile.mkdtemp(), "max_steps": steps, "learning_rate": 2e-4, "max_grad_norm": 0.0,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "lr_scheduler_type": "constant",
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "seed": seed,
        "bf16": half, "use_cpu": not CUDA, **halfway,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16 if half else torch.float32, device_map={"": 0} if CUDA else None
    )
    watch = Watch()
    torch.manual_seed(seed)
    if engine == "packed":
        model = get_peft_model(model, preference.lora())
        trainer = PackedTrainer(
            model,
            TrainingArguments(**options),
            rows,
            eval_dataset=rows[:16] if halfway else None,
            processing_class=tokenizer,
            callbacks=[watch],
            objective=partial(PreferenceObjective, LossSettings()),
        )
    else:
        trainer = Tokenised(
            model=model,
            args=DPOConfig(
                **options,
                beta=0.1,
                max_length=2048,
                remove_unused_columns=False,
                gradient_checkpointing=False,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=preference.lora(),
            callbacks=[watch],
        )
    _fill(trainer.model, seed, bent)
    trainer.train(resume_from_checkpoint=resume or None)
    return watch


def _fill(model, seed: int, bent: bool) -> None:
    """The same adapters in every run, in float32, whatever order they were made in."""
    numbers = torch.Generator().manual_seed(seed)
    for name, weight in sorted(model.named_parameters()):
        if weight.requires_grad:
            scale = 0.02 if "lora_A" in name else 0.005 * bent
            weight.data = (torch.randn(weight.shape, generator=numbers) * scale).to(weight.device)


def distance(found: dict[str, torch.Tensor], true: dict[str, torch.Tensor]) -> float:
    """Relative L2 distance of all gradients together."""
    apart = sum(float((found[n] - true[n]).square().sum()) for n in true)
    return (apart / sum(float(g.square().sum()) for g in true.values())) ** 0.5


def main() -> None:
    """Parse the command line, run the five trainings, print the two lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen-1.8b" if CUDA else "tiny-3m", choices=preference.SHAPES)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=320)
    parser.add_argument("--bf16", action="store_true", default=CUDA)
    asked = parser.parse_args()
    rows, tokenizer = preference.pairs(asked.model, asked.pairs)
    with tempfile.TemporaryDirectory() as folder:
        preference.make_model(asked.model, Path(folder))

        def run(
            engine: str,
            half: bool = asked.bf16,
            steps: int = 1,
            seed: int = 1,
            bent: bool = False,
            resume: str = "",
            **halfway,
        ) -> Watch:
            watch = ran(
                engine, folder, rows, tokenizer,
                half=half, steps=steps, seed=seed, bent=bent, resume=resume, halfway=halfway,
            )  # fmt: skip
            gc.collect()
            torch.cuda.empty_cache()
            return watch

        true = run("trl", half=False, bent=True).gradients
        trl, packed = (distance(run(engine, bent=True).gradients, true) for engine in ("trl", "packed"))
        line = {
            "case": "gradient",
            "bf16": asked.bf16,
            "trl": trl,
            "packed": packed,
            "ratio": packed / max(trl, 1e-12),
        }
        print(json.dumps(line), flush=True)
        ours, theirs = run("packed", steps=asked.steps).losses, run("trl", steps=asked.steps).losses
        other = run("trl", steps=asked.steps, seed=2).losses
        curve = {
            "case": "curve",
            "steps": asked.steps,
            "step_0": ours[0],
            "last": [ours[-1], theirs[-1], other[-1]],
            "packed_to_trl": apart(ours, theirs),
            "trl_to_other_seed": apart(theirs, other),
        }
        print(json.dumps(curve), flush=True)
        print(json.dumps(resumed(run, asked.steps, ours)))


def apart(one: list[float], other: list[float]) -> float:
    """Mean absolute difference of two curves of the same steps."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def resumed(run, steps: int, whole: list[float]) -> dict:
    """Saves and measures at half of the steps, goes on from there in a new trainer."""
    half = steps // 2
    with tempfile.TemporaryDirectory() as saves:
        halfway = {
            "output_dir": saves, "save_strategy": "steps", "save_steps": half, "eval_strategy": "steps", "eval_steps": half,
        }  # fmt: skip
        again = run("packed", steps=steps, **halfway)
        after = run("packed", steps=steps, resume=f"{saves}/checkpoint-{half}", **halfway)
    return {
        "case": "resume",
        "from_step": half,
        "resumed_to_whole": apart(after.losses, again.losses[half:]),
        "whole_to_whole": apart(again.losses, whole),
        "eval_loss": [again.measured[-1], after.measured[-1]],
    }


if __name__ == "__main__":
    main()
