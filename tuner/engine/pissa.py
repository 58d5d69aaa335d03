"""PiSSA (arXiv 2404.02948): an adapter that starts from the model's own strongest directions, taken out of its weights.

What is trained, A and B, sits on the rest of the decomposition, W - s B0 A0, which lives in memory only. What is saved
fits the model as it was, at every save:

    W + s [B | -B0] [A ; A0]  =  (W - s B0 A0) + s B A

a plain LoRA of twice the rank. The start A0, B0 is its second half, so that a resumed run takes the same directions out of
the weights again; the fast decomposition is random and would not find them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.other import transpose
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import set_seed

from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem
from tuner.text.lookup import tr

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS = "adapter_model.safetensors"
MARK = "pissa.json"
"""Beside the weights: the rank that was trained, half of the one they are saved with."""
NAME = "default"


def begin(config: Config, model: PreTrainedModel, settings: LoraConfig, checkpoint: Path | None) -> PeftModel:
    """The model with its adapter at the start, from a checkpoint where the run goes on from one; it saves plain LoRA.

    `settings.init_lora_weights` says how to decompose. Raises ConfigError for a checkpoint of something else.
    """
    kind, settings.init_lora_weights = str(settings.init_lora_weights), True
    made: PeftModel = get_peft_model(model, settings)
    start = _halves(checkpoint)[1] if checkpoint else {}
    set_seed(config.seed)
    for name, layer in _linear(made):
        if start:
            a, b = start[f"{name}.lora_A.weight"], start[f"{name}.lora_B.weight"]
        else:
            a, b = _strongest(layer, kind)
        _take_out(layer, a, b)
    saved = Saved(made, start or {name: w.detach().clone() for name, w in _factors(_state(made)).items()})
    made.save_pretrained, made.load_adapter = saved.save, saved.load
    return made


class Saved:
    """How a PiSSA adapter is written and read: these two stand in for the model's own."""

    def __init__(self, model: PeftModel, start: dict[str, Tensor]):
        self.model, self.start = model, start

    def save(self, folder: str | Path, *_: Any, is_main_process: bool = True, **options: Any) -> None:
        """The adapter as a plain LoRA of twice the rank, which fits the model as it was."""
        state = _state(self.model, options.get("state_dict"))
        for name, trained in _factors(state).items():
            first = self.start[name].to(trained)
            side = int("_B" in name)
            state[name] = torch.cat([trained, -first if side else first], dim=side)
        if not is_main_process:
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        settings = copy.copy(self.model.peft_config[NAME])
        plain = {name: weight.detach().cpu().contiguous() for name, weight in state.items()}
        save_file(plain, str(Path(folder) / WEIGHTS), metadata={"format": "pt"})
        (Path(folder) / MARK).write_text(json.dumps({"rank": settings.r}) + "\n", encoding="utf-8")
        scale = settings.lora_alpha / settings.r ** (0.5 if settings.use_rslora else 1.0)
        alpha = (
            scale * 2 * settings.r
        )  # the product is scaled as before, whatever rslora would make of twice the rank
        settings.r, settings.use_rslora, settings.inference_mode = 2 * settings.r, False, True
        settings.lora_alpha = int(alpha) if alpha == int(alpha) else alpha
        settings.save_pretrained(str(folder))
        self.model.create_or_update_model_card(str(folder))

    def load(self, folder: str | Path, name: str = NAME, *rest: Any, **options: Any) -> None:
        """What `save` wrote, back into the adapter that is trained."""
        if name == NAME:
            set_peft_model_state_dict(self.model, _halves(Path(folder))[0], adapter_name=NAME)
        else:
            PeftModel.load_adapter(self.model, folder, name, *rest, **options)


def _linear(model: PeftModel) -> Iterator[tuple[str, Any]]:
    """The layers that are decomposed: matrices, not tables of embeddings."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and NAME in module.lora_A:
            yield name, module


def _strongest(layer: Any, kind: str) -> tuple[Tensor, Tensor]:
    """A0 [rank, in] and B0 [out, rank] by PEFT's decomposition; the layer's weights stay whole.

    Zeros where a matrix has fewer directions than the rank: the adapter's settings name one rank for all layers.
    """
    base = layer.get_base_layer()
    whole = base.weight
    base.weight = nn.Parameter(whole.data, requires_grad=False)
    layer.pissa_init(NAME, kind)
    base.weight = whole
    a, b = layer.lora_A[NAME].weight.data, layer.lora_B[NAME].weight.data
    missing = layer.r[NAME] - a.shape[0]
    return torch.cat([a, a.new_zeros(missing, a.shape[1])]), torch.cat(
        [b, b.new_zeros(b.shape[0], missing)], dim=1
    )


def _take_out(layer: Any, a: Tensor, b: Tensor) -> None:
    """Put the start into the adapter and take it out of the weights; the same bits from the same start."""
    base = layer.get_base_layer()
    layer.lora_A[NAME].weight.data, layer.lora_B[NAME].weight.data = a.clone(), b.clone()
    whole = transpose(base.weight.data.float(), layer.fan_in_fan_out)
    rest = whole - layer.scaling[NAME] * b @ a
    # A tensor of its own: a head that shares the input embedding's must not take directions out of that.
    base.weight = nn.Parameter(
        transpose(rest.to(base.weight.dtype), layer.fan_in_fan_out), requires_grad=False
    )


def _state(model: PeftModel, given: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The adapter's weights under the names of its file; without the base's, which lack what was taken out."""
    state: dict[str, Tensor] = get_peft_model_state_dict(
        model, state_dict=given, adapter_name=NAME, save_embedding_layers=False
    )
    return state


def _factors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The two matrices of each layer, of embeddings too: lora_A, lora_embedding_A [rank, in]; ..._B [out, rank]."""
    kinds = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"}
    return {name: weight for name, weight in state.items() if kinds & set(name.split("."))}


def _halves(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What was trained, everything of it, and the start of its factors. Raises ConfigError where there is none."""
    try:
        rank = int(json.loads((folder / MARK).read_text(encoding="utf-8"))["rank"])
    except (OSError, ValueError, KeyError) as error:
        sentence = tr(
            "{folder} does not hold what PiSSA started from, so training cannot go on from it with --pissa_init; set --pissa_init False, or --overwrite_output_dir True to start afresh.",
            folder=folder,
        )
        raise ConfigError([Problem("pissa_init", sentence, {"pissa_init": False})]) from error
    state = load_file(str(folder / WEIGHTS))
    start = {}
    for name, both in _factors(state).items():
        side = int("_B" in name)
        trained, first = both.split(rank, dim=side)
        state[name] = trained.contiguous()
        start[name] = -first if side else first.contiguous()
    return state, start
