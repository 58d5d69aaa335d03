"""A merged model in fewer bits: by bitsandbytes, torchao, and by GPTQ where gptqmodel is installed."""

from __future__ import annotations

import importlib
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import TorchAoConfig

from tuner.config.knobs import ConfigError, Problem
from tuner.data.catalog import named
from tuner.data.files import records
from tuner.export.source import Exported
from tuner.models import loading
from tuner.models.loading import Source
from tuner.plan.facts import place
from tuner.text.lookup import tr


def by_bitsandbytes(what: Exported, source: Path, folder: Path) -> None:
    """The model of `source` in 4 bits, or as many as quantization_bit says, saved in `folder`."""
    bits = what.asked.quantization_bit or 4
    config = what.config.model_copy(update={"quantization_method": "bnb", "quantization_bit": bits})
    model = loading.load(config, Source(source, str(source)), bits=bits, whole=False)
    model.config.use_cache = True
    model.save_pretrained(folder, max_shard_size=f"{what.asked.export_size}GB")
    what.save_words(folder)


def by_torchao(what: Exported, source: Path, folder: Path) -> None:
    """The model of `source` with 8-bit weights, a scale a row, saved in `folder`; activations stay as they are."""
    made: Any = importlib.import_module("torchao.quantization").Int8WeightOnlyConfig()
    model = loading.written_by(source, what.config.trust_remote_code).from_pretrained(
        source,
        dtype=what.type,
        quantization_config=TorchAoConfig(made),
        trust_remote_code=what.config.trust_remote_code,
    )
    model.save_pretrained(folder, max_shard_size=f"{what.asked.export_size}GB")
    what.save_words(folder)


def by_gptq(what: Exported, folder: Path) -> None:
    """The model in export_quantization_bit bits, its losses measured on export_quantization_dataset."""
    gptq: Any = importlib.import_module("gptqmodel")
    settings = gptq.QuantizeConfig(bits=what.asked.export_quantization_bit, group_size=128)
    model = gptq.GPTQModel.load(str(what.source.folder), settings)
    model.quantize(texts(what), batch_size=1)
    model.save(str(folder))
    what.save_words(folder)


def texts(what: Exported) -> list[str]:
    """Text to measure on, each of export_quantization_maxlen tokens at most. Raises ConfigError where there is none."""
    asked = what.asked
    rows = [text for text in map(_text, _records(str(asked.export_quantization_dataset))) if text]
    longest, count = asked.export_quantization_maxlen, asked.export_quantization_nsamples
    if not rows:
        said = tr(
            "--export_quantization_dataset {name} has no rows with a field text.",
            name=asked.export_quantization_dataset,
        )
        raise ConfigError([Problem("export_quantization_dataset", said)])
    ids = what.tokenizer(rows[:count], truncation=True, max_length=longest)["input_ids"]
    return [str(what.tokenizer.decode(row)) for row in ids]


def _records(name: str) -> list[Any]:
    """The rows of a file, or of a set of the catalog."""
    files = [place(name)] if place(name).is_file() else named([name], "data")[0].files()
    return [record for file in files for _, record in islice(records(file), 10_000)]


def _text(record: Any) -> str:
    return str(record.get("text", "")) if isinstance(record, dict) else ""
