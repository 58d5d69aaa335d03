"""Answers side by side: the studio's way beside transformers' generate one by one and in one batch, a line of JSON a case.

    python tests/bench/decoding.py                       # the starter on the CPU, 16 prompts, 48 tokens
    python tests/bench/decoding.py --model FOLDER --prompts 64 --new 256 --dtype bfloat16 --device cuda

Every way makes the same number of tokens; greedy, so that in float32 they are the same tokens, which is checked. With
an adapter on it the model is PEFT's. Seconds are the best of `--times`, in turns; on the CPU
they are the process's own, so that a busy machine does not count.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

Ids = list[list[int]]


def by_transformers(model: Any, prompts: Ids, new: int) -> Ids:
    """One batch, padded on the left."""
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    with torch.no_grad():
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return made[:, width:].tolist()


def ways(model: Any, decode: Any, prompts: Ids, new: int) -> dict[str, Callable[[], Ids]]:
    from tuner.generate.answers import answers
    from tuner.generate.request import Sampling

    def ours() -> Ids:
        made = answers(model, decode, prompts, Sampling(max_tokens=new), rows=len(prompts))
        return [list(one.ids) for one in made]

    return {
        "one by one": lambda: [row for p in prompts for row in by_transformers(model, [p], new)],
        "batch": lambda: by_transformers(model, prompts, new),
        "tuner": ours,
    }


def prompts_of(tokenizer: Any, count: int) -> Ids:
    names = ("Mia", "Tom", "Leo", "Ada", "Ben", "Eva", "Max", "Zoe")
    asks = [f"{names[i % 8]} lives in a town. {'What else do you know? ' * (i % 5)}" for i in range(count)]
    return [tokenizer.encode(ask) for ask in asks]


def measured(model: Any, tokenizer: Any, options: argparse.Namespace) -> dict[str, Any]:
    prompts = prompts_of(tokenizer, options.prompts)
    each = ways(model, tokenizer.decode, prompts, options.new)
    seconds: dict[str, list[float]] = {name: [] for name in each}
    made: dict[str, Ids] = {}
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    for _ in range(options.times):
        for name, way in each.items():
            began = clock()
            made[name] = way()
            seconds[name].append(clock() - began)
    best = {name: min(values) for name, values in seconds.items()}
    return {
        "seconds": {name: round(value, 3) for name, value in best.items()},
        "times one by one": round(best["one by one"] / best["tuner"], 2),
        "times the batch": round(best["batch"] / best["tuner"], 2),
        "same tokens": sum(a == b for a, b in zip(made["one by one"], made["tuner"], strict=True)),
    }


def main(words: Sequence[str] | None = None) -> None:
    root = Path(__file__).parents[2]
    options_of = argparse.ArgumentParser()
    options_of.add_argument("--model", default=str(root / "data" / "starter"))
    options_of.add_argument("--prompts", type=int, default=16)
    options_of.add_argument("--new", type=int, help="tokens of an answer: 48, on a GPU 256")
    options_of.add_argument("--times", type=int, default=3)
    options_of.add_argument("--dtype", default="float32")
    options_of.add_argument("--device", default=None)
    options_of.add_argument("--threads", type=int, default=1)
    options_of.add_argument(
        "--gpu", action="store_true", help="one model of random weights, see decoding_gpu.py"
    )
    options_of.add_argument("--shape", default="qwen18")
    options_of.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    options_of.add_argument("--sweep", action="store_true", help="also try the kernels' tiles")
    options = options_of.parse_args(words)
    options.device = options.device or ("cuda" if options.gpu else "cpu")
    options.new = options.new or (256 if options.gpu else 48)
    if options.gpu:
        from tests.bench import decoding_gpu

        decoding_gpu.main(options)
        return
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from tuner.data.tokens import load_tokenizer

    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).to(options.device).eval()
    tokenizer = load_tokenizer(options.model)
    print(json.dumps({"adapter": False, **measured(model, tokenizer, options)}), flush=True)
    worn = get_peft_model(
        model, LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False)
    ).eval()
    print(json.dumps({"adapter": True, **measured(worn, tokenizer, options)}), flush=True)


if __name__ == "__main__":
    main()
