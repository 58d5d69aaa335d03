"""Sizes before anything is loaded: what a run needs in memory, from its config and the numbers of its model, in bytes.

No torch. The formulas of TRL's trainers are what autograd keeps of a transformers decoder; those of packed rows are in
`rows.py`. tests/test_estimate.py holds both to counted tensors and to peaks measured on a GPU.
"""

from __future__ import annotations

from dataclasses import replace

from tuner.config.config import Config
from tuner.data.encode import packs
from tuner.plan.engine import goes_on, grows
from tuner.plan.rows import OWN_LAYERS, Layers, RowBudget, autograd_activations, packed_memory
from tuner.plan.schedule import Schedule
from tuner.plan.shape import Lengths, Memory, ModelShape

SIDE_BY_SIDE = 64
"""Answers that are written at once on a CPU; there the rest waits for a place."""


def run_memory(
    config: Config,
    shape: ModelShape,
    lengths: Lengths,
    again: bool,
    budget: RowBudget | None,
    rank: int,
    run_by: Layers = OWN_LAYERS,
) -> Memory:
    """What a run holds at its peak on each of its devices; `budget` are the packed engine's rows, None for TRL's batches,
    whose activations are computed `again` in the backward pass or kept."""
    trained_numbers, width = trained(config, shape, rank), trained_bytes(config)
    steps = (
        _packed_step(config, shape, lengths, budget, rank, run_by)
        if budget
        else _padded_step(config, shape, lengths, again)
    )
    parts = config.processes if config.sharded else 1
    return replace(
        steps,
        weights=weights(config, shape) // parts + steps.weights,
        adapters=0 if _whole(config) else trained_numbers * width // parts,
        gradients=trained_numbers * width // parts,
        optimizer=optimizer(config, trained_numbers) // parts,
    )


def _whole(config: Config) -> bool:
    return config.finetuning_type in ("full", "freeze")


def frozen_bytes(config: Config) -> int:
    """Bytes of a frozen weight."""
    return 2 if _half(config) else 4


def trained_bytes(config: Config) -> int:
    """Bytes of a trained weight."""
    return 2 if config.pure_bf16 else 4


def _half(config: Config) -> bool:
    return bool(config.bf16 or config.fp16 or config.pure_bf16)


def trained(config: Config, shape: ModelShape, rank: int) -> int:
    """How many numbers are trained."""
    seen = _seeing(config, shape, rank)
    if config.finetuning_type == "full":
        return seen + _language(config, shape.of_language)
    if config.finetuning_type == "freeze":
        return min(shape.layers, abs(int(config.freeze_trainable_layers))) * shape.of_layer
    if config.finetuning_type == "oft":
        return (
            shape.layers * sum(k for _, k in shape.linears.values()) * max(1, int(config.oft_block_size)) // 2
        )
    return (
        seen
        + _language(config, shape.lora_parameters(rank, config.lora_target))
        + _whole_ends(config, shape) * shape.vocab * shape.hidden
    )


def _language(config: Config, numbers: int) -> int:
    return 0 if config.freeze_language_model else numbers


def _seeing(config: Config, shape: ModelShape, rank: int) -> int:
    """How many numbers are trained of what sees."""
    tower = shape.tower
    if tower is None or config.finetuning_type not in ("full", "lora"):
        return 0
    whole = config.finetuning_type == "full"
    found = 0
    if not config.freeze_vision_tower:
        found += tower.parameters if whole else tower.lora_parameters(rank)
    if not config.freeze_multi_modal_projector:
        found += tower.projector if whole else rank * tower.sides
    return found


def _whole_ends(config: Config, shape: ModelShape) -> int:
    """How many of embeddings and head are trained whole beside an adapter."""
    if goes_on(config):
        return 0
    if not config.additional_target and grows(config):
        return 1 if shape.tied else 2
    return sum(name in config.additional_target for name in ("embed_tokens", "lm_head"))


