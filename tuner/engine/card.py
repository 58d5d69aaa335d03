"""The model card of what a run leaves behind: README.md with base, data, parameters and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tuner import __version__
from tuner.config.config import Config
from tuner.config.spelling import word
from tuner.config.vision import takes_pictures
from tuner.plan.facts import model_of
from tuner.runs.inputs import recorded
from tuner.runs.run import Run

METRICS = (
    "train_loss", "eval_loss", "eval_accuracy", "eval_rewards/accuracies", "eval_rewards/margins", "eval_perplexity",
    "predict_bleu-4", "predict_rouge-1", "predict_rouge-2", "predict_rouge-l", "train_runtime",
)  # fmt: skip
# Where a run happened is no property of what came out.
PRIVATE = ("output_dir", "dataset_dir", "run_name", "resume_from_checkpoint", "tokenized_path", "cache_dir")


def write(folder: Path, run: Run, config: Config, metrics: Mapping[str, float]) -> None:
    """Write the card of the weights in `folder`; the model stands there as the config names it."""
    from huggingface_hub import ModelCardData

    adapter = (folder / "adapter_config.json").is_file()
    head = ModelCardData(
        base_model=config.model_name_or_path,
        library_name="peft" if adapter else "transformers",
        license="other",
        pipeline_tag=_task(config),
        tags=["tuner", config.stage, config.finetuning_type],
        datasets=None,  # a set of the catalog is no name on the hub
    )
    sections = [
        f"# {run.name}",
        f"Trained from `{config.model_name_or_path}` with stage `{config.stage}` and method "
        f"`{config.finetuning_type}`, by tuner {__version__}.",
        "## Data\n\n" + _table(("data set", "rows", "sha256"), _data(run)),
        "## Results\n\n"
        + _table(("metric", "value"), [(n, f"{metrics[n]:.6g}") for n in METRICS if n in metrics]),
        "## Parameters\n\nAll others have their defaults.\n\n"
        + _table(("name", "value"), _parameters(config)),
        "## Use\n\n```python\n" + _code(config, adapter) + "```",
    ]
    text = f"---\n{head.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


def _task(config: Config) -> str:
    if config.kind.scores:
        return "text-classification"
    return "image-text-to-text" if takes_pictures(model_of(config).config) else "text-generation"


def _data(run: Run) -> list[tuple[str, str, str]]:
    return [(i.name, str(i.rows or ""), i.digest[:12]) for i in recorded(run)]


def _parameters(config: Config) -> list[tuple[str, str]]:
    return [(n, word(v)) for n, v in config.changed().items() if n not in PRIVATE]


def _code(config: Config, adapter: bool) -> str:
    """Python that loads the weights; an adapter knows its base by itself, but not that it sees."""
    if takes_pictures(model_of(config).config):
        return _seeing(config, adapter)
    task = "SequenceClassification" if config.kind.scores else "CausalLM"
    kind = f"{'AutoPeftModelFor' if adapter else 'AutoModelFor'}{task}"
    more = ", num_labels=1" if config.kind.scores else ""
    lines = [f"from peft import {kind}", "from transformers import AutoTokenizer"] if adapter else [
        f"from transformers import {kind}, AutoTokenizer"
    ]  # fmt: skip
    lines.append(f'model = {kind}.from_pretrained("PATH_OF_THIS_FOLDER"{more})')
    lines.append('tokenizer = AutoTokenizer.from_pretrained("PATH_OF_THIS_FOLDER")')
    return "\n".join(lines) + "\n"


def _seeing(config: Config, adapter: bool) -> str:
    whole = "AutoModelForImageTextToText.from_pretrained"
    base = f'{whole}("{config.model_name_or_path}")'
    made = (
        f'PeftModel.from_pretrained({base}, "PATH_OF_THIS_FOLDER")'
        if adapter
        else f'{whole}("PATH_OF_THIS_FOLDER")'
    )
    lines = [*(["from peft import PeftModel"] if adapter else [])]
    lines += ["from transformers import AutoModelForImageTextToText, AutoProcessor", f"model = {made}"]
    lines.append(
        'processor = AutoProcessor.from_pretrained("PATH_OF_THIS_FOLDER")  # of some models with torchvision'
    )
    return "\n".join(lines) + "\n"


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table; what could end a cell or begin a tag is escaped."""
    if not rows:
        return "None."
    lines = [heads, tuple("---" for _ in heads), *(tuple(map(_cell, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    for sign, escaped in (
        ("\\", "\\\\"),
        ("|", "\\|"),
        ("<", "&lt;"),
        ("\n", " "),
        ("[", "\\["),
        ("`", "\\`"),
    ):
        text = text.replace(sign, escaped)
    return text
