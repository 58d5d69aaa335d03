"""The forms a model leaves the studio in: one function each, `(what, folder, live) -> Made`."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tuner.config.export import WRITTEN
from tuner.config.knobs import ConfigError, Problem
from tuner.export import answers, merged, modelfile, quantized
from tuner.export.answers import Answer
from tuner.export.gguf import check, lora
from tuner.export.gguf.write import write
from tuner.export.source import Exported
from tuner.jobs.exporting import quantizer
from tuner.jobs.live import Live
from tuner.models import loading
from tuner.text.lookup import tr
from tuner.text.message import Message, message


@dataclass(frozen=True)
class Made:
    """What an export came to. `answers` are three prompts before and after, `tokenizer` what a check of it found."""

    outtype: str
    answers: Sequence[dict[str, Any]] = ()
    tokenizer: dict[str, Any] | None = None
    notes: list[Message] = field(default_factory=list)


NAMES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
BETWEEN = "between"
"""The folder of what is made on the way and not kept."""
ZIPPED = (
    "adapter_*",
    "decision.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "README.md",
)


def as_merged(what: Exported, folder: Path, live: Live) -> Made:
    """Safetensors, as transformers, vLLM and Ollama load them."""
    before = _merged(what, folder, what.type, live)
    after = _asked(what, folder, live)
    notes = _modelfile(what, folder, ".")
    return Made(NAMES.get(what.type, str(what.type)), answers.compared(what, before, after), None, notes)


def _asked(what: Exported, folder: Path, live: Live) -> list[Answer]:
    """What the model of a folder answers, in its own number type."""
    with live.phase("asking"):
        model = loading.written_by(folder, what.config.trust_remote_code).from_pretrained(
            folder, dtype="auto", trust_remote_code=what.config.trust_remote_code
        )
        return answers.of_model(model, answers.prompts(what), what.stops)


def _merged(what: Exported, folder: Path, kind: torch.dtype, live: Live) -> list[Answer]:
    """Merge and save; what the model answered before."""
    before: list[Answer] = []

    def ask(model: PreTrainedModel) -> None:
        live.progress(0.3, message("doing.asking"))
        before.extend(answers.of_model(model, answers.prompts(what), what.stops))

    with live.phase("merging"):
        live.progress(0.0, message("doing.reading_weights"))
        model = merged.merge(what, ask)
        live.progress(0.6, message("doing.writing", name="safetensors"))
        merged.save(what, model, folder, kind)
    return before


def as_gguf(what: Exported, folder: Path, live: Live) -> Made:
    """One file for llama.cpp and Ollama; the weights are read one by one."""
    asked = what.asked.export_outtype
    kind = NAMES.get(what.type, "f16") if asked == "auto" else asked
    written = kind if kind in WRITTEN else "f32"
    between = folder / BETWEEN
    if what.adapters:  # through float32, so that each number is rounded once
        before = _merged(what, between, torch.bfloat16 if written == "bf16" else torch.float32, live)
    else:
        before = _asked(what, what.source.folder, live)
    file = folder / f"{what.name}-{kind.upper()}.gguf"
    said = _write(what, between if what.adapters else what.source.folder, file, written, live)
    shutil.rmtree(between, ignore_errors=True)
    if kind != written:
        _quantize(file, kind, live)
    return _tried(what, file, kind, before, [*said, *_modelfile(what, folder, f"./{file.name}")], live)


def _write(what: Exported, source: Path, file: Path, kind: str, live: Live) -> list[Message]:
    with live.phase("writing_gguf"):

        def told(share: float) -> None:
            live.progress(share, message("doing.writing", name=file.name))

        return write(source, what.tokenizer, file, kind, what.name, told)


def _quantize(file: Path, kind: str, live: Live) -> None:
    """Let llama.cpp's own tool make a type that is not written here. Raises ConfigError where it fails."""
    tool, plain = quantizer(), file.with_suffix(".f32")
    file.rename(plain)
    with live.phase("quantizing"):
        done = subprocess.run(
            [str(tool), str(plain), str(file), kind.upper()], capture_output=True, text=True
        )
    plain.unlink()
    if done.returncode or not file.exists():
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ConfigError(
            [
                Problem(
                    "export_outtype",
                    tr("llama-quantize made no {kind}: {error}; use q8_0.", kind=kind, error=last[:300]),
                )
            ]
        )


