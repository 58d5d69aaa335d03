"""Decoder layers of the Llama family written out for one token a row: what of a model they read, and the step itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from tuner.generate import step_torch
from tuner.generate.arena import Arena, Sizes
from tuner.generate.step_torch import Heads
from tuner.models.linears import Adapted, Linears, Pair, adapted, pairs_on, together
from tuner.models.llama_family import LAYER_CLASSES, Norm, base_of, in_use
from tuner.plan.engine import HEAD_SIZES

ROTARY = frozenset({"default", "linear", "llama3", "yarn"})
"""Kinds of rotary embedding whose angles depend on nothing but the position."""


@dataclass(frozen=True)
class Layer:
    """One decoder layer: its linears by group, norms and heads."""

    groups: tuple[Linears, Linears, Linears, Linears]  # qkv, o, gate and up, down
    norms: tuple[Norm, Norm]
    heads: Heads


@dataclass(frozen=True)
class Ends:
    """What stands before the layers and after them. Rows with the same can stand in one arena."""

    embedding: Tensor
    head: nn.Linear

    @property
    def key(self) -> tuple[int, int]:
        return self.embedding.data_ptr(), self.head.weight.data_ptr()


@dataclass(frozen=True)
class Outfit:
    """What one adapter puts on the linears: pairs by layer and group, and on the head."""

    layers: list[tuple[list[Pair], ...]]
    head: list[Pair]


@dataclass(frozen=True)
class Worn:
    """What the rows of an arena wear, by layer and group, and the head. `owners` is whose each rank is, in the kinds that
    there are, where the rows wear different things."""

    groups: list[tuple[Adapted | None, ...]]
    embedding: Tensor
    head: Linears
    head_lora: Adapted | None
    owners: dict[tuple[int, ...], Tensor]

    def overwrite(self, fresh: Worn) -> None:
        """Become another of the same adapters, in the memory of this one."""
        for own, new in zip([*_parts_of(self)], [*_parts_of(fresh)], strict=True):
            own.a.copy_(new.a)
            own.b.copy_(new.b)

    def hidden(self, worn: Tensor) -> dict[tuple[int, ...], Tensor]:
        """Which ranks are not a row's own [rows, R], by kind, from the numbers of what the rows wear."""
        return {key: owners[None] != worn[:, None] for key, owners in self.owners.items()}


def _parts_of(worn: Worn) -> Iterator[Adapted]:
    for lora in [*(one for group in worn.groups for one in group), worn.head_lora]:
        if lora is not None:
            yield lora


State = tuple[str, ...]


def state_of(model: nn.Module) -> State:
    """Which adapters are on a model now: `Worn` is another where this is."""
    # PEFT switches its layers together, but not what is trained whole: that is off while another's adapter is on.
    worn = (m for m in model.modules() if isinstance(m, BaseTunerLayer))
    first = next(worn, None)
    return () if first is None or first.disable_adapters else tuple(first.active_adapters)


class Written:
    """A model's layers for steps of one token; `refusal` says of which models."""

    def __init__(self, model: Any):
        self.model = model
        self.decoder = model.model
        self.device = self.decoder.norm.weight.device
        self.dtype = self.decoder.norm.weight.dtype
        self.kernels = kernels_for(self.device)
        self.layers = [_layer(layer) for layer in self.decoder.layers]
        self.norm = _norm(self.decoder.norm)
        heads = self.layers[0].heads
        self.sizes = Sizes(len(self.layers), heads.keys, heads.size)
        self.windows = {layer.heads.window for layer in self.layers}

    def ends(self) -> Ends:
        """The ends that are in use now."""
        return Ends(in_use(self.decoder.embed_tokens).weight.data, base_of(in_use(self.model.lm_head)))

    def outfit(self) -> Outfit:
        """What is on the linears now."""
        layers = [tuple(pairs_on(group) for group in _groups(layer)) for layer in self.decoder.layers]
        return Outfit(layers, pairs_on([in_use(self.model.lm_head)]))

    def worn(self, ends: Ends, outfits: Sequence[Outfit]) -> Worn:
        """Several outfits at once; the first is number 0."""
        like, grain, head = self.decoder.norm.weight, self.kernels.GRAIN, together([ends.head])
        groups = [
            tuple(
                adapted([outfit.layers[n][i] for outfit in outfits], group.outputs, like, grain)
                for i, group in enumerate(layer.groups)
            )
            for n, layer in enumerate(self.layers)
        ]
        on_head = adapted([outfit.head for outfit in outfits], head.outputs, like, grain)
        kinds = {lora.owners for lora in [on_head, *(x for g in groups for x in g)] if lora is not None}
        owners = {key: torch.tensor(key, device=self.device) for key in kinds} if len(outfits) > 1 else {}
        return Worn(groups, ends.embedding, head, on_head, owners)

    def table(self, positions: int) -> tuple[Tensor, Tensor]:
        """Rotary cosines and sines [positions, D] in float32."""
        probe = torch.empty(0, dtype=torch.float32, device=self.device)
        cos, sin = self.decoder.rotary_emb(probe, torch.arange(positions, device=self.device)[None])
        return cos[0].contiguous(), sin[0].contiguous()

    def step(self, worn: Worn, arena: Arena, table: tuple[Tensor, Tensor], rows: int, columns: int) -> Tensor:
        """Reads the next token of the first `rows` rows into the arena; logits [rows, vocabulary] after it.

        `columns` is at least what the longest of them then holds.
        """
        k = self.kernels
        where = k.place(arena, rows, columns, table, self.windows)
        hidden = worn.hidden(arena.worn[:rows])
        x = nn.functional.embedding(arena.tokens[:rows], worn.embedding)
        for number, layer in enumerate(self.layers):
            (qkv, o, gate_up, down) = layer.groups
            lora = [_hiding(one, hidden) for one in worn.groups[number]]
            mixed = k.attend(k.linear(x, qkv, lora[0], norm=layer.norms[0]), layer.heads, number, where)
            x = k.linear(mixed, o, lora[1], residual=x)
            x = k.linear(k.gated(x, gate_up, lora[2], layer.norms[1]), down, lora[3], residual=x)
        logits: Tensor = k.linear(x, worn.head, _hiding(worn.head_lora, hidden), norm=self.norm)
        return logits


