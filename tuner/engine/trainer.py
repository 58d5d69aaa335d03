"""What every stage shares: TrainingArguments from the config as a whole, the loop with its saving, the files at the end."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import PrinterCallback, ProgressCallback, TrainingArguments

from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem
from tuner.config.sections import argument_table
from tuner.data.tokens import load_tokenizer
from tuner.engine.live import LiveRun, Outcome
from tuner.engine.models import Source
from tuner.engine.picture import draw
from tuner.engine.samples import Sampler
from tuner.tracking import checkpoints

if TYPE_CHECKING:
    from transformers import Trainer

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def arguments(kind: type[Arguments], config: Config, run: LiveRun, **own: Any) -> Arguments:
    """Every knob of transformers' TrainingArguments by its own name, what the studio settles itself, and `own`."""
    known = {f.name for f in dataclasses.fields(kind) if f.init}
    given = {name: _plain(getattr(config, name)) for name in argument_table() if name in known}
    given = {name: value for name, value in given.items() if value is not None} | _settled(config, run) | own
    return kind(**given)


def _plain(value: Any) -> Any:
    return (list(value) or None) if isinstance(value, tuple) else value


def _settled(config: Config, run: LiveRun) -> dict[str, Any]:
    """Where the studio knows better than a default, or does the work itself."""
    on_gpu = torch.cuda.is_available() and not config.use_cpu
    return {
        "output_dir": str(run.place_checkpoints()),
        "use_cpu": not on_gpu,
        "bf16": config.bf16,
        "fp16": config.fp16 and on_gpu,
        "gradient_checkpointing": checkpointing(config, on_gpu),
        "report_to": [name for name in config.report_to if name not in ("none", "mlflow")],
        "run_name": config.run_name or run.run.name,
        "remove_unused_columns": False,  # rows come encoded and hold what is needed, nothing else
        "logging_first_step": True,  # the first point of the chart must not wait for logging_steps
        "logging_nan_inf_filter": False,  # a loss that is no number must be seen, not smoothed over
        "include_num_input_tokens_seen": tokens_counted(config),
        "restore_callback_states_from_checkpoint": True,
        "save_total_limit": None,  # `checkpoints.rotate` does it, after the newest one is safe on disk
        "disable_tqdm": True,
        "dataloader_pin_memory": config.dataloader_pin_memory and on_gpu,
        "seed": config.seed,
    }


def tokens_counted(config: Config) -> str:
    """Which tokens are counted: tokens a second are always shown, and padding is nothing the model learns from."""
    return (
        "non_padding"
        if config.include_num_input_tokens_seen == "no"
        else config.include_num_input_tokens_seen
    )


def checkpointing(config: Config, on_gpu: bool) -> bool:
    """Whether activations are computed again in the backward pass: as asked, else on a GPU only, where memory is short."""
    if config.gradient_checkpointing is not None:
        return bool(config.gradient_checkpointing)
    return on_gpu


def give_rows(trainer: Trainer, train: Sequence[Any], held_out: Mapping[str, Sequence[Any]]) -> None:
    """Encoded rows instead of the placeholders a trainer was built with. One unnamed set is evaluated as `eval_`."""
    trainer.train_dataset = train
    trainer.eval_dataset = held_out[""] if set(held_out) == {""} else dict(held_out) or None


def fit(trainer: Trainer, config: Config, run: LiveRun, source: Source) -> Outcome:
    """Train, evaluate, save: the same for every stage. Returns what the worker records."""
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    trainer.add_callback(run.callback)
    if config.probe:
        trainer.add_callback(Sampler(config, run, load_tokenizer(source.folder)))
    metrics: dict[str, float] = {}
    weights: Path | None = None
    if config.do_train:
        metrics |= _train(trainer, config, run)
        if run.asked:
            return Outcome(metrics=metrics, base=source.base, stopped=True)
        with run.phase("saving"):
            weights = save(trainer, run)
    if trainer.eval_dataset is not None:
        with run.phase("evaluating"):
            metrics |= _write_results(run.output, "eval", trainer.evaluate())
    with run.phase("writing results"):
        trainer.state.save_to_json(str(run.output / "trainer_state.json"))
        _merge_json(run.output / "all_results.json", metrics)
        if config.plot_loss:
            draw(trainer.state.log_history, run.output)
    adapter = weights is not None and (weights / "adapter_config.json").is_file()
    return Outcome(metrics=metrics, weights=weights, adapter=adapter, base=source.base)


def _train(trainer: Trainer, config: Config, run: LiveRun) -> dict[str, float]:
    begin = checkpoints.start_of(run.run, config)
    if begin:
        _go_on(trainer, run, begin)
    with run.phase("training"):
        result = trainer.train(resume_from_checkpoint=str(begin) if begin else None)
    metrics = dict(result.metrics)
    seen = trainer.state.num_input_tokens_seen
    if config.include_num_input_tokens_seen != "no" and seen:
        metrics["num_input_tokens_seen"] = seen
    return _write_results(run.output, "train", metrics)


def _go_on(trainer: Trainer, run: LiveRun, begin: Path) -> None:
    """Say where the run goes on from; refuse when nothing is left to do."""
    state = json.loads((begin / "trainer_state.json").read_text(encoding="utf-8"))
    step, last = int(state.get("global_step", 0)), _last_step(trainer)
    if step >= last:
        sentence = (
            f"{begin} is at step {step} and this config ends at step {last}: there is nothing left to train. "
            "Give more --num_train_epochs, or set --overwrite_output_dir True to start afresh."
        )
        raise ConfigError([Problem("overwrite_output_dir", sentence, {"overwrite_output_dir": True})])
    said = checkpoints.manifest(begin) or {}
    run.record(resumed_from=str(begin), continues=said.get("run") or run.run.id)
    run.note(f"Went on from {begin.name} (step {step} of {last}).")


def _last_step(trainer: Trainer) -> int:
    """The optimizer step at which training ends, as transformers counts it."""
    return int(trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1])


def save(trainer: Trainer, run: LiveRun) -> Path:
    """The adapter or model with its tokenizer, in the output folder."""
    run.output.mkdir(parents=True, exist_ok=True)
    trainer.save_model(str(run.output))
    (run.output / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody needs
    return run.output


def _write_results(output: Path, name: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    """<name>_results.json, as transformers' scripts write it."""
    plain = {k: float(v) for k, v in sorted(metrics.items()) if isinstance(v, int | float)}
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}_results.json").write_text(json.dumps(plain, indent=4) + "\n", encoding="utf-8")
    return plain


def _merge_json(path: Path, values: Mapping[str, float]) -> None:
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**before, **values}, indent=4) + "\n", encoding="utf-8")
