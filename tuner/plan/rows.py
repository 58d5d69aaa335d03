"""The packed engine's rows: what one holds in memory, and how many tokens and kept activations fit. Sizes in bytes.

Pure functions of numbers; no torch. The formulas follow `tuner/engine/packed/layers.py`, which keeps a known list of
tensors per layer; tests/test_estimate.py holds them to counted tensors and to peaks measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from tuner.plan.shape import Memory, ModelShape
from tuner.text.lookup import tr

SHARE = 0.45
"""Of free memory the packed engine plans for: eager rows and captured graphs each hold a row's activations."""
CPU_TOKENS, SMALL_TOKENS = 4096, 2048
"""Tokens of a packed row on a CPU, and with the memory preset."""
SMALL_LOGITS, LOGITS = 64 << 20, 512 << 20
"""Bytes of logits that a packed row holds at a time: with the memory preset or on a CPU, and otherwise."""


@dataclass(frozen=True)
class Layers:
    """Who runs a model's layers, on which the bytes that a row keeps depend.

    `written_out`: the packed engine's own; else the model's, through autograd, which recomputes all of them or none and
    keeps more, most where all weights are trained (`whole`). `taken`: bytes that the step needs beside the row and that
    are not there yet when rows are sized: gradients and the optimizer's moments of what is trained. `multiplied`: bytes
    that a layer keeps for its backward pass however long the row is: PEFT adds an adapter of experts to their weights.
    """

    written_out: bool = True
    whole: bool = False
    taken: int = 0
    multiplied: int = 0


OWN_LAYERS = Layers()


def packed_memory(
    shape: ModelShape,
    *,
    tokens: int,
    scored: int,
    rank: int = 8,
    recompute: int = 0,
    weight_bytes: int = 2,
    logits_bytes: int = LOGITS,
    layers: Layers = OWN_LAYERS,
) -> Memory:
    """A training row of `tokens` tokens, `scored` of them predicted, `recompute` layers recomputed.

    Adapters, their gradients and Adam's two moments are float32; the weights are widened by the columns
    that hold the adapters (see `tuner/engine/packed/lora.py`).
    """
    adapters = 4 * shape.lora_parameters(rank)
    widened = shape.layers * sum(n * _widening(rank, name) for name, (n, _) in shape.linears.items())
    if not layers.written_out:
        widened = 0
    chunk = min(logits_bytes, scored * shape.vocab * weight_bytes)
    return Memory(
        weights=weight_bytes * (shape.parameters + widened),
        adapters=adapters,
        gradients=adapters,
        optimizer=2 * adapters,
        activations=_activations(shape, tokens, recompute, weight_bytes, layers),
        logits=chunk + 3 * scored * shape.hidden * weight_bytes,
    )


