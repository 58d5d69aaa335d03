"""Answers on a GPU, a line of JSON a case: transformers' generate, PEFT's, and the studio's, of one model of random weights.

    python tests/bench/decoding.py --gpu                 # Qwen-1.8B's shape in bfloat16, LoRA r 8 on all linears
    python tests/bench/decoding.py --gpu --shape tiny --device cpu

The first case checks in float32, on a small shape, that all ways make the same tokens. Each way is run once to warm up and
then timed once; greedy, 100 prompt tokens and 256 new ones. `first_s` is the time to the first token, told to a listener.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

Ids = list[list[int]]
Way = Callable[[Ids, int], Ids]
SHAPES = {
    "qwen18": (2048, 24, 16, 5504, 151936),
    "small": (512, 4, 4, 1408, 8000),
    "tiny": (64, 2, 4, 128, 800),
}


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def model_of(shape: str, device: str, dtype: str, keys: int = 0, kind: str = "qwen2") -> Any:
    """A model of random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    hidden, layers, heads, middle, vocabulary = SHAPES[shape]
    config = AutoConfig.for_model(
        kind,
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys or heads,
        head_dim=hidden // heads,
        intermediate_size=middle,
        tie_word_embeddings=False,
        max_position_embeddings=8192,
        initializer_range=0.02 if shape == "qwen18" else 0.1,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    model.generation_config = GenerationConfig(eos_token_id=None, pad_token_id=0, do_sample=False)
    return model.requires_grad_(False)


def with_lora(model: Any, *names: str) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
    worn = get_peft_model(model, lora, adapter_name=names[0] if names else "default")
    for name in names[1:]:
        worn.add_adapter(name, lora)
    return worn.eval()


def prompts_of(count: int, length: int, vocabulary: int) -> Ids:
    import torch

    torch.manual_seed(2)
    made: Ids = torch.randint(3, vocabulary, (count, length)).tolist()
    return made


def by_generate(model: Any, prompts: Ids, new: int) -> Ids:
    import torch

    ids = torch.tensor(prompts, device=model.device)
    with torch.no_grad():
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new)
    return made[:, ids.shape[1] :].tolist()


def spelled(ids: Any, skip: bool = False) -> str:
    """Something like a tokenizer's time is not measured here: it is the same for all ways."""
    return "".join(f" {i}" for i in ids)


class Named:
    """PEFT's adapters by name; empty is the base."""

    def __init__(self, model: Any):
        self.model, self.now = model, None

    def use(self, name: str) -> None:
        if name != self.now:
            on = self.model.base_model
            on.enable_adapter_layers() if name else on.disable_adapter_layers()
            if name:
                self.model.set_adapter(name)
            self.now = name


class Held:
    """The studio's way as a served model has it: one decoder for all requests. `names` are the adapters that they wear in
    turn, `wish` how their tokens are chosen."""

    def __init__(self, model: Any, rows: int, names: Sequence[str] = (), **wish: Any):
        from tuner.generate.decoder import Decoder
        from tuner.generate.scheduler import Scheduler

        self.scheduler = Scheduler(Decoder(model), spelled, Named(model) if names else None, most=rows)
        self.names, self.wish, self.first = names or [""], wish, 0.0

    def __call__(self, prompts: Ids, new: int) -> Ids:
        import torch

        from tuner.generate.answers import Collected
        from tuner.generate.request import Sampling

        wish = Sampling(max_tokens=new, **self.wish)
        asked = [Collected(p, wish, self.names[n % len(self.names)]) for n, p in enumerate(prompts)]
        began = time.perf_counter()
        with torch.no_grad():
            for one in asked:
                self.scheduler.submit(one.request)
            self.scheduler.step()
            self.first = time.perf_counter() - began
            while self.scheduler.busy:
                self.scheduler.step()
        return [list(one.answer.ids) for one in asked]


