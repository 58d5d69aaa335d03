"""What an export asks for: LLaMA-Factory's export knobs, and in which form the model leaves the studio."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import model_validator

from tuner.config.inference import InferenceConfig
from tuner.config.knobs import Problem, Section, knob
from tuner.config.run_sections import Export
from tuner.text.lookup import tr

Format = Literal["merged", "gguf", "lora_gguf", "adapter", "bnb", "torchao"]
QUANTIZED = ("bnb", "torchao")
"""Forms that are merged and then quantized by a library."""

Outtype = Literal[
    "auto", "f32", "f16", "bf16", "q8_0",
    "q6_k", "q5_k_m", "q5_k_s", "q5_0", "q4_k_m", "q4_k_s", "q4_0", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k",
]  # fmt: skip
WRITTEN = ("f32", "f16", "bf16", "q8_0")
"""Types that are written here; the others are made from them by llama.cpp's own tool."""
FLOATS = ("f32", "f16", "bf16")
GPTQ_BITS = (8, 4, 3, 2)


class Form(Section):
    title = "What tuner export writes"
    icon = ":material/ios_share:"

    export_format: Format = knob(
        "merged",
        "merged is one model with the adapters in its weights, as safetensors; gguf is that model as one file for "
        "llama.cpp and Ollama; lora_gguf is the adapter alone for them; adapter is a zip of its files; bnb is merged, "
        "in 4 or 8 bits of bitsandbytes; torchao is merged, in 8 bits of torchao.",
    )
    export_outtype: Outtype = knob(
        "auto",
        "The number type: auto keeps the model's own (of a LoRA as GGUF f32), q8_0 halves it, types with _k need llama.cpp's llama-quantize.",
    )
    export_replace: bool = knob(
        False, "Replace an export of yours that is in that folder already; nothing else is ever replaced."
    )


class ExportConfig(InferenceConfig, Export, Form):
    """The config of a run that exports a model."""

    of_kind = "export"

    @model_validator(mode="before")
    @classmethod
    def _on_the_cpu(cls, values: Any) -> Any:
        """Merged on the CPU, a run takes no GPU from others."""
        if values.get("export_device", "cpu") == "cpu":
            return {**values, "use_cpu": True}
        return values

    @property
    def called(self) -> str:
        return f"{self.export_format} of {self.subject}" if self.subject else ""

    @property
    def subject(self) -> str:
        """What is exported, by its short name; a registered version with its number."""
        name = (self.adapter_name_or_path or (self.model_name_or_path or "",))[-1].rstrip("/")
        before, _, last = name.rpartition("/")
        return f"{before.rpartition('/')[2]}/{last}" if before and last.isdecimal() else last

    @property
    def merges(self) -> bool:
        """Whether the model itself is exported, with its adapters in it."""
        return self.export_format in ("merged", "gguf", *QUANTIZED)


def contradictions(config: ExportConfig) -> Iterator[Problem]:
    """What its knobs say against each other; known without a look at the machine."""
    bits, kind = config.export_quantization_bit, config.export_outtype
    if not config.export_dir:
        yield Problem("export_dir", tr("--export_dir is missing; name the folder that the export goes to."))
    if not config.model_name_or_path and config.export_format != "adapter":
        yield Problem("model_name_or_path", tr("--model_name_or_path is missing; name the model to export."))
    if not config.merges and not config.adapter_name_or_path:
        yield Problem(
            "adapter_name_or_path",
            tr(
                "--export_format {export_format} exports an adapter; name it with --adapter_name_or_path.",
                export_format=config.export_format,
            ),
        )
    if not config.merges and len(config.adapter_name_or_path) > 1:
        yield Problem(
            "adapter_name_or_path", tr("Several adapters make one only when they are merged; name one.")
        )
    if config.quantization_bit and config.export_format != "bnb":
        yield Problem(
            "quantization_bit",
            tr("An adapter is merged into a model of full precision; leave --quantization_bit out."),
            {"quantization_bit": None},
        )
    if bits and bits not in GPTQ_BITS:
        yield Problem(
            "export_quantization_bit",
            tr("--export_quantization_bit is {bits}; GPTQ has 8, 4, 3 and 2.", bits=bits),
        )
    if bits and config.adapter_name_or_path:
        yield Problem(
            "export_quantization_bit",
            tr("Adapters are merged before GPTQ: export them as merged first, then quantize that folder."),
        )
    if bits and not config.export_quantization_dataset:
        yield Problem(
            "export_quantization_dataset", tr("GPTQ needs text; name it with --export_quantization_dataset.")
        )
    if config.export_format in ("merged", "lora_gguf", *QUANTIZED) and kind not in ("auto", *FLOATS):
        said = tr(
            "--export_outtype {kind} is a type of --export_format gguf; use {floats} or auto.",
            kind=kind,
            floats=", ".join(FLOATS),
        )
        yield Problem("export_outtype", said, {"export_outtype": "auto"})
