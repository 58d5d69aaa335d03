"""New tokens: a model with room for them, made once and kept, because an adapter fits only the model it was trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from tuner import paths
from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem
from tuner.data.build_once import build_once
from tuner.models import loading
from tuner.models.loading import Source
from tuner.models.vision import copy_processor
from tuner.plan.engine import grows
from tuner.text.lookup import tr

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROUND_TO = 64  # rows of the embedding, for fast matrix products


def widened(config: Config, source: Source) -> Source:
    """The model with its new tokens, kept under mlruns/models; `source` itself when none are asked for."""
    if not grows(config):
        return source
    meant = meanings(config)
    asked = json.dumps(
        [loading.fingerprint(source), list(config.add_tokens), meant, config.init_special_tokens, config.seed]
    )
    name = f"{paths.slug(source.folder.name)}-tokens-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"
    folder = build_once(paths.models() / name, lambda fresh: _make(config, source, meant, fresh))
    return Source(folder, str(folder.resolve()))


def meanings(config: Config) -> dict[str, str]:
    """New markers and what each means (empty where nobody said). Raises ConfigError for a file that is none."""
    if not config.new_special_tokens_config:
        return dict.fromkeys(config.add_special_tokens, "")
    path = paths.home() / config.new_special_tokens_config
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        said = None
    if not isinstance(said, Mapping) or not said:
        sentence = tr(
            "--new_special_tokens_config {path} is no YAML file of `token: what it means` lines.", path=path
        )
        raise ConfigError([Problem("new_special_tokens_config", sentence)])
    return {str(token): str(meaning or "") for token, meaning in said.items()}


def _make(config: Config, source: Source, meant: Mapping[str, str], folder: Path) -> None:
    tokenizer = loading.tokenizer(config, source)
    model = loading.written_by(source.folder, config.trust_remote_code).from_pretrained(
        source.folder, dtype="auto", use_safetensors=True, trust_remote_code=config.trust_remote_code
    )
    known = len(tokenizer)
    tokenizer.add_tokens([t for t in config.add_tokens if t not in tokenizer.get_vocab()])
    tokenizer.add_tokens([t for t in meant if t not in tokenizer.get_vocab()], special_tokens=True)
    grow(config, model, tokenizer, known, meant)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    copy_processor(source.folder, folder)


def grow(
    config: Config,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    known: int,
    meant: Mapping[str, str],
) -> None:
    """Room for every token of the tokenizer; the tokens from id `known` on get their first embedding."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=ROUND_TO, mean_resizing=False)
    torch.manual_seed(config.seed)
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    tables = {id(e.weight): e.weight for e in ends if e is not None}
    for weight in tables.values():
        _begin(config, weight.data, tokenizer, min(known, rows), meant)


def _begin(
    config: Config,
    table: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    known: int,
    meant: Mapping[str, str],
) -> None:
    """New rows of an embedding table [V, H]: the mean of the old ones with noise, or of the words that describe it."""
    old = table[:known].float()
    mean, noise = old.mean(0), table.shape[1] ** -0.5
    for index in range(known, table.shape[0]):
        words = _described(config, tokenizer, index, known, meant)
        row = old[words].mean(0) if words else mean
        if not words or config.init_special_tokens == "desc_init_w_noise":
            row = row + torch.randn_like(row) * noise
        table[index] = row.to(table.dtype)


def _described(config: Config, tokenizer: Any, index: int, known: int, meant: Mapping[str, str]) -> list[int]:
    """Ids of the words that say what token `index` means; empty where its start is chance."""
    if config.init_special_tokens == "noise_init" or index >= len(tokenizer):
        return []
    meaning = meant.get(tokenizer.convert_ids_to_tokens(index), "")
    return [i for i in tokenizer.encode(meaning, add_special_tokens=False) if i < known] if meaning else []
