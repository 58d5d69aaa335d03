"""A model as the engine sees it: a packed row in, scores of answer tokens out (see `logps.py`), gradients back.

`FusedPolicy` runs the Llama family with LoRA through the written-out layers; `AutogradPolicy` of `autograd_policy.py` runs
the rest through transformers' own modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tuner.engine.packed import kernels_torch
from tuner.engine.packed.device_row import DeviceRow
from tuner.engine.packed.forms import ACTIVATIONS, NORMS, activation_of, linears, norm_of
from tuner.engine.packed.layers import FusedTrunk, lora_parameters
from tuner.engine.packed.logps import FrozenHead, LabelHead, ScoreHead
from tuner.engine.packed.lora import GradientBuffer
from tuner.models.llama_family import adapter_of, base_of, causal_lm, decoder_of, in_use
from tuner.models.quantized import quantized
from tuner.plan.engine import HEAD_SIZES

LOGITS_BYTES = 512 << 20


class Policy(Protocol):
    """`forward` -> (scores [1 or, with `measure`, 3, N] float32, context); `backward` adds the gradients of sum(d *
    log-probs)."""

    gradients: GradientBuffer
    blocks: bool
    layers: int

    @property
    def capturable(self) -> bool: ...

    @property
    def recompute(self) -> int: ...
    @recompute.setter
    def recompute(self, layers: int) -> None: ...

    def forward(self, row: DeviceRow, keep: bool, measure: bool = False) -> tuple[Tensor, Any]: ...
    def backward(self, d_logps: Tensor, row: DeviceRow, context: Any) -> None: ...
    def refresh(self) -> None: ...
    def reference(self) -> AbstractContextManager[None]: ...


def score_of(inner: Any) -> nn.Linear | None:
    """The head of a model that scores, as it is trained; None for a language model."""
    return in_use(getattr(inner, "score", None))


def kernels_for(device: torch.device) -> ModuleType:
    if device.type == "cuda":
        from tuner.engine.packed import kernels_triton

        return kernels_triton
    return kernels_torch


class FusedPolicy:
    """Llama-family decoder with LoRA on its linears; see `layers.py`. Everything else is frozen, but for the head of a
    model that scores. With `float8` the layers' frozen weights are multiplied in 8 bits."""

    def __init__(self, model: nn.Module, logits_bytes: int = LOGITS_BYTES, float8: bool = False) -> None:
        inner = causal_lm(model)
        decoder = decoder_of(inner)
        device = decoder.norm.weight.device
        kernels, score = kernels_for(device), score_of(inner)
        own: Any = [] if score is None else [score.weight]
        self.gradients = GradientBuffer([*lora_parameters(decoder), *own])
        self.trunk = FusedTrunk(decoder, self.gradients, kernels, float8)
        self.head: FrozenHead | ScoreHead | LabelHead
        self.inner = inner
        norm: Any = norm_of(decoder.norm)
        if score is None:
            softcap = getattr(inner.config, "final_logit_softcapping", None)
            self.head = FrozenHead(norm, base_of(inner.lm_head), kernels, logits_bytes, softcap)
        else:
            grad = self.gradients.view(own[0])
            self.head = ScoreHead(norm, score, kernels, grad)
        self.capturable = self.blocks = device.type == "cuda"
        self.layers = len(self.trunk.layers)
        self.refresh()

    @property
    def temperature(self) -> float:
        """What logits are divided by."""
        return getattr(self.head, "temperature", 1.0)

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.head.temperature = value

    def read_labels(self, ids: Sequence[int]) -> None:
        """Read the logits of these tokens instead of what an answer's tokens are."""
        norm: Any = norm_of(self.trunk.decoder.norm)
        head = base_of(self.inner.lm_head)
        softcap = getattr(self.inner.config, "final_logit_softcapping", None)
        wanted = torch.tensor(list(ids), device=head.weight.device)
        self.head = LabelHead(norm, head, wanted, self.trunk.kernels, softcap)

    @property
    def recompute(self) -> int:
        """Layers, from the first, whose activations are recomputed in the backward pass."""
        return self.trunk.recompute

    @recompute.setter
    def recompute(self, layers: int) -> None:
        self.trunk.recompute = layers

    def forward(self, row: DeviceRow, keep: bool, measure: bool = False) -> tuple[Tensor, Any]:
        hidden, layers = self.trunk.forward(row, keep)
        scores, head = self.head.forward(hidden, row["targets"], keep, measure)
        return scores, (layers, head)

    def backward(self, d_logps: Tensor, row: DeviceRow, context: Any) -> None:
        layers, head = context
        self.trunk.backward(self.head.backward(d_logps, head), row, layers)

    def refresh(self) -> None:
        with torch.no_grad():
            self.trunk.refresh()

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the adapters are off."""
        self.trunk.use_adapters(False)
        try:
            yield
        finally:
            self.trunk.use_adapters(True)


def fused_refusal(model: nn.Module) -> str | None:
    """Why the written-out layers cannot run this model, or None if they can."""
    inner = causal_lm(model)
    decoder = decoder_of(inner)
    layers, config = getattr(decoder, "layers", None), decoder.config
    if layers is None or len(layers) == 0 or not known_layers(config, layers[0]):
        return "its layers are not written out"
    if activation_of(config) not in ACTIVATIONS:
        return f"its activation is {activation_of(config)}"
    if any(getattr(config, name, 0) for name in ("resid_pdrop", "embd_pdrop", "residual_dropout")):
        return "its layers have dropout"
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    known: set[int] = set()
    for layer in layers:
        for module in (part for group in linears(layer) for part in group):
            if type(base_of(module)) is not nn.Linear and not quantized(base_of(module)):
                return f"a projection is a {type(base_of(module)).__name__}"
            if any(getattr(d, "p", 0) for d in getattr(module, "lora_dropout", {}).values()):
                return "its adapter has dropout"
            known |= {id(p) for p in (adapter_of(module) or ())[:2]}
    if (score := score_of(inner)) is not None:
        if score.bias is not None or score.weight.shape[0] != 1:
            return "its head gives more than one number"
        known.add(id(score.weight))
    if not known or trained != known:
        return "it trains more than LoRA on the attention and MLP projections"
    codes = {id(base.weight) for base in inner.modules() if quantized(base)}
    dtypes = {p.dtype for p in model.parameters() if not p.requires_grad and id(p) not in codes}
    if len(dtypes) != 1 or next(iter(dtypes)) not in (torch.float32, torch.bfloat16):
        return "its frozen weights are not all float32 or all bfloat16"
    return head_refusal(int(layers[0].self_attn.head_dim), decoder.norm.weight.device.type)


def known_layers(config: Any, layer: nn.Module) -> bool:
    """Whether a layer is transformers' own of a family that is written out."""
    kind = str(getattr(config, "model_type", ""))
    name = type(layer).__name__.removesuffix("DecoderLayer").removesuffix("Text").replace("_", "").lower()
    return kind in NORMS and kind.removesuffix("_text").replace("_", "") == name


def head_refusal(size: int, device: str) -> str | None:
    """Why the kernels of a device cannot work on attention heads of `size` numbers, or None: Triton's blocks are powers of 2."""
    if device == "cuda" and size not in HEAD_SIZES:
        return f"its attention heads have {size} numbers, and the kernels on a GPU take {', '.join(map(str, HEAD_SIZES))}"
    return None
