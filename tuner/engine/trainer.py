"""What every stage shares: TrainingArguments from the config as a whole, the loop with its saving, the files at the end."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainingArguments,
)

from tuner import paths
from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem
from tuner.config.libraries import SWITCHES, need
from tuner.config.loop_rules import MEASURED_BY, asks_for_best
from tuner.config.spelling import asks_for_fsdp
from tuner.config.training_arguments import NAMES
from tuner.config.writing import to_yaml
from tuner.data.tokens import load_tokenizer
from tuner.engine import adapters, card, group, methods, optimizers
from tuner.engine.live import LiveRun
from tuner.engine.picture import draw
from tuner.engine.profiler import Profiler
from tuner.engine.scores import save_value_head
from tuner.engine.setup import Start
from tuner.engine.trainer_log import TrainerLog
from tuner.engine.truth import note_disk, note_training
from tuner.jobs.live import Outcome
from tuner.models.vision import copy_processor
from tuner.plan.engine import TRL
from tuner.plan.memory import recomputes
from tuner.plan.plan import Plan
from tuner.plan.preflight import no_full_batch
from tuner.runs import checkpoints
from tuner.text.lookup import tr
from tuner.text.message import message

if TYPE_CHECKING:
    from transformers import Trainer

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def arguments(kind: type[Arguments], config: Config, run: LiveRun, plan: Plan, **own: Any) -> Arguments:
    """Every knob of transformers' TrainingArguments by its own name, what the studio settles itself, and `own`."""
    known = {f.name for f in dataclasses.fields(kind) if f.init}
    given = {name: _plain(getattr(config, name)) for name in NAMES if name in known}
    given = (
        {name: value for name, value in given.items() if value is not None}
        | _settled(config, run, plan)
        | own
    )
    if "router_aux_loss_coef" in known and config.moe_aux_loss_coef is None:
        given["router_aux_loss_coef"] = 0.0  # as in LLaMA-Factory: experts are balanced when asked for
    elif "router_aux_loss_coef" in known:
        given["router_aux_loss_coef"] = config.moe_aux_loss_coef
    made = kind(**given)
    if made.n_gpu > 1:  # it would spread each batch over all cards and multiply it by their number
        made._n_gpu = 1
    return made


def _plain(value: Any) -> Any:
    return (list(value) or None) if isinstance(value, tuple) else value


def _settled(config: Config, run: LiveRun, plan: Plan) -> dict[str, Any]:
    """Where the studio knows better than a default, or does the work itself."""
    gpu = on_gpu(config)
    # a plan for packed rows says nothing of a trainer that had to take over
    recompute = plan.recompute != 0 if plan.engine == TRL else recomputes(config, gpu)
    fused = config.enable_liger_kernel or config.use_liger_kernel
    if fused:
        need(SWITCHES["enable_liger_kernel"], knob="enable_liger_kernel")
    settled = {
        "output_dir": str(run.place_checkpoints()),
        "use_cpu": not gpu,
        "bf16": config.bf16 and not config.pure_bf16,
        "fp16": config.fp16 and gpu and not config.pure_bf16,
        "gradient_checkpointing": recompute,
        "report_to": [name for name in config.report_to if name not in ("none", "mlflow")],
        "run_name": config.run_name or run.run.name,
        "remove_unused_columns": False,  # rows come encoded and hold what is needed, nothing else
        "logging_first_step": True,  # the first point of the chart must not wait for logging_steps
        "logging_nan_inf_filter": False,  # a loss that is no number must be seen, not smoothed over
        "include_num_input_tokens_seen": tokens_counted(config),
        "restore_callback_states_from_checkpoint": True,
        "save_total_limit": None,  # `checkpoints.rotate` does it, after the newest one is safe on disk
        "disable_tqdm": True,
        "dataloader_pin_memory": config.dataloader_pin_memory and gpu,
        "use_liger_kernel": fused,
        **optimizers.names(config),
    }
    if recompute:
        alone = config.processes == 1  # the older way calls a layer's backward twice, which DDP takes for two
        settled["gradient_checkpointing_kwargs"] = config.gradient_checkpointing_kwargs or {
            "use_reentrant": config.use_reentrant_gc and alone
        }
    if config.processes > 1 and config.ddp_find_unused_parameters is None:
        settled["ddp_find_unused_parameters"] = False  # every trained weight takes part in every step
    if asks_for_fsdp(config.fsdp):
        settled |= {"fsdp": True, "fsdp_config": fsdp_settings(config), "gradient_checkpointing": False}
        settled["fsdp_config"].setdefault("activation_checkpointing", recompute)
    else:
        settled["fsdp"] = None  # a word for no
    if run.quiet.is_set() and config.log_level_replica == "warning":
        settled["log_level_replica"] = "error"  # the first process says the rest
    if config.disable_shuffling:
        settled["train_sampling_strategy"] = "sequential"
    if asks_for_best(config) and not config.metric_for_best_model:
        settled["metric_for_best_model"] = "eval_reward" if config.kind.rewarded else "eval_loss"
    if config.lr_scheduler_type in MEASURED_BY and config.kind.rewarded:  # torch takes less for better
        settled["lr_scheduler_kwargs"] = {"mode": "max"} | dict(config.lr_scheduler_kwargs or {})
    return settled