def weights(config: Config, shape: ModelShape) -> int:
    """The base model, and a second one where a whole model is compared with what it was."""
    kept = 2 if _half(config) else 4
    embeddings = shape.vocab * shape.hidden * (1 if shape.tied else 2)
    inner = shape.parameters - embeddings
    per_number = {4: 0.56, 8: 1.0}.get(config.quantization_bit or 0, float(kept))  # 4 bits and their scales
    frozen = int(inner * per_number) + embeddings * kept
    if config.fp8:
        frozen += 2 * inner  # each weight once more by rows and once by columns, a byte each
    scorer = (
        frozen if config.kind.rewarded and config.reward_model and config.reward_model_type == "lora" else 0
    )
    if not _whole(config):
        return frozen + scorer
    own = shape.parameters * (2 if config.pure_bf16 else 4)  # frozen parts of a whole model too
    first = own if config.kind.rewarded and (config.beta or config.kind.baseline == "value") else 0
    return own + scorer + first + (frozen if config.kind.needs_reference else 0)


def _optimizer_bytes(name: str, width: int) -> float:
    """Bytes of optimizer state for each trained number, by what the optimizer's name tells of it."""
    if "adafactor" in name or name.startswith("sgd"):
        return 0
    moments = 1 if any(part in name for part in ("lion", "muon", "rmsprop", "adagrad")) else 2
    small = 1 if "8bit" in name else 0.5 if "4bit" in name else width
    return moments * small


def optimizer(config: Config, numbers: int) -> int:
    """Bytes of the optimizer's state for so many trained numbers."""
    return int(numbers * _optimizer_bytes(config.optim, trained_bytes(config)))


def layers_of(config: Config, shape: ModelShape | None, rank: int, written_out: bool) -> Layers:
    """Who runs the layers of a run on packed rows, and what its step takes beside a row."""
    if shape is None or (written_out and not _whole(config)):
        return Layers(written_out)
    numbers = trained(config, shape, rank)
    taken = numbers * trained_bytes(config) + optimizer(config, numbers)
    return Layers(written_out, _whole(config), taken, multiplied(config, shape))


def multiplied(config: Config, shape: ModelShape) -> int:
    """Bytes of a layer's experts with their adapter added: PEFT does so in each forward pass and keeps it for the backward."""
    reached = (
        shape.experts is not None and shape.experts.adapted and not {*config.lora_target} & {*shape.linears}
    )
    return shape.of_experts * frozen_bytes(config) if reached and config.finetuning_type == "lora" else 0


def written(config: Config, shape: ModelShape, lengths: Lengths, on_gpu: bool) -> int:
    """Keys and values of the answers that are written side by side, each as long as it may become."""
    schedule = Schedule.of(config, 0)
    answers = schedule.batch * schedule.written
    columns = min(config.cutoff_len, lengths.longest) + config.max_new_tokens
    column = 2 * shape.layers * shape.kv_heads * shape.head_size * frozen_bytes(config)
    return (answers if on_gpu else min(answers, SIDE_BY_SIDE)) * columns * column


