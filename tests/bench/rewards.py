"""Learning from rewards: GRPO beside TRL's own trainer with transformers' generate, a line of JSON a case.

    python tests/bench/rewards.py          # on a CPU: the starter model, 8 prompts x 4 answers of at most 32 tokens
    python tests/bench/rewards.py --gpu    # on a GPU: random weights of Qwen-1.8B's shape, 16 x 8 answers of 256 tokens

Both take the same prompts, the same LoRA (r 8 on all linears) and the same reward, each in a process of its own. Seconds
are of a step, in the mean of those after the first two; on a CPU they are processor time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
import preference  # noqa: E402

WARM = 2
STARTER = Path(__file__).parents[2] / "data"
CPU = {"prompts": 8, "answers": 4, "new": 32, "steps": 8}
GPU = {"prompts": 16, "answers": 8, "new": 256, "steps": 5}


def model_of(gpu: bool, folder: Path, shape: str) -> Path:
    """The starter, or random weights with a tokenizer of as many words."""
    if not gpu:
        return STARTER / "starter"
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    preference.made_apart(shape, str(folder))
    words = {f"t{i}": i for i in range(3, preference.SHAPES[shape][1])}
    words |= {"<end>": 0, "<pad>": 1, "<unk>": 2}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    return folder


def prompts_of(gpu: bool, count: int) -> list[str]:
    """Questions of the starter's, or 100 random words each."""
    if gpu:
        import random

        chance = random.Random(0)
        return [" ".join(f"t{chance.randrange(3, 8000)}" for _ in range(100)) for _ in range(count)]
    rows = json.loads((STARTER / "starter_alpaca.json").read_text(encoding="utf-8"))[:count]
    asked = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    return [asked.format(row["instruction"]) for row in rows]


def worth(text: str) -> float:
    """A reward that differs from answer to answer."""
    return sum(map(ord, text)) % 97 / 97


def common(spec: dict[str, Any]) -> dict[str, Any]:
    gpu = spec["gpu"]
    batch = spec["batch"]
    return {
        "output_dir": tempfile.mkdtemp(), "learning_rate": 1e-6, "max_steps": spec["steps"], "save_strategy": "no",
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": spec["prompts"] * spec["answers"] // batch,
        "logging_steps": 1, "report_to": "none", "bf16": gpu, "use_cpu": not gpu, "seed": 42, "disable_tqdm": True,
        "gradient_checkpointing": False,
    }  # fmt: skip