def fsdp_settings(config: Config) -> dict[str, Any]:
    """`fsdp_config` with what older spellings of `fsdp` say, FSDP2 where nothing else is asked for.

    Whole models are saved in pieces, by each process its own; an adapter is small, and whole in each checkpoint.
    """
    said = config.fsdp_config
    if isinstance(said, str):
        said = json.loads((paths.home() / said).read_text(encoding="utf-8"))
    given = {str(name).removeprefix("fsdp_"): value for name, value in dict(said or {}).items()}
    words = (config.fsdp or "").lower().split()
    if "offload" in words:
        given.setdefault("cpu_offload", True)
    if "shard_grad_op" in words:
        given.setdefault("reshard_after_forward", False)
    whole = config.finetuning_type in ("full", "freeze")
    return {"version": 2, "state_dict_type": "SHARDED_STATE_DICT" if whole else "FULL_STATE_DICT"} | given


def tokens_counted(config: Config) -> str:
    """Which tokens are counted: a rate is always shown, and padding is nothing the model learns from."""
    asked = str(config.include_num_input_tokens_seen)
    return "non_padding" if asked == "no" else asked


def on_gpu(config: Config) -> bool:
    """Whether the run computes on a GPU."""
    return torch.cuda.is_available() and not config.use_cpu


def fit(
    trainer: Trainer,
    config: Config,
    run: LiveRun,
    start: Start,
    also: Callable[[dict[str, float]], dict[str, float]] = lambda metrics: {},
    predict: Callable[[Trainer, Config, LiveRun, Start], dict[str, float]] | None = None,
    settle: Callable[[Trainer, Config, LiveRun, Start], dict[str, float]] | None = None,
) -> Outcome:
    """Train, save, evaluate, predict: the same for every stage. `also` derives further totals from an evaluation's; `settle`
    adds to what was saved what only the evaluation's rows tell, and returns what it measured."""
    _prepare(trainer, config, run, start)
    metrics: dict[str, float] = {}
    weights: Path | None = None
    if config.do_train:
        metrics |= _train(trainer, config, run, start)
        if run.asked and trainer.state.global_step < trainer.state.max_steps:
            return Outcome(metrics=metrics, base=start.source.base, stopped=True)
        with run.phase("saving"):
            weights = save(trainer, config, run, start)
            note_disk(run)
    if trainer.eval_dataset is not None and (config.do_eval or config.do_train):
        with run.phase("evaluating"):
            found = trainer.evaluate()
            metrics |= _write_results(run, "eval", found | also(found))
    group.leave()
    if settle:
        with run.phase("calibrating"):
            metrics |= _write_results(run, "decision", settle(trainer, config, run, start))
    if trainer.eval_dataset is not None and config.do_predict and predict:
        with run.phase("predicting"):
            metrics |= _write_results(run, "predict", predict(trainer, config, run, start))
    with run.phase("writing_results"):
        trainer.state.save_to_json(str(run.output / "trainer_state.json"))
        _merge_json(run.output / "all_results.json", metrics)
        if config.plot_loss:
            draw(trainer.state.log_history, run.output)
        if weights:
            card.write(weights, run.run, config, metrics)
    adapter = weights is not None and (weights / "adapter_config.json").is_file()
    return Outcome(metrics=metrics, weights=weights, adapter=adapter, base=start.source.base)


