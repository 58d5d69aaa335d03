"""Checkpoints of the first Qwen and of InternLM2, turned once into native Qwen2 and Llama folders.

Their own modeling code must not run: under transformers 5 the one fails and the other computes garbage without
an error. The weights only need other names and a split of the fused projections, so no code of theirs is imported.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from tuner.config.models import LegacyKind, ModelError, legacy_kind, model_name, read_config
from tuner.data.build_once import build_once
from tuner.data.legacy_tokenizers import write_tokenizer
from tuner.models.legacy_layouts import LAYOUTS, Layout, UnfitError, require
from tuner.paths import slug
from tuner.text.lookup import tr

__all__ = ["conversion_note", "legacy_kind", "native"]

log = logging.getLogger(__name__)

_RECIPE = b"1"  # part of the cache key: raise it when the conversion changes
_ORIGIN = "converted_from.json"
_INDEXED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token")
_SINGLE = ("model.safetensors", "pytorch_model.bin")


def native(folder: Path, cache: Path) -> Path:
    """The folder to load with plain transformers: `folder` itself, or for a legacy checkpoint its conversion.

    The conversion lies in `cache` under the model's name and a digest of its files, complete or not at all.
    Raises ModelError with one sentence when the checkpoint is outside what was verified.
    """
    kind = legacy_kind(folder)
    if kind is None:
        return folder
    name = slug(model_name(str(folder.resolve())))
    try:
        shards = _shards(folder)
        target = cache / f"{name}-{_digest(folder, shards)}"
        return build_once(target, lambda partial: _convert(folder, kind, shards, partial))
    except UnfitError as error:
        raise ModelError(tr("{folder} cannot be converted: {why}.", folder=folder, why=error)) from error


def conversion_note(folder: Path) -> str | None:
    """What a user of the converted model in `folder` should know, for the run's log and page; None: nothing."""
    try:
        origin = json.loads((folder / _ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return f"Converted from {origin['folder']} into native classes.{origin['note']}"


def _note(kind: LegacyKind, source: dict[str, Any]) -> str:
    changes = source.get("use_dynamic_ntk", True) or source.get("use_logn_attn", True)
    if kind != "qwen" or not changes:
        return ""
    return (
        f" In evaluation the original changes its attention beyond {source['seq_length']} tokens (dynamic NTK, logn), "
        "the converted model does not: training is the same at any length, but keep evaluation and chat below that."
    )


def _convert(folder: Path, kind: LegacyKind, shards: list[Path], target: Path) -> None:
    layout = LAYOUTS[kind]
    source = read_config(folder)
    try:
        config = layout.config(source)
    except KeyError as error:
        raise UnfitError(
            tr("its config.json has no {error}; download the current revision", error=error)
        ) from error
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise UnfitError(tr("its config.json holds values of the wrong kind; download it again")) from error
    _check_room(shards, target)
    write_tokenizer(folder, kind, target)
    dtype = _convert_weights(folder, layout, config, shards, target)
    config.dtype = dtype
    config.architectures = [layout.architecture]
    specials = _special_ids(target)
    if kind == "qwen":
        # The original names no special token. Here no pad either: its embedding row would stop learning.
        config.eos_token_id = specials["eos_token_id"]
    config.save_pretrained(target)
    _write_json(target / "generation_config.json", _generation(folder, specials))
    _write_json(
        target / _ORIGIN, {"folder": str(folder.resolve()), "format": kind, "note": _note(kind, source)}
    )


# ---------------------------------------------------------------- weights


def _convert_weights(
    folder: Path, layout: Layout, config: PretrainedConfig, shards: list[Path], target: Path
) -> torch.dtype:
    """Write the native safetensors shard by shard; every tensor of the native class, once, in its shape."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    missing = {name: tensor.shape for name, tensor in model.state_dict().items()}
    places: dict[str, str] = {}
    dtypes: dict[torch.dtype, int] = {}
    total = 0
    for number, shard in enumerate(shards, start=1):
        log.info("converting %s: weights %d of %d", folder.name, number, len(shards))
        name = (
            f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        )
        tensors = dict(_mapped(_load(shard), layout, config, missing))
        save_file(tensors, target / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
        for tensor in tensors.values():
            dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + tensor.numel()
            total += tensor.nbytes
    if missing:
        raise UnfitError(
            tr(
                "its files lack {first} ({count} tensors in all)",
                first=sorted(missing)[0],
                count=len(missing),
            )
        )
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        _write_json(target / "model.safetensors.index.json", index)
    return max(dtypes, key=lambda dtype: dtypes[dtype])


def _mapped(
    tensors: dict[str, Tensor], layout: Layout, config: PretrainedConfig, missing: dict[str, torch.Size]
) -> Iterator[tuple[str, Tensor]]:
    """(native name, tensor) for each tensor; takes what it yields off `missing`."""
    for source in list(tensors):
        tensor = tensors.pop(source)
        if layout.dropped.search(source):
            continue
        for name, part in _renamed(source, tensor, layout, config):
            expected = missing.pop(name, None)
            if expected != part.shape or not part.is_floating_point():
                shape = list(part.shape)
                raise UnfitError(
                    tr(
                        "{source} gives {name} as {dtype} {shape}, which does not fit its config.json",
                        source=source,
                        name=name,
                        dtype=part.dtype,
                        shape=shape,
                    )
                )
            yield name, part.contiguous()


def _renamed(
    source: str, tensor: Tensor, layout: Layout, config: PretrainedConfig
) -> list[tuple[str, Tensor]]:
    if source in layout.names:
        return [(layout.names[source], tensor)]
    match = layout.layer.fullmatch(source)
    module = match["module"] if match else ""
    if match and module in layout.layer_names:
        return [(f"model.layers.{match['layer']}.{layout.layer_names[module]}.{match['leaf']}", tensor)]
    if match and module == layout.fused:
        try:
            parts = layout.split(tensor, config)
        except RuntimeError as error:
            raise UnfitError(
                tr(
                    "{source} of shape {shape} does not fit its config.json",
                    source=source,
                    shape=list(tensor.shape),
                )
            ) from error
        prefix = f"model.layers.{match['layer']}.self_attn"
        # Cloned: safetensors writes no tensors that share memory.
        return [(f"{prefix}.{n}_proj.{match['leaf']}", p.clone()) for n, p in zip("qkv", parts, strict=True)]
    raise UnfitError(
        tr(
            "it holds {tensor}, which is not part of this format (a quantized or changed model?)",
            tensor=source,
        )
    )


def _load(shard: Path) -> dict[str, Tensor]:
    """The tensors of one shard. The one place where a pickle is opened, for tensors only."""
    try:
        if shard.suffix == ".safetensors":
            return dict(load_file(shard))
        tensors = torch.load(shard, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(shard))
    except (SafetensorError, OSError, EOFError, RuntimeError) as error:
        raise UnfitError(tr("{file} is damaged or incomplete; download it again", file=shard.name)) from error
    except pickle.UnpicklingError as error:
        raise UnfitError(
            tr("{file} holds something other than tensors and was not loaded", file=shard.name)
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UnfitError(tr("{file} holds something other than tensors", file=shard.name))
    return tensors


def _shards(folder: Path) -> list[Path]:
    """The weight files in order, safetensors before .bin."""
    for index, single in zip(_INDEXED, _SINGLE, strict=True):
        if (folder / index).is_file():
            names = _indexed(folder / index)
        elif (folder / single).is_file():
            names = [single]
        else:
            continue
        absent = [name for name in names if not (folder / name).is_file()]
        if absent:
            raise UnfitError(tr("{file} is missing; download it again", file=absent[0]))
        return [folder / name for name in names]
    raise UnfitError(
        tr("it has neither {first} nor {second}; download its weights", first=_SINGLE[0], second=_SINGLE[1])
    )


def _indexed(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = any(Path(name).name != name for name in names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnfitError(tr("{file} is damaged; download it again", file=index.name)) from error
    if outside or not names:
        raise UnfitError(tr("{file} names files outside the folder", file=index.name))
    return names


# ---------------------------------------------------------------- the other files


def _special_ids(folder: Path) -> dict[str, int]:
    """eos_token_id and the like, from the tokenizer just written."""
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = {f"{name}_id": tokenizer.token_to_id(config.get(name, "")) for name in _SPECIAL_TOKENS}
    return {name: index for name, index in ids.items() if index is not None}


def _generation(folder: Path, specials: dict[str, int]) -> dict[str, Any]:
    """The sampling settings of the original that transformers knows, with the ends a generation needs."""
    try:
        given = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        given = {}
    kept = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens")
    settings = {name: given[name] for name in kept if name in given}
    stops = given.get("eos_token_id", [])
    ends = {specials["eos_token_id"], *(stops if isinstance(stops, list) else [stops])}
    return settings | specials | {"eos_token_id": sorted(ends)}


def _digest(folder: Path, shards: list[Path]) -> str:
    """Changes when the checkpoint does: small files by content, weights by name, size and time.

    Hashing the weights would cost 10 s and more at every start of a 7B run.
    """
    digest = hashlib.sha256(_RECIPE)
    small = [
        path
        for path in folder.iterdir()
        if path.suffix in (".json", ".model", ".tiktoken") and path.is_file()
    ]
    for path in sorted(small):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    for shard in shards:
        stat = shard.stat()
        digest.update(f"{shard.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:12]


def _check_room(shards: list[Path], target: Path) -> None:
    needed = sum(shard.stat().st_size for shard in shards)
    free = shutil.disk_usage(target).free
    require(
        needed < free,
        tr(
            "it takes {needed:.1f} GB and {folder} has {free:.1f} GB free; make room there",
            needed=needed / 1e9,
            folder=target.parent,
            free=free / 1e9,
        ),
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