def load(spec: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    kind = torch.bfloat16 if spec["gpu"] else torch.float32
    model = AutoModelForCausalLM.from_pretrained(spec["folder"], dtype=kind)
    if spec["random"]:
        model.generation_config.eos_token_id = None  # all answers are of one length
    return model


class Clock:
    """Seconds of each step."""

    def __init__(self, gpu: bool) -> None:
        import torch
        from transformers import TrainerCallback

        clock, self.steps = self, list[float]()

        def now() -> float:
            if gpu:
                torch.cuda.synchronize()
            return time.perf_counter() if gpu else time.process_time()

        class Callback(TrainerCallback):  # type: ignore[misc]
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                clock.at = now()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.steps.append(now() - clock.at)

        self.callback, self.at = Callback(), 0.0


def trl(spec: dict[str, Any], prompts: Sequence[str], clock: Clock) -> list[dict[str, float]]:
    from datasets import Dataset
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    trainer = GRPOTrainer(
        model=load(spec),
        args=GRPOConfig(
            **common(spec), num_generations=spec["answers"], max_completion_length=spec["new"], beta=0.0
        ),
        reward_funcs=lambda completions, **_: [worth(text) for text in completions],
        train_dataset=Dataset.from_list([{"prompt": text} for text in prompts]),
        # by its own class: the model's type would read none of these words
        processing_class=(PreTrainedTokenizerFast if spec["random"] else AutoTokenizer).from_pretrained(
            spec["folder"]
        ),
        peft_config=preference.lora(),
        callbacks=[clock.callback],
    )
    trainer.train()
    return list(trainer.state.log_history)


def ours(spec: dict[str, Any], prompts: Sequence[str], clock: Clock) -> list[dict[str, float]]:
    from functools import partial

    from peft import get_peft_model
    from transformers import TrainingArguments

    from tuner.config.config import make
    from tuner.data.tokens import load_tokenizer
    from tuner.engine.online import advantages
    from tuner.engine.online.objective import Clipping, OnlineObjective
    from tuner.engine.online.rollouts import Writer
    from tuner.engine.online.trainer import Lesson, OnlineTrainer, Sources
    from tuner.plan.schedule import Schedule
    from tuner.rewards.reward import Scorer

    model = get_peft_model(load(spec), preference.lora())
    words = load_tokenizer(Path(spec["folder"]))
    end = words.id_of(words.eos) if words.eos else None
    config = make(
        {"model_name_or_path": str(spec["folder"]), "stage": "grpo", "reward_funcs": ["json_valid"],
         "do_train": True, "dataset": "x", "max_new_tokens": spec["new"]}
    )  # fmt: skip
    rows = [
        {"prompt_ids": words.encode(text), "asked": {"messages": [], "label": None, "columns": {}}}
        for text in prompts
    ]
    batch, wanted = spec["batch"], spec["prompts"] * spec["answers"]
    parts = wanted // batch
    trainer = OnlineTrainer(
        model,
        TrainingArguments(**common(spec)),
        Sources(
            rows,
            Writer(model, words, () if spec["random"] or end is None else (end,), config),
            [Scorer("worth", 1.0, lambda found: [worth(one.text) for one in found])],
            Schedule(len(rows), spec["answers"], batch, parts, parts),
        ),
        Lesson(partial(advantages.of_group, scale="group"), longest=spec["new"]),
        OnlineObjective(Clipping()),
        callbacks=[clock.callback],
    )
    trainer.train()
    return list(trainer.state.log_history)


def child(spec: dict[str, Any]) -> dict[str, Any]:
    """Run one case in this process; its row of the table."""
    import torch

    if not spec["gpu"]:
        torch.set_num_threads(1)
    clock, prompts = Clock(spec["gpu"]), prompts_of(spec["random"], 4 * spec["prompts"])
    logs = {"trl": trl, "ours": ours}[spec["case"]](spec, prompts, clock)
    steps = [row for row in logs if "loss" in row][spec["warm"] :]
    mean = lambda name: round(sum(r.get(name, 0.0) for r in steps) / len(steps), 3)  # noqa: E731
    return {
        "case": spec["case"], "batch": spec["batch"],
        "seconds_a_step": round(sum(clock.steps[spec["warm"] :]) / len(steps), 3),
        "rollout_s": mean("step_time/rollout"), "learning_s": mean("step_time/learning"),
        "tokens_an_answer": mean("completions/mean_length"), "reward": mean("reward"), "entropy": mean("entropy"),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if spec["gpu"] else None,
        "first_steps": [round(s, 2) for s in clock.steps[: spec["warm"]]],
        "device": torch.cuda.get_device_name() if spec["gpu"] else "cpu",
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument(
        "--shape", default="qwen-1.8b", help="of the random weights; tiny-3m to try it on a CPU"
    )
    parser.add_argument("--child")
    parser.add_argument("--cases", default="")
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(child(json.loads(asked.child))), flush=True)
        return
    cases = asked.cases or ("ours:128,trl:64" if asked.gpu else "ours:32,trl:32")
    with tempfile.TemporaryDirectory() as folder:
        import torch

        model, cuda = str(model_of(asked.gpu, Path(folder), asked.shape)), torch.cuda.is_available()
        found = []
        for case in cases.split(","):
            name, _, batch = case.partition(":")
            spec = {**(GPU if asked.gpu else CPU), "case": name, "batch": int(batch), "folder": model}
            spec |= {"gpu": asked.gpu and cuda, "random": asked.gpu, "warm": WARM}
            spec |= {"steps": 3, "warm": 1} if name == "trl" and asked.gpu else {}
            found.append(_run(spec))
        _compare([row for row in found if row])


def _run(spec: dict[str, Any]) -> dict[str, Any] | None:
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(spec)], capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    print(
        lines[-1] if lines and not done.returncode else f"{spec['case']}: {done.stderr[-1500:]}", flush=True
    )
    return json.loads(lines[-1]) if lines and not done.returncode else None


def _compare(rows: Sequence[dict[str, Any]]) -> None:
    best = {
        name: min((r["seconds_a_step"] for r in rows if r["case"] == name), default=0.0)
        for name in ("ours", "trl")
    }
    if all(best.values()):
        print(json.dumps({"times_as_fast": round(best["trl"] / best["ours"], 2)}), flush=True)


if __name__ == "__main__":
    main()