def sync(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def timed(work: Way, prompts: Ids, new: int, device: str) -> tuple[float, Ids]:
    """Seconds of the second time; the first one is short where nothing has to be prepared."""
    import torch

    work(prompts, new if isinstance(work, Held) else 16)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    sync(device)
    began = time.perf_counter()
    made = work(prompts, new)
    sync(device)
    return time.perf_counter() - began, made


def peak(device: str) -> float | None:
    import torch

    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if device == "cuda" else None


def checked(device: str) -> None:
    """All ways make the same tokens in float32, with and without an adapter, alone and side by side."""
    for kind, keys in (("qwen2", 4), ("qwen3", 2), ("llama", 1)):
        model = model_of("small" if device == "cuda" else "tiny", device, "float32", keys, kind)
        for adapter in (False, True):
            worn = with_lora(model) if adapter else model
            prompts = [p[: 20 + 7 * n] for n, p in enumerate(prompts_of(9, 100, 800))]
            expected = [by_generate(worn, [p], 64)[0] for p in prompts]
            held = Held(worn, 9)
            made, again = held(prompts, 64), held(prompts, 64)
            alone = [held([p], 64)[0] for p in prompts[:3]]
            say(
                case="same tokens", kind=kind, key_heads=keys, adapter=adapter,
                batch=_same(expected, made), again=_same(made, again), alone=_same(expected, alone),
                first_apart=[_apart(worn, p, a, b) for p, a, b in zip(prompts, expected, made, strict=True) if a != b],
            )  # fmt: skip


def _same(some: Ids, others: Ids) -> str:
    return f"{sum(a == b for a, b in zip(some, others, strict=False))}/{len(others)}"


def _apart(model: Any, prompt: list[int], expected: list[int], made: list[int]) -> dict[str, float]:
    """Where two answers part, and by how much the model itself prefers one token to the other there."""
    import torch

    at = next(i for i, (a, b) in enumerate(zip(expected, made, strict=True)) if a != b)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + expected[:at]], device=model.device)).logits[0, -1].double()
    return {"at": at, "by": float(logits[expected[at]] - logits[made[at]]), "spread": float(logits.std())}


def mixed(device: str) -> None:
    """Rows of several adapters and of the base in one batch make the tokens that each makes alone."""
    model = with_lora(model_of("small" if device == "cuda" else "tiny", device, "float32", 2), "one", "two")
    names, prompts = ["one", "", "two"], prompts_of(9, 40, 800)
    made = Held(model, 9, names)(prompts, 48)
    expected, switch = [], Named(model)
    for n, prompt in enumerate(prompts):
        switch.use(names[n % 3])
        expected += by_generate(model, [prompt], 48)
    say(case="same tokens", adapters=names, batch=_same(expected, made))


def raced(model: Any, name: str, options: argparse.Namespace) -> None:
    """Both ways at each number of rows."""
    for rows in options.rows:
        ways: dict[str, Way] = {"generate": partial(by_generate, model), "tuner": Held(model, rows)}
        rates = {way: rated(name, way, work, rows, options) for way, work in ways.items()}
        say(case=name, rows=rows, times=round(rates["tuner"] / rates["generate"], 2))


def rated(name: str, way: str, work: Way, rows: int, options: argparse.Namespace) -> float:
    """Tokens a second of one way."""
    prompts = prompts_of(rows, 100, SHAPES[options.shape][4])
    seconds, _ = timed(work, prompts, options.new, options.device)
    more = {"first_s": round(work.first, 4)} if isinstance(work, Held) else {}
    rate = rows * options.new / seconds
    say(
        case=name,
        way=way,
        rows=rows,
        tokens_s=round(rate, 1),
        s=round(seconds, 3),
        gib=peak(options.device),
        **more,
    )
    return rate


def more_ways(model: Any, options: argparse.Namespace) -> None:
    """Tokens drawn by chance, and four adapters in one batch."""
    for rows in options.rows:
        rated("lora, drawn", "tuner", Held(model, rows, temperature=0.8, seed=1), rows, options)
        rated(
            "lora, drawn, top_p",
            "tuner",
            Held(model, rows, temperature=0.8, top_p=0.9, seed=1),
            rows,
            options,
        )
        rated(
            "lora, drawn, top_k", "tuner", Held(model, rows, temperature=0.8, top_k=50, seed=1), rows, options
        )
    from peft import LoraConfig

    for name in ("b", "c", "d"):
        model.add_adapter(name, LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False))
    model.eval()
    for rows in options.rows:
        rated("four adapters", "tuner", Held(model, rows, ["default", "b", "c", "d"]), rows, options)