def _learnt_tokens(config: Config, lengths: Lengths) -> int:
    """Tokens of a step that learns from answers of its own: the prompts, each once, and all answers at their longest."""
    answers = config.per_device_train_batch_size * config.gradient_accumulation_steps
    prompts = max(1, answers // Schedule.of(config, 0).answers)
    return int(prompts * min(lengths.mean, config.cutoff_len)) + answers * config.max_new_tokens


def _packed_step(
    config: Config, shape: ModelShape, lengths: Lengths, budget: RowBudget, rank: int, run_by: Layers
) -> Memory:
    """The packed engine's row of a step; of its `weights` only the columns that the adapters add.

    The row that counts is the longest size that rows are padded to, the largest of 512 steps that were drawn
    (`engine/packed/bucket_sizes.py`): 3 standard deviations above the mean.
    """
    examples = config.per_device_train_batch_size * config.gradient_accumulation_steps
    longest = config.cutoff_len * (1 if config.kind.learns_tokens else 2)
    wanted = int(examples * lengths.mean + 3 * examples**0.5 * lengths.deviation)
    wanted = min(examples * longest if packs(config) else wanted, examples * longest)
    if config.kind.rewarded:
        wanted, longest = _learnt_tokens(config, lengths), config.cutoff_len + config.max_new_tokens
    # an example longer than the budget gets a row of its own
    tokens = max(min(budget.token_budget, wanted), min(lengths.longest, longest))
    width = frozen_bytes(config)
    step = packed_memory(
        shape,
        tokens=tokens,
        scored=_scored(config, tokens),
        rank=rank,
        recompute=budget.recompute,
        weight_bytes=width,
        logits_bytes=budget.logits_bytes,
        layers=run_by,
    )
    # a quantized layer is multiplied out for its products, and its largest matrix once more on the way
    layer = [n * k for n, k in shape.linears.values()]
    scratch = width * (sum(layer) + max(layer)) if config.quantization_bit and run_by.written_out else 0
    return replace(step, weights=step.weights - width * shape.parameters + scratch)


def _scored(config: Config, tokens: int) -> int:
    """How many of a row's tokens are scored: at most all where tokens are learned, about half of pairs."""
    if config.kind.learns_tokens or config.kind.rewarded:
        return tokens
    return 0 if config.kind.scores or config.kind.rows == "decisions" else tokens // 2


def _padded_step(config: Config, shape: ModelShape, lengths: Lengths, again: bool) -> Memory:
    """A micro-batch of TRL's trainers, as long as its longest example; logits are made in pieces of 256 tokens."""
    if config.kind.rewarded:
        return _padded_answers(config, shape, lengths, again)
    each = config.cutoff_len if packs(config) else min(config.cutoff_len, lengths.longest)
    tokens = config.per_device_train_batch_size * (2 if config.kind.rows == "pairs" else 1) * each
    layer, width = autograd_activations(shape, half=_half(config), whole=_whole(config)), frozen_bytes(config)
    kept, whole = shape.layers * layer, multiplied(config, shape) * (1 if again else shape.layers)
    if again:
        kept = shape.layers * width * shape.hidden + layer
    logits = (
        0 if config.kind.scores or config.kind.rows == "decisions" else min(tokens, 256) * shape.vocab * 12
    )
    return Memory(0, 0, 0, 0, tokens * kept + whole + _looks(config, shape, tokens), logits)


def _looks(config: Config, shape: ModelShape, tokens: int) -> int:
    """What looking at pictures takes where most of a batch's tokens are theirs."""
    if shape.tower is None:
        return 0
    trained_too = not (config.freeze_vision_tower and config.freeze_multi_modal_projector)
    return shape.tower.kept(tokens * shape.tower.pooled, frozen_bytes(config), trained_too)


def padded_budget(vocab: int) -> int:
    """Tokens of a row of padded answers, whose logits are made all at once: what 2 GiB hold of them three times over."""
    return max(512, (2 << 30) // (12 * vocab))


def _padded_answers(config: Config, shape: ModelShape, lengths: Lengths, again: bool) -> Memory:
    """A row of answers as padded sequences, each behind its prompt."""
    one = min(lengths.longest, config.cutoff_len) + config.max_new_tokens
    tokens = max(one, min(padded_budget(shape.vocab), _learnt_tokens(config, lengths)))
    kept = shape.layers * autograd_activations(shape, half=_half(config), whole=_whole(config))
    if again:
        kept = shape.layers * frozen_bytes(config) * shape.hidden + kept // shape.layers
    return Memory(0, 0, 0, 0, tokens * kept, tokens * shape.vocab * 12)


ROOM = 0.7
"""Share of a GPU's free memory that a step may take which keeps its activations: what is estimated is not what comes."""


def recomputes(config: Config, on_gpu: bool, kept: int | None = None, free: int = 0) -> bool:
    """Whether TRL's trainers compute activations again in the backward pass: as asked, else on a GPU on which a run that
    keeps them, of `kept` bytes in all, would not fit well into `free`, or whose size is not known."""
    asked = asked_to_recompute(config)
    if asked is not None:
        return asked
    fits = kept is not None and kept <= ROOM * free and config.flash_attn != "disabled"
    return on_gpu and not fits


def asked_to_recompute(config: Config) -> bool | None:
    """What the knobs say of it; None where it is left to the machine."""
    if config.gradient_checkpointing is not None:
        return bool(config.gradient_checkpointing)
    return False if config.disable_gradient_checkpointing else None