def _hiding(lora: Adapted | None, hidden: dict[tuple[int, ...], Tensor]) -> Adapted | None:
    """LoRA that hides from each row what is not its own."""
    return lora if lora is None or not hidden else replace(lora, hidden=hidden[lora.owners])


def kernels_for(device: torch.device) -> ModuleType:
    if device.type == "cuda":
        from tuner.generate import step_triton

        return step_triton
    return step_torch


def _groups(layer: Any) -> tuple[list[nn.Module], ...]:
    a, m = layer.self_attn, layer.mlp
    return [a.q_proj, a.k_proj, a.v_proj], [a.o_proj], [m.gate_proj, m.up_proj], [m.down_proj]


def _norm(module: Any) -> Norm:
    return Norm(module.weight.data, float(module.variance_epsilon))


def _layer(layer: Any) -> Layer:
    attention = layer.self_attn
    qkv, o, gate_up, down = (together(group) for group in _groups(layer))
    size = int(attention.head_dim)
    queries, keys = (base_of(m).out_features // size for m in (attention.q_proj, attention.k_proj))
    norms = (_norm(attention.q_norm), _norm(attention.k_norm)) if hasattr(attention, "q_norm") else None
    mistral = type(attention).__name__.startswith("Mistral")  # it asks its config instead of itself
    window = int(getattr(attention.config if mistral else attention, "sliding_window", None) or 0)
    heads = Heads(queries, keys, size, float(attention.scaling), window, norms)
    return Layer(
        (qkv, o, gate_up, down), (_norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)), heads
    )


# --- which models


def refusal(model: Any) -> str | None:
    """Why a causal language model is not stepped by the written-out layers, or None if it is."""
    return next(_refusals(model), None)


def _refusals(model: Any) -> Iterator[str]:
    layers = getattr(getattr(model, "model", None), "layers", None)
    if (
        not hasattr(model, "lm_head")
        or layers is None
        or not len(layers)
        or not all(_known(layer) for layer in layers)
    ):
        yield "its architecture is not of the Llama family"
        return
    if getattr(model.config, "hidden_act", "silu") not in ("silu", "swish"):
        yield f"its activation is {model.config.hidden_act}"
    if model.model.rotary_emb.rope_type not in ROTARY:
        yield f"its rotary embedding is {model.model.rotary_emb.rope_type}"
    yield from _places(model)
    yield from _parts(model)
    size, device = int(layers[0].self_attn.head_dim), model.model.norm.weight.device
    if device.type == "cuda" and size not in HEAD_SIZES:
        yield f"its attention heads have {size} numbers"


def _known(layer: Any) -> bool:
    return type(layer).__name__ in LAYER_CLASSES and type(layer).__module__.startswith("transformers.models.")


def _places(model: Any) -> Iterator[str]:
    """Weights that are elsewhere, or another number than the rest."""
    weights = [base_of(m).weight for layer in model.model.layers for g in _groups(layer) for m in g]
    ends = [in_use(model.model.embed_tokens).weight, base_of(in_use(model.lm_head)).weight]
    kinds = {(w.dtype, w.device) for w in [*weights, *ends, model.model.norm.weight]}
    if len(kinds) != 1 or next(iter(kinds))[0] not in (torch.float32, torch.bfloat16, torch.float16):
        yield "its weights are not all of one kind of number on one device"
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        yield "its weights are moved about while it works"
    if any(type(w.data) is not Tensor or w.dim() != 2 for w in weights):
        yield "its weights are shared out"


def _parts(model: Any) -> Iterator[str]:
    linears = [m for layer in model.model.layers for group in _groups(layer) for m in group]
    for module in [*linears, in_use(model.lm_head)]:
        if type(base_of(module)) is not nn.Linear:
            yield f"a projection is a {type(base_of(module)).__name__}"
        if module is not base_of(module) and not _plain_lora(module):
            yield "its adapter is not plain LoRA"
    if type(in_use(model.model.embed_tokens)) is not nn.Embedding:
        yield "an adapter is on its embedding"
    if any(hasattr(m, "modules_to_save") for layer in model.model.layers for m in layer.modules()):
        yield "a part of its layers is trained whole"


def _plain_lora(module: Any) -> bool:
    """Whether what is on a linear, as it is now, adds B A x alone."""
    if not type(module).__module__.startswith("peft.tuners.lora.") or module.merged:
        return False
    return module.disable_adapters or all(_plain(module, name) for name in module.active_adapters)


def _plain(module: Any, name: str) -> bool:
    if name not in module.lora_A:
        return True
    unusual = module.use_dora.get(name) or name in module.lora_variant or name in module.lora_magnitude_vector
    return not unusual and module.lora_B[name].bias is None