class Streamed(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    """Rows without a number, in the class by which torch's loader knows them."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


def _prepare(trainer: Trainer, config: Config, run: LiveRun, start: Start) -> None:
    """Real rows for the placeholders a trainer was built with; number types, optimizer, callbacks."""
    trainer.train_dataset = Streamed(start.rows.train) if start.streamed else start.rows.train
    held_out = start.rows.eval
    # One unnamed set is measured as eval_..., several as eval_<name>_...
    trainer.eval_dataset = held_out[""] if set(held_out) == {""} else dict(held_out) or None
    if config.dataloader_drop_last:
        _drop_in_training_only(trainer, config, start)
    methods.settle_types(config, trainer.model)
    if config.kind.needs_reference:
        adapters.keep_only_adapter_dropout(trainer.model)
    trainer.optimizer = optimizers.make(config, trainer) if config.do_train else None
    if not run.quiet.is_set():
        run.output.mkdir(parents=True, exist_ok=True)
        (run.output / "training_args.yaml").write_text(to_yaml(config.changed()), encoding="utf-8")
    for callback in _callbacks(trainer, config, run, start):
        trainer.add_callback(callback)
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    run.say(methods.describe(trainer.model))
    if config.print_param_status:
        for name, weight in trainer.model.named_parameters():
            run.say(
                f"{name}  {tuple(weight.shape)}  {weight.dtype}  {'trained' if weight.requires_grad else 'frozen'}"
            )


def _drop_in_training_only(trainer: Trainer, config: Config, start: Start) -> None:
    """Measure on every row: transformers drops a last batch that is not full from evaluations as well.

    Raises ConfigError where no batch of training is full, which transformers takes for a finished run.
    """
    size = config.per_device_train_batch_size * config.processes
    if config.do_train and not start.streamed and len(start.rows.train) < size:
        raise ConfigError([no_full_batch(len(start.rows.train), size)])
    get = trainer.get_eval_dataloader

    def whole(*args: Any, **rest: Any) -> Any:
        before, trainer.args.dataloader_drop_last = trainer.args.dataloader_drop_last, False
        try:
            return get(*args, **rest)
        finally:
            trainer.args.dataloader_drop_last = before

    trainer.get_eval_dataloader = whole


def _callbacks(trainer: Trainer, config: Config, run: LiveRun, start: Start) -> Iterator[TrainerCallback]:
    yield run.callback
    if config.do_train:
        yield TrainerLog(run)
    if config.early_stopping_steps:
        yield EarlyStoppingCallback(early_stopping_patience=config.early_stopping_steps)
    if config.probe and not config.kind.rewarded:
        from tuner.engine.samples import Sampler

        yield Sampler(config, run, load_tokenizer(start.source.folder))
    if config.enable_torch_profiler and not run.quiet.is_set():
        yield Profiler(config, run.output)


def _train(trainer: Trainer, config: Config, run: LiveRun, start: Start) -> dict[str, float]:
    if begin := start.checkpoint:
        _go_on(trainer, config, run, begin)
    with run.phase("training"):
        result = trainer.train(resume_from_checkpoint=str(begin) if begin else None)
    note_training(trainer, run, start.plan)
    metrics = dict(result.metrics)
    seen = trainer.state.num_input_tokens_seen
    if config.include_num_input_tokens_seen != "no" and seen:
        metrics["num_input_tokens_seen"] = seen
    if config.include_effective_tokens_per_second:
        metrics["effective_tokens_per_sec"] = seen / max(metrics.get("train_runtime", 0.0), 1e-9)
    return _write_results(run, "train", metrics)


def _go_on(trainer: Trainer, config: Config, run: LiveRun, begin: Path) -> None:
    """Say where the run goes on from; refuse when nothing is left to do but what another run did."""
    state = json.loads((begin / "trainer_state.json").read_text(encoding="utf-8"))
    step, last = int(state.get("global_step", 0)), _last_step(trainer)
    said = checkpoints.manifest(begin) or {}
    if step >= last and said.get("run") != run.run.id:  # its own: it died between its last step and its end
        sentence = tr(
            "{begin} is at step {step} and this config ends at step {last}: there is nothing left to train. Give more --num_train_epochs, or set --overwrite_output_dir True to start afresh.",
            begin=begin,
            step=step,
            last=last,
        )
        raise ConfigError([Problem("overwrite_output_dir", sentence, {"overwrite_output_dir": True})])
    run.record(began_from=str(begin), continues=said.get("run") or run.run.id)
    run.note(message("note.resumed", checkpoint=begin.name, step=step, total=last))
    before, batch = said.get("processes", config.processes), config.examples_per_step
    if before != config.processes:
        run.note(message("note.other_processes", before=before, now=config.processes))
    if said.get("examples_per_step", batch) != batch:
        run.note(message("note.other_batch", before=said["examples_per_step"], now=batch))


def _last_step(trainer: Trainer) -> int:
    """The optimizer step at which training ends, as transformers counts it."""
    return int(trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1])


def save(trainer: Trainer, config: Config, run: LiveRun, start: Start) -> Path:
    """The adapter or model with its tokenizer and, where it takes pictures, its processor, in the output folder."""
    run.output.mkdir(parents=True, exist_ok=True)
    if trainer.is_fsdp_enabled:  # what came out is whole, also where checkpoints are in pieces
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(run.output))
    if config.kind.scores:
        save_value_head(trainer.model, run.output, run.quiet.is_set())
    if run.quiet.is_set():
        return run.output
    copy_processor(start.source.folder, run.output)
    (run.output / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody needs
    shutil.rmtree(run.output / "ref", ignore_errors=True)  # the reference is not what was trained
    if (
        config.pissa_init and config.pissa_convert
    ):  # every PiSSA adapter is saved converted; some look for it there
        converted = run.output / "pissa_converted"
        converted.mkdir(exist_ok=True)
        for path in run.output.glob("adapter_*"):
            shutil.copy2(path, converted)
    return run.output


def _write_results(run: LiveRun, name: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    """<name>_results.json, as transformers' scripts write it."""
    plain = {k: float(v) for k, v in sorted(metrics.items()) if isinstance(v, int | float)}
    if run.quiet.is_set():
        return plain
    run.output.mkdir(parents=True, exist_ok=True)
    (run.output / f"{name}_results.json").write_text(json.dumps(plain, indent=4) + "\n", encoding="utf-8")
    return plain


def _merge_json(path: Path, values: Mapping[str, float]) -> None:
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**before, **values}, indent=4) + "\n", encoding="utf-8")
