"""The libraries that some knobs ask for and an installation need not have: who asks for which, and the command for it.

A look at what is installed, no import: the form asks at every change.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

from tuner.config.knobs import ConfigError, Problem
from tuner.text.lookup import tr

if TYPE_CHECKING:
    from tuner.config.config import Config


ALWAYS = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "mlflow", "streamlit", "plotly")
"""The libraries that decide what a run does, which every installation has."""


def versions() -> dict[str, str]:
    """Their versions; empty for one that is missing."""
    found = dict.fromkeys(ALWAYS, "")
    for name in ALWAYS:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@dataclass(frozen=True)
class Library:
    """A module that `what` needs; `install` is what pip is told, an extra of tuner's where there is one."""

    what: str
    module: str
    install: str

    @property
    def there(self) -> bool:
        return importlib.util.find_spec(self.module) is not None

    def missing(self, knob: str) -> Problem:
        """What to say beside the knob that asks for it."""
        sentence = tr(
            "--{knob} asks for {what}, which needs the library {module}, and that is not installed: "
            "run `pip install {install}`, then start again.",
            knob=knob,
            what=tr(self.what),
            module=self.module,
            install=self.install,
        )
        return Problem(knob, sentence)


def _extra(what: str, module: str, extra: str) -> Library:
    return Library(what, module, f"'tuner[{extra}]'")


QUANTIZATION = {
    "bnb": _extra("bnb", "bitsandbytes", "qlora"),
    "hqq": _extra("hqq", "hqq", "hqq"),
    "eetq": _extra("eetq", "eetq", "eetq"),
}
CHECKPOINTS = {  # quantization methods of ready-made checkpoints
    "gptq": _extra("gptq", "gptqmodel", "gptq"),
    "awq": _extra("awq", "gptqmodel", "gptq"),
    "aqlm": _extra("aqlm", "aqlm", "aqlm"),
    "bitsandbytes": QUANTIZATION["bnb"],
    "hqq": QUANTIZATION["hqq"],
    "eetq": QUANTIZATION["eetq"],
}
EXPORTED = {  # values of export_format
    "bnb": QUANTIZATION["bnb"],
    "torchao": _extra("torchao", "torchao", "torchao"),
}
SWITCHES = {  # knobs that are on or off
    "use_galore": _extra("GaLore", "galore_torch", "galore"),
    "use_apollo": _extra("APOLLO", "apollo_torch", "apollo"),
    "use_badam": _extra("BAdam", "badam", "badam"),
    "use_adam_mini": _extra("Adam-mini", "adam_mini", "adam-mini"),
    "enable_liger_kernel": _extra("Liger's kernels", "liger_kernel", "liger"),
    "use_liger_kernel": _extra("Liger's kernels", "liger_kernel", "liger"),
    "deepspeed": _extra("DeepSpeed", "deepspeed", "deepspeed"),
}
OPTIMIZERS = (  # transformers' optimizers that are somebody else's, by their names; the last that fits counts
    (r".*(8bit|bnb|paged|lion|_32bit).*", "bitsandbytes", "qlora"),
    (r"galore_.*", "galore_torch", "galore"),
    (r"apollo_.*", "apollo_torch", "apollo"),
    (r"(ada)?lomo", "lomo_optim", "lomo"),
    (r"grokadamw", "grokadamw", "grokadamw"),
    (r"schedule_free_.*", "schedulefree", "schedulefree"),
    (r"stable_adamw", "optimi", "optimi"),
    (r"adamw_torch_(4|8)bit", "torchao", "torchao"),
)
TRACKERS = {  # names of report_to: the module, the package
    "azure_ml": ("azureml", "azureml-core"),
    "clearml": ("clearml", "clearml"),
    "codecarbon": ("codecarbon", "codecarbon"),
    "comet_ml": ("comet_ml", "comet-ml"),
    "dagshub": ("dagshub", "dagshub"),
    "dvclive": ("dvclive", "dvclive"),
    "flyte": ("flytekit", "flytekit"),
    "neptune": ("neptune", "neptune"),
    "swanlab": ("swanlab", "swanlab"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "trackio": ("trackio", "trackio"),
    "wandb": ("wandb", "wandb"),
}
KERNELS = {"fa2": ("flash_attn", "flash-attn"), "fa3": ("flash_attn_interface", "flash-attn-3")}


def optimizer(name: str) -> Library | None:
    """What one of transformers' optimizers needs."""
    for pattern, module, extra in reversed(OPTIMIZERS):
        if re.fullmatch(pattern, name):
            return _extra(name, module, extra)
    return None


def checkpoint(said: Any) -> Library | None:
    """What a checkpoint needs that comes quantized; `said` is its config's quantization_config."""
    return CHECKPOINTS.get(str(said.get("quant_method", "")).lower()) if isinstance(said, dict) else None


def missing(config: Config) -> Iterator[Problem]:
    """Every library that this config asks for and that is not installed; the mend does without it."""
    for knob, library, without in _asked(config):
        if not library.there:
            yield replace(library.missing(knob), mend=without)


def need(library: Library | None, knob: str) -> None:
    """Raises ConfigError with the command that installs a library, unless it is there."""
    if library is not None and not library.there:
        raise ConfigError([library.missing(knob)])


def asked(config: Config) -> Iterator[Library]:
    """Every library that this config asks for."""
    return (library for _, library, _ in _asked(config))


def _asked(config: Config) -> Iterator[tuple[str, Library, dict[str, Any]]]:
    for knob in ("quantization_bit", "ref_model_quantization_bit"):
        if getattr(config, knob):
            yield knob, QUANTIZATION[config.quantization_method], {knob: None}
    for knob, library in SWITCHES.items():
        if value := getattr(config, knob):
            yield knob, library, {knob: False if value is True else None}
    if found := optimizer(config.optim):
        yield "optim", found, {"optim": "adamw_torch"}
    for name in config.report_to:
        if name in TRACKERS:
            rest = [other for other in config.report_to if other != name] or ["none"]
            yield "report_to", Library(name, *TRACKERS[name]), {"report_to": rest}
    if config.flash_attn in KERNELS:
        yield "flash_attn", Library(config.flash_attn, *KERNELS[config.flash_attn]), {"flash_attn": "auto"}
