"""Before a GPU is used: what would stop this run on this machine.

Everything here is known without torch, in well under a second, so that the form can ask at every change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tuner.config import libraries
from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem
from tuner.config.picture_sections import Pictures
from tuner.config.settings import settings
from tuner.config.vision import takes_pictures
from tuner.config.without_effect import unheeded
from tuner.data.catalog import named, pick, pick_eval
from tuner.data.mix import kept_aside
from tuner.data.prepare import unseen
from tuner.data.template_choice import unknown
from tuner.plan import machine_checks, model_checks, picture_checks, schedule
from tuner.plan.engine import PACKED, refusal, written_out
from tuner.plan.facts import all_rows, learnt_rows, model_of
from tuner.rewards import registry
from tuner.text.lookup import tr, trn
from tuner.text.message import Message


def problems(config: Config) -> list[Problem]:
    """All that would stop the run, each in one sentence beside its knob; empty when it can start."""
    return [
        *_settings(),
        *_task(config),
        *model_checks.model(config),
        *model_checks.adapters(config),
        *_data(config),
        *picture_checks.problems(config),
        *_probe(config),
        *registry.problems(config),
        *_engine(config),
        *_float8(config),
        *_rewarded(config),
        *machine_checks.machine(config),
        *libraries.missing(config),
        *machine_checks.files(config),
        *machine_checks.output(config),
    ]


def model_problems(config: Config) -> list[Problem]:
    """What stands against loading the model alone, for runs that use one and do not train."""
    return [*model_checks.model(config), *libraries.missing(config)]


def _settings() -> Iterator[Problem]:
    try:
        settings()
    except ConfigError as error:
        yield from error.problems


def _task(config: Config) -> Iterator[Problem]:
    if not (config.do_train or config.do_eval or config.do_predict):
        said = tr("The run has nothing to do; set --do_train True, or --do_eval or --do_predict.")
        yield Problem("do_train", said, {"do_train": True})


def _data(config: Config) -> Iterator[Problem]:
    for knob, find in (("dataset", pick), ("eval_dataset", pick_eval)):
        try:
            entries = find(config)
        except ConfigError as error:
            yield from (replace(problem, knob=knob) for problem in error.problems)
            return
        for entry in entries:
            try:
                entry.files()
            except ConfigError as error:
                yield from error.problems
                continue
            if said := entry.fits(config.stage):
                yield Problem(knob, said)
            elif entry.pictures and reads_text_alone(config):
                yield Problem(knob, unseen(entry, str(config.model_name_or_path)))
    try:
        kept_aside(None if config.streaming else all_rows(config), config.val_size)
    except ConfigError as error:
        yield from error.problems
    rows = learnt_rows(config) if config.dataloader_drop_last and not config.streaming else None
    size = config.per_device_train_batch_size * config.processes
    if rows is not None and rows < size:
        yield no_full_batch(rows, size)
    if found := unknown(config.template):
        yield found


def reads_text_alone(config: Config) -> bool:
    """Whether the model is here and takes no pictures."""
    said = model_of(config).config
    return bool(said) and not takes_pictures(said)


def no_full_batch(rows: int, size: int) -> Problem:
    """What is said where batches that are not full are left out and there is no other."""
    said = tr(
        "--dataloader_drop_last True leaves out a batch that is not full, and the {rows} rows make none of {size}; "
        "set it to False.",
        rows=rows,
        size=size,
    )
    return Problem("dataloader_drop_last", said, {"dataloader_drop_last": False})


def _probe(config: Config) -> Iterator[Problem]:
    if not config.probe:
        return
    try:
        (entry,) = named([config.probe], config.dataset_dir)
        entry.files()
        if entry.media or entry.kind == "text":
            said = tr(
                "--probe {probe} holds no questions; name a set of chats, pairs or marked answers.",
                probe=config.probe,
            )
            yield Problem("probe", said, {"probe": None})
    except ConfigError as error:
        said = tr(
            "{error} Choose another one for --probe, or leave it empty: the run then asks no held-out questions.",
            error=error,
        )
        yield Problem("probe", said, {"probe": None})


def _engine(config: Config) -> Iterator[Problem]:
    """The packed engine, asked for in vain."""
    if config.engine != PACKED or PACKED not in config.kind.engines:  # of no effect elsewhere
        return
    model = model_of(config)
    if why := refusal(config, model.config, model.adapter):
        yield packed_in_vain(why)


def _float8(config: Config) -> Iterator[Problem]:
    """8-bit products, asked for in vain: they are part of the layers that are written out."""
    if not config.fp8 or not config.do_train:
        return
    model = model_of(config)
    if config.quantization_bit or not (config.bf16 or config.pure_bf16):
        said = tr(
            "--fp8 True multiplies weights that are in bfloat16; set --bf16 True and leave --quantization_bit out."
        )
        yield Problem("fp8", said, {"fp8": False})
    elif (
        config.kind.rewarded
        or refusal(config, model.config, model.adapter)
        or not written_out(config, model.config, True, model.adapter)
    ):
        yield float8_in_vain()


def float8_in_vain() -> Problem:
    """What is said where the layers that multiply in 8 bits do not take a run."""
    said = tr("--fp8 True is for LoRA without dropout on packed rows of a model whose layers are written out (Llama, Mistral, "
              "Qwen2, Qwen3, Gemma, Phi, GLM, OLMo), and not for stages that learn from rewards; leave it out.")  # fmt: skip
    return Problem("fp8", said, {"fp8": False})


def _rewarded(config: Config) -> Iterator[Problem]:
    """A run that learns from rewards: what its batches do not come out even with."""
    if not config.kind.rewarded:
        return
    if config.sharded:
        said = tr(
            "--stage {stage} needs the whole model in each process, which writes answers with it; leave --fsdp and "
            "--deepspeed out.",
            stage=config.stage,
        )
        yield Problem("fsdp", said, {"fsdp": None, "deepspeed": None})
    if config.fp16:
        said = tr(
            "--fp16 True is not for --stage {stage}, whose gradients are not scaled; use --bf16 True, or neither.",
            stage=config.stage,
        )
        yield Problem("fp16", said, {"fp16": False, "bf16": True})
    yield from schedule.problems(config, learnt_rows(config))


def packed_in_vain(why: Message) -> Problem:
    """What is said where only the packed engine will do, and it does not take the run."""
    said = tr("--engine packed does not take this run: {why}", why=why)
    return Problem("engine", said, {"engine": "auto"})


def notes(config: Config, at_work: bool = False) -> list[str]:
    """What does not stop the run and is not what everybody expects, each in one sentence. Of one that is `at_work` this
    machine is the one that it lives on."""
    return [
        *(machine_checks.slow_bf16(config) if at_work or not machine_checks.elsewhere() else ()),
        *machine_checks.one_of_several(config),
        *_keeps_the_last(config),
        *_experts_left_out(config),
        *picture_checks.notes(config),
        *_no_pictures(config),
        *unheeded(config),
    ]


def _no_pictures(config: Config) -> Iterator[str]:
    """What is said of pictures to a model that sees none."""
    defaults = {name: field.default for name, field in Pictures.model_fields.items()}
    changed = [f"--{name}" for name, usual in defaults.items() if getattr(config, name) != usual]
    if changed and reads_text_alone(config):
        yield trn(
            "{names} has no effect: the model reads text alone.",
            "{names} have no effect: the model reads text alone.",
            len(changed),
            names=", ".join(changed),
        )


def _keeps_the_last(config: Config) -> Iterator[str]:
    if config.do_train and config.early_stopping_steps and not config.load_best_model_at_end:
        yield (
            tr(
                "--early_stopping_steps ends the run {early_stopping_steps} measurements after the best one, and the "
                "last weights are kept, which measured worse; --load_best_model_at_end True keeps the best.",
                early_stopping_steps=config.early_stopping_steps,
            )
        )


def _experts_left_out(config: Config) -> Iterator[str]:
    """All linears, to PEFT, are not those of every mixture's experts."""
    everywhere = config.do_train and config.finetuning_type == "lora" and config.lora_target == ("all",)
    shape = model_of(config).shape if everywhere and not config.adapter_name_or_path else None
    if shape is not None and shape.experts is not None and not shape.experts.adapted:
        yield tr(
            "--lora_target all adapts the attention of this mixture of experts and leaves its {number} experts a layer as "
            "they are.",
            number=shape.experts.count,
        )