def step_ms(held: Held, rows: int) -> float:
    """Milliseconds of one replayed step over rows of 228 tokens."""
    import torch

    steps = held.scheduler.decoder.statics.idle[-1]
    steps.arena.reserve(rows, 256)
    steps.arena.lengths[:rows] = 228
    for _ in range(4):
        steps(rows, 229)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(100):
        steps(rows, 229)
    torch.cuda.synchronize()
    return round((time.perf_counter() - began) * 10, 3)


def profiled(model: Any, options: argparse.Namespace) -> None:
    """The kernels of some steps by time, and how long a step takes."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    for rows in options.rows:
        held, prompts = Held(model, rows), prompts_of(rows, 100, SHAPES[options.shape][4])
        held(prompts, 24)
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            began = time.perf_counter()
            held(prompts, 24)
            torch.cuda.synchronize()
            seconds = time.perf_counter() - began
        events = [e for e in seen.key_averages() if e.self_device_time_total]
        events.sort(key=lambda e: -e.self_device_time_total)
        total = sum(e.self_device_time_total for e in events)
        ms = step_ms(held, rows)
        say(case="profile", rows=rows, step_ms=ms, s=round(seconds, 3), device_s=round(total / 1e6, 4))
        for e in events[:14]:
            say(kernel=e.key[:90], us=round(e.self_device_time_total), calls=e.count)


def swept(options: argparse.Namespace) -> None:
    """Which tile is fastest for one row, by the shape of the weight."""
    hidden, _, _, middle, vocabulary = SHAPES[options.shape]
    for n, width, gated in ((3 * hidden, hidden, False), (hidden, hidden, False), (middle, hidden, True),
                            (hidden, middle, False), (vocabulary, hidden, False), (32, hidden, False)):  # fmt: skip
        _swept(n, width, gated)


def _swept(n: int, width: int, gated: bool) -> None:
    import torch
    import triton

    from tuner.generate import step_triton as k

    copies = min(40, max(2, 200_000_000 // (n * width * 2 * (1 + gated))))  # more than the cache holds
    like = {"device": "cuda", "dtype": torch.bfloat16}
    weights = torch.randn(copies, n * (1 + gated), width, **like)
    x, out = torch.randn(1, width, **like), torch.empty(1, n, **like)

    def clocked(work: Callable[[], Any]) -> float:
        return float(triton.testing.do_bench_cudagraph(work, rep=5) / copies * 1000)

    def ours() -> None:
        for weight in weights:
            k._vector(x, weight, out, None, gated=gated)

    found = []
    for tile in product((1, 2, 4), (512, 1024, 2048), (2, 4, 8)):
        if 1024 <= tile[0] * tile[1] <= 8192:
            k.tile = lambda width, gated, tile=tile: tile
            found.append((round(clocked(ours), 2), tile))
    found.sort()
    library = clocked(lambda: [x @ w.t() for w in weights])
    say(case="sweep", n=n, k=width, gated=gated, best=found[:5], worst=found[-1], library=round(library, 2),
        bytes_us=round(weights[0].numel() * 2 / 3.0e6, 2))  # fmt: skip


def main(options: argparse.Namespace) -> None:
    import peft
    import torch
    import transformers

    name = torch.cuda.get_device_name(0) if options.device == "cuda" else "cpu"
    say(
        case="env",
        torch=torch.__version__,
        transformers=transformers.__version__,
        peft=peft.__version__,
        device=name,
    )
    torch.backends.cuda.matmul.allow_tf32 = False
    checked(options.device)
    mixed(options.device)
    dtype = "bfloat16" if options.device == "cuda" else "float32"
    model = model_of(options.shape, options.device, dtype)
    raced(model, "base", options)
    worn = with_lora(model)
    raced(worn, "lora", options)
    if options.device == "cuda":
        profiled(worn, options)
    more_ways(worn, options)
    if options.sweep:
        swept(options)
