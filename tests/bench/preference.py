"""Preference training: the packed engine beside TRL (and LLaMA-Factory where installed) on the same pairs.

    python tests/bench/preference.py                    # what this machine can: a GPU's table, or a CPU's
    python tests/bench/preference.py --cases trl,packed --model qwen3-8b --pairs 64

Every case runs in a process of its own, on the same token ids, with the same LoRA. The last lines are one
JSON object per case. `pairs_per_s` is steady state: the last third of the passes over the pairs (for a
peer, whose steps are all alike: after 3 steps). `whole` is the packed engine's rate over everything,
reference passes and captures included; on a GPU `step_5_s` is the time from process start to step 5.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

START = time.time()
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
DATA = [
    ROOT / "../shared/data/hh_rlhf_en.json",
    ROOT / "shared/data/hh_rlhf_en.json",
    ROOT / "data/hh_rlhf_en.json",
]
TOKENIZER = next(
    (f for f in (ROOT / "../shared/tokenizers/qwen", ROOT / "shared/tokenizers/qwen") if f.is_dir()), ROOT
)
SHAPES = {
    "tiny-3m": ("qwen2", 8192, 128, 9, 4, 4, 384, True),
    "qwen-1.8b": ("qwen2", 151936, 2048, 24, 16, 16, 5504, False),
    "internlm2-1.8b": ("llama", 92544, 2048, 24, 16, 8, 8192, False),
    "gemma-2b": ("gemma", 256000, 2048, 18, 8, 1, 16384, True),
    "qwen3-8b": ("qwen3", 151936, 4096, 36, 32, 8, 12288, False),
    "qwen3-moe-6b": ("qwen3_moe", 151936, 2048, 8, 32, 4, 6144, False),
}
MORE = {
    "qwen3-moe-6b": {
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    }
}
"""What else a shape says; the mixture is that of Qwen3-30B-A3B with a sixth of its layers."""
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "8000000000", "MALLOC_TOP_PAD_": "268435456"}
GPU_CASES = {
    "trl": {"engine": "trl", "steps": 8},
    "trl-tuned": {
        "engine": "trl",
        "steps": 24,
        "options": {
            "gradient_checkpointing": False,
            "precompute_ref_log_probs": True,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1,
        },
    },
    "packed": {"engine": "packed", "profile": True},
    "packed-memory": {"engine": "packed", "preset": "memory"},
    "packed-half": {"engine": "packed", "recompute_share": 0.5},
    "packed-eager": {"engine": "packed", "graphs": False},
    "packed-own-layers": {"engine": "packed", "own_layers": True},
    "llamafactory": {"engine": "llamafactory", "steps": 12},
}
CPU_CASES = {
    "trl-1-thread": {"engine": "trl", "threads": 1, "steps": 6},
    "trl-2-threads": {"engine": "trl", "threads": 2, "steps": 6},
    "packed-1-thread": {"engine": "packed", "threads": 1, "malloc": True},
    "packed-2-threads": {"engine": "packed", "threads": 2, "malloc": True},
    "llamafactory-1-thread": {"engine": "llamafactory", "threads": 1, "steps": 6},
    "llamafactory-2-threads": {"engine": "llamafactory", "threads": 2, "steps": 6},
}


def pairs(name: str, count: int) -> tuple[list[dict], object]:
    """Token ids of real pairs (HH-RLHF harmless-base), with the model's vocabulary or one trained on the
    pairs."""
    path = next((p for p in DATA if p.is_file()), None)
    if path is None:
        raise SystemExit(f"hh_rlhf_en.json was not found beside this checkout ({DATA[0]}).")
    rows = json.loads(path.read_text())
    encode, end, tokenizer = (
        _small_vocabulary(rows) if name == "tiny-3m" else _qwen_vocabulary(SHAPES[name][1])
    )
    return [_encode_pair(row, encode, end) for row in rows[:count]], tokenizer


def _qwen_vocabulary(limit: int):
    from transformers import AutoTokenizer

    folder = os.environ.get("BENCH_TOKENIZER", str(TOKENIZER))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    fold = limit - 1 if limit < 151_936 else limit  # a smaller vocabulary folds the ids it does not have
    if fold < limit:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(1)
    encode = lambda s: [i % fold for i in tokenizer.encode(s, add_special_tokens=False)]  # noqa: E731
    return encode, tokenizer.eos_token_id % fold, tokenizer


def _small_vocabulary(rows: list[dict]):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8192,
        special_tokens=["<eos>", "<pad>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    texts = (m["value"] for r in rows for m in [*r["conversations"], r["chosen"], r["rejected"]])
    raw.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<pad>")
    return (lambda s: raw.encode(s).ids), 0, tokenizer


def _encode_pair(row: dict, encode, end: int) -> dict:
    prompt: list[int] = []
    for m in row["conversations"]:
        if m["from"] == "human":
            prompt += encode("Human: " + m["value"]) + [end] + encode("\nAssistant:")
        else:
            prompt += encode(m["value"]) + [end] + encode("\n")
    chosen, rejected = (encode(row[k]["value"]) + [end] + encode("\n") for k in ("chosen", "rejected"))
    return {"prompt_ids": prompt[-1500:], "chosen_ids": chosen[:500], "rejected_ids": rejected[:500]}


def make_model(name: str, folder: Path) -> None:
    """A random model of this shape on disk: speed does not depend on the weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, vocab, hidden, layers, heads, kv, ffn, tied = SHAPES[name]
    cuda = torch.cuda.is_available()
    given = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": ffn,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 8192,
        "head_dim": hidden // heads,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 1,
    }
    config = AutoConfig.for_model(kind, **given | MORE.get(name, {}))
    torch.manual_seed(0)
    with torch.device("cuda" if cuda else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if cuda else torch.float32)
    model.save_pretrained(folder, max_shard_size="20GB")