def _widening(rank: int, name: str) -> int:
    """Extra columns of a linear's compute matrix: the ranks of its group, rounded up to 32."""
    together = 3 if name in ("q_proj", "k_proj", "v_proj") else 2 if name in ("gate_proj", "up_proj") else 1
    return -(-together * rank // 32) * 32


def layer_activations(shape: ModelShape, weight_bytes: int = 2) -> int:
    """Bytes per token that one layer keeps for its backward pass."""
    q, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    numbers = 4 * shape.hidden + q + 2 * kv + q + 3 * shape.ffn + (q + kv if shape.normed_heads else 0)
    numbers += 2 * shape.hidden if shape.normed_results else 0
    return weight_bytes * numbers + 4 * (shape.heads + 2)


def autograd_activations(shape: ModelShape, *, half: bool, whole: bool) -> int:
    """Bytes per token that autograd keeps of one decoder layer of transformers with SDPA attention: with all weights
    trained (`whole`) or LoRA on all linears, under bf16 autocast (`half`) or in float32."""
    kv = shape.kv_heads * shape.head_size
    experts = _expert_activations(shape, half and not whole)
    if whole and half:
        return 46 * shape.hidden + 6 * kv + 10 * shape.ffn + experts
    if half:
        return 25 * shape.hidden + 4 * kv + 8 * shape.ffn + experts
    return (32 if whole else 24) * shape.hidden + 8 * kv + 16 * shape.ffn + experts


def _expert_activations(shape: ModelShape, half: bool) -> int:
    """The same of the experts that a token takes, to each of which it is copied."""
    if shape.experts is None:
        return 0
    return shape.experts.chosen * (8 * shape.experts.ffn + 4 * shape.hidden) * (1 if half else 2)


def _activations(shape: ModelShape, tokens: int, recompute: int, weight_bytes: int, layers: Layers) -> int:
    kept = shape.layers - recompute
    layer = (
        layer_activations(shape, weight_bytes)
        if layers.written_out
        else autograd_activations(shape, half=weight_bytes == 2, whole=layers.whole)
    )
    # while a layer runs backward: its own tensors if they are recomputed, and the gradients of its widest
    # part
    working = weight_bytes * (3 * shape.ffn + 3 * shape.hidden) + (layer if recompute else 0)
    per_token = kept * layer + recompute * weight_bytes * shape.hidden + working
    return tokens * per_token + max(kept, 1) * layers.multiplied


def packed_rows(
    shape: ModelShape,
    free: int,
    *,
    rank: int = 8,
    weight_bytes: int = 2,
    recompute: int | None = None,
    wanted: int = 4096,
    most: int = 16384,
    layers: Layers = OWN_LAYERS,
) -> tuple[int, int]:
    """(token budget of a row, layers recomputed) for `free` bytes beside the loaded weights.

    Keeps every activation if rows of `wanted` tokens fit; else recomputes half of the layers, else all; or as many as
    `recompute` says.
    """
    some = (0, shape.layers // 2, shape.layers) if layers.written_out else (0, shape.layers)
    choices = some if recompute is None else (recompute,)
    for again in choices:
        budget = _budget(shape, free, rank, weight_bytes, again, layers)
        if budget >= wanted:
            return min(budget, most), again
    return max(budget, 512), choices[-1]


def _budget(
    shape: ModelShape, free: int, rank: int, weight_bytes: int, recompute: int, layers: Layers
) -> int:
    at_one, at_many = (
        packed_memory(
            shape,
            tokens=n,
            scored=n // 2,
            rank=rank,
            recompute=recompute,
            weight_bytes=weight_bytes,
            layers=layers,
        )
        for n in (0, 1 << 14)
    )
    fixed = (layers.taken or at_one.total - at_one.weights) + min(LOGITS, free // 4)
    per_token = (at_many.activations + at_many.logits - min(LOGITS, at_many.logits)) / (1 << 14)
    return int((free - fixed) / per_token) // 256 * 256


@dataclass(frozen=True)
class RowBudget:
    """How the packed engine uses memory: tokens of a training row and of a reference row, recomputed layers, bytes of
    logits held at a time."""

    token_budget: int
    reference_budget: int
    recompute: int
    layers: int
    logits_bytes: int

    def __str__(self) -> str:
        return tr(
            "at most {token_budget} tokens a row, {recompute} of {layers} layers recomputed",
            token_budget=self.token_budget,
            recompute=self.recompute,
            layers=self.layers,
        )


def row_budget(
    shape: ModelShape | None,
    layers: int,
    *,
    on_gpu: bool,
    free: int,
    preset: str = "speed",
    token_budget: int | None = None,
    recompute: int | None = None,
    rank: int = 8,
    weight_bytes: int = 2,
    run_by: Layers = OWN_LAYERS,
) -> RowBudget:
    """The rows of a model with `layers` layers on a device with `free` bytes beside its weights; `token_budget` and
    `recompute` win over what memory allows. `shape` is None for a decoder with other names, whose layers run through
    autograd, which keeps more."""
    logits = LOGITS if on_gpu and preset != "memory" else SMALL_LOGITS
    if preset == "memory":
        tokens, again = SMALL_TOKENS, layers
    elif not on_gpu or shape is None:
        tokens, again = CPU_TOKENS, 0
    else:
        # what the step takes once is there once; a row's activations are there twice
        share = max(0, run_by.taken + int(SHARE * (free - run_by.taken)))
        tokens, again = packed_rows(
            shape, share, rank=rank, weight_bytes=weight_bytes, recompute=recompute, layers=run_by
        )
    reference = min(4 * tokens, 8192)  # nothing is kept for a backward pass
    return RowBudget(
        token_budget or tokens,
        token_budget or reference,
        again if recompute is None else recompute,
        layers,
        logits,
    )


def holds(
    budget: RowBudget,
    shape: ModelShape,
    free: int,
    rank: int = 8,
    weight_bytes: int = 2,
    run_by: Layers = OWN_LAYERS,
) -> bool:
    """Whether a row of this size fits twice, eager and captured in a graph, into `free` bytes beside the weights."""
    needed = packed_memory(
        shape,
        tokens=budget.token_budget,
        scored=budget.token_budget // 2,
        rank=rank,
        recompute=budget.recompute,
        weight_bytes=weight_bytes,
        logits_bytes=budget.logits_bytes,
        layers=run_by,
    )
    return 2 * (needed.activations + needed.logits) + run_by.taken <= free