def _tried(
    what: Exported,
    file: Path,
    kind: str,
    before: Sequence[Answer],
    notes: list[Message],
    live: Live,
    adapter: Path | None = None,
) -> Made:
    """Read the file back with llama.cpp, where that is installed."""
    if not check.installed():
        return Made(kind, notes=[*notes, message("note.gguf_unread")])
    with live.phase("asking"):
        seen = check.read_back(what, file, adapter)
    rows = answers.compared(what, before, seen.answers) if seen.answers else ()
    return Made(kind, rows, seen.tokenizer, [*notes, *seen.notes])


def as_lora_gguf(what: Exported, folder: Path, live: Live) -> Made:
    """The adapter alone, for a llama.cpp that has its base model."""
    kind = "f32" if what.asked.export_outtype == "auto" else what.asked.export_outtype
    file = folder / f"{what.name}-LoRA-{kind.upper()}.gguf"
    with live.phase("writing_gguf"):
        lora.write(what.adapters[-1], what.shape, file, kind, what.name)
    notes = _modelfile(what, folder, str(what.source.base), f"./{file.name}")
    if not check.installed():
        return Made(kind, notes=[*notes, message("note.gguf_unread")])
    with live.phase("asking"):
        before = answers.of_model(merged.with_adapters(what), answers.prompts(what), what.stops)
    base = folder / BETWEEN / "base.gguf"
    base.parent.mkdir()
    said = _write(what, what.source.folder, base, "f32", live)
    made = _tried(what, base, kind, before, [*notes, *said], live, file)
    shutil.rmtree(base.parent)
    return made


def as_adapter(what: Exported, folder: Path, live: Live) -> Made:
    """A zip of the files that PEFT loads."""
    source = what.adapters[-1]
    files = sorted({file for pattern in ZIPPED for file in source.glob(pattern) if file.is_file()})
    with (
        live.phase("saving"),
        zipfile.ZipFile(folder / f"{what.name}.zip", "w", zipfile.ZIP_STORED) as packed,
    ):
        for number, file in enumerate(files):
            live.progress(number / len(files), message("doing.writing", name=file.name))
            packed.write(file, f"{what.name}/{file.name}")
    return Made("own")


def as_bnb(what: Exported, folder: Path, live: Live) -> Made:
    """Merged, then in 8 or 4 bits of bitsandbytes."""
    return _in_few_bits(
        what, folder, live, quantized.by_bitsandbytes, f"bnb{what.asked.quantization_bit or 4}"
    )


def as_torchao(what: Exported, folder: Path, live: Live) -> Made:
    """Merged, then in 8 bits of torchao."""
    return _in_few_bits(what, folder, live, quantized.by_torchao, "int8")


def _in_few_bits(
    what: Exported, folder: Path, live: Live, by: Callable[[Exported, Path, Path], None], outtype: str
) -> Made:
    before = _merged(what, folder / BETWEEN, what.type, live)
    with live.phase("quantizing"):
        by(what, folder / BETWEEN, folder)
    shutil.rmtree(folder / BETWEEN)
    return Made(outtype, answers.compared(what, before, _asked(what, folder, live)))


def as_gptq(what: Exported, folder: Path, live: Live) -> Made:
    """The model in 8, 4, 3 or 2 bits of GPTQ, measured on text."""
    before = _asked(what, what.source.folder, live)
    with live.phase("quantizing"):
        quantized.by_gptq(what, folder)
    bits = what.asked.export_quantization_bit
    return Made(f"gptq{bits}", answers.compared(what, before, _asked(what, folder, live)))


def _modelfile(what: Exported, folder: Path, source: str, adapter: str = "") -> list[Message]:
    """Write Ollama's Modelfile; a note where it has to do without the template."""
    tokenizer = what.tokenizer
    parts, notes = None, []
    if tokenizer.chat_template:
        try:
            parts = modelfile.parts_of(_renderer(tokenizer), tokenizer.bos_token or "")
        except modelfile.UnlikeError:
            notes = [message("note.modelfile_without")]
    stops = tokenizer.convert_ids_to_tokens(what.stops)
    context = int(getattr(what.shape, "max_position_embeddings", modelfile.CONTEXT))
    text = modelfile.written(source, parts, stops, context, what.config.default_system or "", adapter)
    (folder / "Modelfile").write_text(text, encoding="utf-8")
    return notes


def _renderer(tokenizer: Any) -> Callable[..., str]:
    def render(chat: Any, asks: bool, tools: Any = None) -> str:
        return str(
            tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=asks, tools=tools)
        )

    return render


FORMS: dict[str, Callable[[Exported, Path, Live], Made]] = {
    "merged": as_merged,
    "gguf": as_gguf,
    "lora_gguf": as_lora_gguf,
    "adapter": as_adapter,
    "bnb": as_bnb,
    "torchao": as_torchao,
    "gptq": as_gptq,
}