def lora(rank: int = 8):
    from peft import LoraConfig

    return LoraConfig(
        r=rank, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )


class Clock:
    """Wall time at every step's end; waits for the device only where a measured stretch begins and ends."""

    def __init__(self, first: int, last: int) -> None:
        import torch
        from transformers import TrainerCallback

        clock, self.times, self.cpu, self.losses, self.norms = self, {}, {}, [], []
        cuda = torch.cuda.is_available()

        class Callback(TrainerCallback):
            def on_train_begin(self, *_, **__):
                if cuda:
                    torch.cuda.synchronize()
                    torch.cuda.reset_peak_memory_stats()
                clock.times[0] = time.time()

            def on_step_end(self, args, state, control, **__):
                if cuda and state.global_step in (5, first, last):
                    torch.cuda.synchronize()
                clock.times[state.global_step] = time.time()
                clock.cpu[state.global_step] = time.process_time()

            def on_log(self, args, state, control, logs=None, **__):
                if "loss" in logs:
                    clock.losses.append(logs["loss"])
                    clock.norms.append(logs["grad_norm"])

        self.callback = Callback()


def child(spec: dict) -> dict:
    """Runs one case in this process and returns its row of the table."""
    import torch

    if spec.get("threads"):
        torch.set_num_threads(spec["threads"])
    cuda = torch.cuda.is_available()
    rows, tokenizer = pairs(spec["model"], spec["pairs"])
    per_epoch = len(rows) // 8
    steps = spec.get("steps") or per_epoch * spec["epochs"]
    first = (
        min(3, steps - 1) if spec.get("steps") else per_epoch * (spec["epochs"] - max(1, spec["epochs"] // 3))
    )
    clock = Clock(first, steps)
    common = {
        "output_dir": tempfile.mkdtemp(),
        "learning_rate": 5e-5,
        "max_steps": steps,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 1.0,
        "logging_steps": 5 if cuda else 2,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": cuda,
        "use_cpu": not cuda,
        "seed": 42,
        "disable_tqdm": True,
    }
    run = {"trl": run_trl, "packed": run_packed, "llamafactory": run_llamafactory}[spec["engine"]]
    extra = run(spec, rows, tokenizer, common, clock)
    span = clock.times[steps] - clock.times[first]
    tokens = sum(sum(map(len, r.values())) + len(r["prompt_ids"]) for r in rows) / len(rows)
    rate = 8 * (steps - first) / span
    out = {
        "case": spec["case"],
        "engine": spec["engine"],
        "model": spec["model"],
        "pairs_per_s": round(rate, 2),
        "real_tokens_per_s": round(rate * tokens),
        "ms_per_step": round(1e3 * span / (steps - first), 2),
        "cpu_ms_per_step": round(1e3 * (clock.cpu[steps] - clock.cpu[first]) / (steps - first), 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
        "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2) if cuda else None,
        "loss_first": round(clock.losses[0], 4),
        "loss_last": round(clock.losses[-1], 4),
        "grad_norm": round(float(clock.norms[0]), 4),  # of the last step before the first log
        "losses": [round(x, 4) for x in clock.losses[:4]],
        "whole_s": round(clock.times[steps] - clock.times[0], 2),
        "step_5_s": round(clock.times[5] - START, 1) if 5 in clock.times else None,
    }
    useful = useful_flops(spec["model"], rows)
    out["useful_tflops"] = round(useful * rate / 1e12, 3)
    return {**out, **extra}


def useful_flops(name: str, rows: list[dict]) -> float:
    """Arithmetic per pair that nobody can avoid: prompts once, frozen weights forward and for input
    gradients."""
    _, vocab, hidden, layers, heads, kv, ffn, _ = SHAPES[name]
    linear = layers * (hidden * hidden * (2 + 2 * kv / heads) + 3 * hidden * ffn)
    tokens = sum(sum(map(len, r.values())) for r in rows) / len(rows)
    scored = sum(len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in rows) / len(rows)
    return 4 * (linear * tokens + vocab * hidden * scored)


def load(spec: dict):
    import torch
    from transformers import AutoModelForCausalLM

    cuda = torch.cuda.is_available()
    where = {"device_map": {"": 0}} if cuda else {}
    return AutoModelForCausalLM.from_pretrained(
        spec["folder"], dtype=torch.bfloat16 if cuda else None, **where
    )


def run_trl(spec: dict, rows, tokenizer, common: dict, clock: Clock) -> dict:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class Tokenised(DPOTrainer):
        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

    options = {**common, "beta": 0.1, "max_length": 2048, **spec.get("options", {})}
    began = time.time()
    trainer = Tokenised(
        model=load(spec),
        args=DPOConfig(**options, remove_unused_columns=False),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora(),
        callbacks=[clock.callback],
    )
    built = time.time() - began
    trainer.train()
    return {"setup_s": round(built, 1)}


def run_packed(spec: dict, rows, tokenizer, common: dict, clock: Clock) -> dict:
    from functools import partial

    import torch
    from peft import get_peft_model
    from transformers import TrainingArguments

    from tuner.engine.losses import LossSettings
    from tuner.engine.packed import trainer as engine
    from tuner.engine.packed.objective import PreferenceObjective
    from tuner.engine.packed.trainer import EngineSettings, PackedTrainer

    if spec.get("own_layers"):  # as architectures run whose layers are not written out
        engine.fused_refusal = lambda model: "asked for"
    model = load(spec)
    torch.manual_seed(42)
    model = get_peft_model(model, lora())
    share = spec.get("recompute_share")
    settings = EngineSettings(
        preset=spec.get("preset", "speed"),
        cuda_graphs=spec.get("graphs", True),
        recompute=None if share is None else int(share * model.config.num_hidden_layers),
    )
    trainer = PackedTrainer(
        model,
        TrainingArguments(**common),
        rows,
        engine=settings,
        callbacks=[clock.callback],
        objective=partial(PreferenceObjective, LossSettings()),
    )
    scoring = _timed(trainer, "_score")
    trainer.train()
    extra = {"reference_s": round(scoring[0], 2), "graphs": len(trainer.runner.graphs.captured)}
    whole = len(rows) * spec["epochs"] / (clock.times[max(clock.times)] - clock.times[0])
    extra["whole_pairs_per_s"] = round(whole, 2)
    if spec.get("profile") and torch.cuda.is_available():
        extra |= profile(trainer, rows[:8])
    return extra


def _timed(owner, name: str) -> list[float]:
    """Adds up the wall time of a method that ends by reading a result."""
    inner, total = getattr(owner, name), [0.0]

    def timed(*args):
        began = time.time()
        out = inner(*args)
        total[0] += time.time() - began
        return out

    setattr(owner, name, timed)
    if owner.references is not None:
        owner.references.score = timed
    return total


def profile(trainer, rows: list[dict]) -> dict:
    """Kernels of one optimizer step, by time; printed, and counted."""
    import torch
    from torch.profiler import ProfilerActivity

    batch = trainer.collate(rows)
    for _ in range(3):
        trainer.training_step(trainer.model, batch)
    torch.cuda.synchronize()
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    began.record()
    for _ in range(10):
        trainer.training_step(trainer.model, batch)
    ended.record()
    torch.cuda.synchronize()
    gpu_ms = began.elapsed_time(ended) / 10
    host = time.time()
    for _ in range(10):
        trainer.training_step(trainer.model, batch)
    host = (time.time() - host) * 100
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as seen:
        trainer.training_step(trainer.model, batch)
        torch.cuda.synchronize()
    events = sorted(seen.key_averages(), key=lambda e: -e.device_time_total)
    for e in events[:22]:
        print(f"  {e.device_time_total / 1e3:7.2f} ms {e.count:5d} x {e.key[:110]}")
    kernels = sum(e.count for e in events)
    return {
        "gpu_ms": round(gpu_ms, 2),
        "host_ms": round(host, 2),
        "kernels": kernels,
        "tokens": _tokens(rows),
    }


def _tokens(rows: list[dict]) -> int:
    return sum(sum(map(len, r.values())) for r in rows)


def run_llamafactory(spec: dict, rows, tokenizer, common: dict, clock: Clock) -> dict:
    """The tutorial's flags; needs LLaMA-Factory importable in this environment."""
    os.environ.update(DISABLE_VERSION_CHECK="1", WANDB_DISABLED="true")
    from llamafactory.train.tuner import run_exp

    tokenizer.save_pretrained(spec["folder"])
    data = next(p for p in DATA if p.is_file()).parent
    options = {
        **common,
        "stage": "dpo",
        "do_train": True,
        "model_name_or_path": spec["folder"],
        "finetuning_type": "lora",
        "template": "default",
        "dataset_dir": str(data),
        "dataset": "hh_rlhf_en",
        "cutoff_len": 2048,
        "max_samples": spec["pairs"],
        "lora_rank": 8,
        "lora_alpha": 16,
        "lora_dropout": 0,
        "lora_target": "all",
        "pref_beta": 0.1,
        "pref_loss": "sigmoid",
        "packing": False,
        "overwrite_output_dir": True,
    }
    run_exp(options, callbacks=[clock.callback])
    return {}


def matmul_ceiling() -> float:
    """TFLOP/s of an 8192 cube in bf16 (GPU), or of a 1024 cube in float32 (CPU)."""
    import torch

    cuda = torch.cuda.is_available()
    n, dtype, device = (8192, torch.bfloat16, "cuda") if cuda else (1024, torch.float32, "cpu")
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    wait = torch.cuda.synchronize if cuda else (lambda: None)
    for _ in range(3):
        a @ b
    wait()
    began = time.time()
    for _ in range(20):
        a @ b
    wait()
    return 2 * n**3 * 20 / (time.time() - began) / 1e12


def made_apart(model: str, folder: str) -> None:
    """`make_model` in a process of its own, which gives the GPU back."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import preference, pathlib; "
    code += f"preference.make_model({model!r}, pathlib.Path({folder!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)


def launch(spec: dict, script: Path = Path(__file__)) -> dict | None:
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    environment |= MALLOC if spec.get("malloc") else {}
    if spec.get("threads"):
        environment["OMP_NUM_THREADS"] = str(spec["threads"])
    python = spec.pop("python", sys.executable)
    command = [python, str(script.resolve()), "--child", json.dumps(spec)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    print("\n".join(line for line in lines if line.startswith("  ")))
    found = [line for line in lines if line.startswith("RESULT ")]
    if done.returncode or not found:
        print(f"case {spec['case']} failed:\n" + "\n".join((done.stdout + done.stderr).splitlines()[-25:]))
        return None
    result = json.loads(found[-1][7:])
    print(json.dumps(result), flush=True)
    return result


def llamafactory_python(asked: str | None) -> str | None:
    """The interpreter of the peer's own environment; its pins clash with ours, so it cannot share one."""
    if asked != "install":
        return asked
    folder = ROOT / ".cache" / "llamafactory"
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pins = ["torch==2.13.*", "llamafactory==0.9.5", "transformers==5.6.0", "trl==0.24.0", "peft==0.18.1"]
        pins += ["accelerate==1.11.0", "datasets==4.0.0", "tokenizers==0.22.2"]
        subprocess.run([str(python), "-m", "pip", "install", "-q", *pins], check=True)
        # Its picture and sound libraries have no CPU build beside this torch; text needs none of them.
        media = ["torchvision", "torchaudio", "av"]
        subprocess.run([str(python), "-m", "pip", "uninstall", "-q", "-y", *media], check=True)
        next(folder.glob("lib/python*/site-packages")).joinpath("torchaudio.py").touch()
    return str(python)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SHAPES, help="default: qwen-1.8b on a GPU, tiny-3m on a CPU")
    parser.add_argument("--pairs", type=int, help="default: 320 on a GPU, 48 on a CPU")
    parser.add_argument(
        "--epochs", type=int, help="passes of the packed engine; default: 6 on a GPU, 3 on a CPU"
    )
    parser.add_argument("--cases", help="comma-separated; default: all that can run here")
    parser.add_argument(
        "--llamafactory",
        metavar="PYTHON",
        help="the python of an environment that has LLaMA-Factory 0.9.5; 'install' makes one in .cache",
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print("RESULT " + json.dumps(child(json.loads(options.child))))
        return
    import importlib.util

    import torch

    cuda = torch.cuda.is_available()
    table = GPU_CASES if cuda else CPU_CASES
    names = options.cases.split(",") if options.cases else list(table)
    peer = llamafactory_python(options.llamafactory)
    if not peer and importlib.util.find_spec("llamafactory") is None and not options.cases:
        names = [n for n in names if not n.startswith("llamafactory")]
        print("LLaMA-Factory is not installed in this environment; its case is left out.")
    model, count = (
        options.model or ("qwen-1.8b" if cuda else "tiny-3m"),
        options.pairs or (320 if cuda else 48),
    )
    ceiling = matmul_ceiling()
    print(f"matmul ceiling {ceiling:.3f} TFLOP/s")
    with tempfile.TemporaryDirectory() as folder:
        made_apart(model, folder)
        shared = {
            "model": model,
            "pairs": count,
            "epochs": options.epochs or (6 if cuda else 3),
            "folder": folder,
        }
        cases = [{"case": name, **shared, **table[name]} for name in names]
        own = {"python": peer} if peer else {}
        results = [launch({**case, **(own if case["engine"] == "llamafactory" else {})}) for case in cases]
    results = [r for r in results if r]
    peers = [r["pairs_per_s"] for r in results if r["engine"] == "trl" and "tuned" not in r["case"]]
    for r in results:
        r["ratio_to_trl"] = round(r["pairs_per_s"] / max(peers), 2) if peers else None
        r["share_of_ceiling"] = round(r["useful_tflops"] / ceiling, 4)
        print(json.dumps(r))


if __name__ == "__main__":
    main()
