"""What is exported: the model, its adapters and the tokenizer they were taught with."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from tuner import paths
from tuner.config.config import Config
from tuner.config.export import ExportConfig
from tuner.data.decisions import SETTINGS
from tuner.data.template_choice import template_of, to_save
from tuner.data.templates import stop_ids
from tuner.data.tokens import load_tokenizer
from tuner.models import loading
from tuner.models.adapter_loading import adapter_folder
from tuner.models.loading import Source
from tuner.models.vision import copy_processor

TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Exported:
    """A model to export, found on this machine. `asked` is the export's config, `config` how the model is loaded."""

    asked: ExportConfig
    config: Config
    source: Source
    adapters: tuple[Path, ...]

    @property
    def name(self) -> str:
        """What its files are called."""
        return paths.slug(self.asked.subject.replace("@", "-"))

    @cached_property
    def shape(self) -> Any:
        """The model's configuration, transformers'."""
        return AutoConfig.from_pretrained(self.source.folder, trust_remote_code=self.config.trust_remote_code)

    @property
    def type(self) -> torch.dtype:
        """The number type that the export has: what was asked for, else the model's own."""
        own = self.shape.dtype if isinstance(self.shape.dtype, torch.dtype) else torch.float32
        return TYPES.get(self.asked.export_outtype, own)

    @property
    def words(self) -> Path:
        """The folder with the tokenizer: the adapter's, which has the chat template it was taught in, else the model's."""
        own = self.adapters[-1] if self.adapters else self.source.folder
        return own if (own / "tokenizer.json").is_file() else self.source.folder

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer as it is exported; it pads on the left, as whoever generates needs it."""
        made = AutoTokenizer.from_pretrained(
            self.words, trust_remote_code=self.config.trust_remote_code, padding_side="left"
        )
        if made.pad_token is None:
            made.pad_token = made.eos_token
        words = load_tokenizer(self.words)
        if self.config.template:
            template = template_of(self.config, words)
            made.chat_template = to_save(template, words, self.config) or made.chat_template
        return made

    def save_words(self, folder: Path) -> None:
        """The tokenizer and, of a decision model, labels and temperatures: the last adapter's, without one the model's own."""
        self.tokenizer.save_pretrained(folder)
        copy_processor(self.source.folder, folder)
        file = (self.adapters[-1] if self.adapters else self.source.folder) / SETTINGS
        if file.is_file():
            shutil.copyfile(file, folder / SETTINGS)

    @cached_property
    def stops(self) -> list[int]:
        """The tokens that end an answer: the model's own, the tokenizer's and the template's."""
        words = load_tokenizer(self.words)
        own = _ends(self.source.folder)
        return list(dict.fromkeys([*own, *stop_ids(template_of(self.config, words), words)]))


def _ends(folder: Path) -> list[int]:
    """What a model's generation_config.json ends answers with."""
    if not (folder / "generation_config.json").is_file():
        return []
    ends = GenerationConfig.from_pretrained(folder).eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


def found(asked: ExportConfig) -> Exported:
    """Find what an export is about, fetched from the hub if need be. Raises ConfigError."""
    config = asked.loading()
    adapters = tuple(adapter_folder(config, name) for name in asked.adapter_name_or_path)
    if asked.export_format == "adapter":
        return Exported(asked, config, Source(adapters[-1], ""), adapters)
    return Exported(asked, config, loading.find(config), adapters)
