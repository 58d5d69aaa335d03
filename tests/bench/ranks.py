"""What a second GPU is worth: SFT, DPO and whole models on 1, 2, ... GPUs at the same batch a GPU, a line of JSON a case.

    python -m tests.bench.ranks --gpus 1,2 --cases sft,dpo              LoRA by the engine that the plan chooses
    python -m tests.bench.ranks --gpus 1,2 --cases sft,dpo --engine trl
    python -m tests.bench.ranks --gpus 1,2 --cases grpo --batch 64 --steps 24 --longest 64
    python -m tests.bench.ranks --gpus 4 --cases full --shape 8b        FSDP2 of all weights
    python -m tests.bench.ranks --cpu --gpus 1,2 --shape tiny           a trial without a GPU

Each case is a run with its own processes as the worker starts them, without queue and MLflow. The first third of its
steps is left out; `ratio` is the rate beside the first number of GPUs of that case.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from tuner import worker  # noqa: E402
from tuner.config.config import Config, make  # noqa: E402
from tuner.engine.live import LiveRun  # noqa: E402
from tuner.jobs import launch, ranks  # noqa: E402
from tuner.runs.run import Run, SilentRun  # noqa: E402

SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"num_key_value_heads": 2, "vocab_size": 400},
    "1.8b": {
        "hidden_size": 2048,
        "intermediate_size": 5504,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    }
    | {"num_key_value_heads": 16, "vocab_size": 151936},
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    }
    | {"num_key_value_heads": 8, "vocab_size": 128256},
}
CASES: dict[str, dict[str, Any]] = {
    "sft": {"stage": "sft", "dataset": "chat"},
    "dpo": {"stage": "dpo", "dataset": "pairs"},
    "grpo": {
        "stage": "grpo",
        "dataset": "chat",
        "num_generations": 8,
        "max_new_tokens": 128,
        "reward_funcs": [{"contains": {"text": "a"}}],
    },
    "full": {
        "stage": "sft",
        "dataset": "chat",
        "finetuning_type": "full",
        "learning_rate": 1e-5,
        "fsdp": "full_shard",
    },
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpus", default="1,2")
    parser.add_argument("--cases", default="sft,dpo")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--shape", default="1.8b", choices=SHAPES)
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--batch", type=int, default=8, help="examples a GPU and step")
    parser.add_argument("--longest", type=int, default=512, help="words of the longest answer")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--home", help="an empty folder with room; a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tuner-ranks-", ignore_cleanup_errors=True) as fresh:
        home = Path(options.home or fresh)
        os.environ |= {
            "TUNER_HOME": str(home),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "HF_HUB_OFFLINE": "1",
        }
        made(home, options.shape, options.longest)
        failed = 0
        for case in options.cases.split(","):
            before = None
            for count in map(int, options.gpus.split(",")):
                found = measured(case, count, options)
                before = before or found.get("tokens_a_second")
                if before and "tokens_a_second" in found:
                    found["ratio"] = round(found["tokens_a_second"] / before, 3)
                failed += "failed" in found
                print(json.dumps(found), flush=True)
    return 1 if failed else 0


def made(home: Path, shape: str, longest: int) -> None:
    """A random model of a shape, and chats and pairs of uneven lengths."""
    import tiny
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[shape], max_position_embeddings=8192, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(home / "model")
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    tiny.tokenizer(home / "model")
    tiny.data(home / "data", rows=1)
    chance = random.Random(0)

    def words() -> str:
        return " ".join(chance.choices(tiny.WORDS, k=chance.randint(longest // 8, longest)))

    asked = [words()[:200] for _ in range(4096)]
    (home / "data" / "chat.json").write_text(
        json.dumps([{"instruction": a, "input": "", "output": words()} for a in asked])
    )
    (home / "data" / "pairs.json").write_text(
        json.dumps([{"instruction": a, "input": "", "chosen": words(), "rejected": words()} for a in asked])
    )


def measured(case: str, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run with so many processes: its rates and the most memory that the first one held."""
    said = {
        "case": case,
        "gpus": count,
        "engine": options.engine,
        "shape": options.shape,
        "batch": options.batch,
    }
    changes = dict(CASES[case])
    if count == 1:
        changes.pop("fsdp", None)
    values = {
        "model_name_or_path": "model", "dataset_dir": "data", "do_train": True, "engine": options.engine,
        "per_device_train_batch_size": options.batch, "max_steps": options.steps, "logging_steps": max(1, options.steps // 18), "bf16": not options.cpu,
        "cutoff_len": 2048, "save_strategy": "no", "use_cpu": options.cpu,
    }  # fmt: skip
    run = Run(f"{case}-{count}-{time.time_ns()}")
    run.create(make(values | changes | {"nproc_per_node": count if count > 1 else None}), run.id)
    visible = "" if options.cpu else ",".join(map(str, range(count)))
    env = os.environ | {"CUDA_VISIBLE_DEVICES": visible, launch.WORKER_VARIABLE: "tests.bench.ranks"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.ranks", run.id], env=env, cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        logs = [
            (done.stdout + done.stderr)[-2000:],
            *(p.read_text()[-2000:] for p in ranks.folder(run).glob("*.log")),
        ]
        return said | {"failed": "\n".join(logs)}
    return said | rates(run, options.batch * count)


def rates(run: Run, examples: int) -> dict[str, Any]:
    """Tokens and examples a second over the last two thirds of the steps."""
    rows = [row for row in run.metrics()[0] if "loss" in row]
    rows = rows[len(rows) // 3 :]
    first, last = rows[0], rows[-1]
    took = last["time"] - first["time"]
    steps = last["step"] - first["step"]
    tokens = sum(b["tokens_per_second"] * (b["time"] - a["time"]) for a, b in itertools.pairwise(rows))
    return {
        "tokens_a_second": round(tokens / took, 1),
        "examples_a_second": round(steps * examples / took, 2),
        "ms_a_step": round(1000 * took / steps, 1),
        "peak_gib": round(run.status().memory_peak / 2**30, 2),
        "taken_by": next((str(said) for said in run.status().notes if said.startswith("Engine")), ""),
        "loss": round(last["loss"], 4),
    }


def be_a_process(run_id: str) -> None:
    """Be one of a run's processes; the first starts the others. A whole model is not saved: that measures a disk."""
    from tuner.engine import trainer

    save = trainer.save
    trainer.save = lambda *words: None if words[1].finetuning_type == "full" else save(*words)
    if ranks.rank():
        sys.exit(worker.live_as_rank(SilentRun(run_id), ranks.rank()))
    run = Run(run_id)
    config = run.config()
    assert isinstance(config, Config)
    with ranks.Ranks(run, config.processes) as others:
        worker._learn(LiveRun(run, config), others.listener)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    if len(sys.argv) == 2 and not sys.argv[1].startswith("-"):
        be_a_process(sys.argv[1])
    sys.exit(main())
