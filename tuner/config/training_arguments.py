"""The fields of transformers' TrainingArguments that no other section declares, each by its own name.

Made by `python -m tools.training_arguments`, because importing transformers takes seconds and a type checker sees no
class that is made while running; a test holds this file to the installed version. Do not edit.
"""
# ruff: noqa: E501

from __future__ import annotations

from typing import Any, Literal

from tuner.config.knobs import (
    Json,
    Names,
    OptionalBool,
    OptionalInt,
    OptionalText,
    Section,
    SpacedText,
    knob,
)


def _passed(name: str, default: Any, secret: bool = False) -> Any:
    said = f"Passed on to transformers' TrainingArguments as {name}."
    return knob(default, said, shown=False, advanced=True, secret=secret)


class TrainingArguments(Section):
    title = "Everything else of transformers' TrainingArguments"
    icon = ":material/more_horiz:"

    lr_scheduler_kwargs: Json = _passed("lr_scheduler_kwargs", None)
    optim_args: OptionalText = _passed("optim_args", None)
    adam_beta1: float = _passed("adam_beta1", 0.9)
    adam_beta2: float = _passed("adam_beta2", 0.999)
    adam_epsilon: float = _passed("adam_epsilon", 1e-08)
    optim_target_modules: Names = _passed("optim_target_modules", ())
    average_tokens_across_devices: bool = _passed("average_tokens_across_devices", True)
    label_smoothing_factor: float = _passed("label_smoothing_factor", 0.0)
    bf16_full_eval: bool = _passed("bf16_full_eval", False)
    fp16_full_eval: bool = _passed("fp16_full_eval", False)
    tf32: OptionalBool = _passed("tf32", None)
    activation_checkpointing: OptionalBool = _passed("activation_checkpointing", None)
    activation_checkpointing_kwargs: Json = _passed("activation_checkpointing_kwargs", None)
    gradient_checkpointing_kwargs: Json = _passed("gradient_checkpointing_kwargs", None)
    torch_compile: bool = _passed("torch_compile", False)
    torch_compile_backend: OptionalText = _passed("torch_compile_backend", None)
    torch_compile_mode: OptionalText = _passed("torch_compile_mode", None)
    use_liger_kernel: bool = _passed("use_liger_kernel", False)
    liger_kernel_config: Json = _passed("liger_kernel_config", None)
    use_cache: bool = _passed("use_cache", False)
    torch_empty_cache_steps: OptionalInt = _passed("torch_empty_cache_steps", None)
    auto_find_batch_size: bool = _passed("auto_find_batch_size", False)
    logging_strategy: Literal["no", "steps", "epoch"] = _passed("logging_strategy", "steps")
    logging_first_step: bool = _passed("logging_first_step", False)
    log_on_each_node: bool = _passed("log_on_each_node", True)
    logging_nan_inf_filter: bool = _passed("logging_nan_inf_filter", True)
    log_level: str = _passed("log_level", "passive")
    log_level_replica: str = _passed("log_level_replica", "warning")
    disable_tqdm: OptionalBool = _passed("disable_tqdm", None)
    project: str = _passed("project", "huggingface")
    trackio_space_id: OptionalText = _passed("trackio_space_id", None)
    trackio_bucket_id: OptionalText = _passed("trackio_bucket_id", None)
    trackio_static_space_id: Json = _passed("trackio_static_space_id", None)
    eval_delay: float = _passed("eval_delay", 0)
    prediction_loss_only: bool = _passed("prediction_loss_only", False)
    eval_on_start: bool = _passed("eval_on_start", False)
    eval_do_concat_batches: bool = _passed("eval_do_concat_batches", True)
    eval_use_gather_object: bool = _passed("eval_use_gather_object", False)
    eval_accumulation_steps: OptionalInt = _passed("eval_accumulation_steps", None)
    include_for_metrics: Names = _passed("include_for_metrics", ())
    batch_eval_metrics: bool = _passed("batch_eval_metrics", False)
    save_only_model: bool = _passed("save_only_model", False)
    save_strategy: Literal["no", "steps", "epoch", "best"] = _passed("save_strategy", "steps")
    save_on_each_node: bool = _passed("save_on_each_node", False)
    enable_jit_checkpoint: bool = _passed("enable_jit_checkpoint", False)
    push_to_hub: bool = _passed("push_to_hub", False)
    hub_token: OptionalText = _passed("hub_token", None, secret=True)
    hub_private_repo: OptionalBool = _passed("hub_private_repo", None)
    hub_model_id: OptionalText = _passed("hub_model_id", None)
    hub_strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] = _passed(
        "hub_strategy", "every_save"
    )
    hub_always_push: bool = _passed("hub_always_push", False)
    hub_revision: OptionalText = _passed("hub_revision", None)
    ignore_data_skip: bool = _passed("ignore_data_skip", False)
    restore_callback_states_from_checkpoint: bool = _passed("restore_callback_states_from_checkpoint", False)
    full_determinism: bool = _passed("full_determinism", False)
    data_seed: OptionalInt = _passed("data_seed", None)
    use_cpu: bool = _passed("use_cpu", False)
    accelerator_config: Json = _passed("accelerator_config", None)
    parallelism_config: Json = _passed("parallelism_config", None)
    dataloader_drop_last: bool = _passed("dataloader_drop_last", False)
    dataloader_num_workers: int = _passed("dataloader_num_workers", 0)
    dataloader_pin_memory: bool = _passed("dataloader_pin_memory", True)
    dataloader_persistent_workers: bool = _passed("dataloader_persistent_workers", False)
    dataloader_prefetch_factor: OptionalInt = _passed("dataloader_prefetch_factor", None)
    dataloader_multiprocessing_context: OptionalText = _passed("dataloader_multiprocessing_context", None)
    dataloader_in_order: bool = _passed("dataloader_in_order", True)
    remove_unused_columns: bool = _passed("remove_unused_columns", True)
    label_names: Names = _passed("label_names", ())
    train_sampling_strategy: str = _passed("train_sampling_strategy", "random")
    length_column_name: str = _passed("length_column_name", "length")
    ddp_find_unused_parameters: OptionalBool = _passed("ddp_find_unused_parameters", None)
    ddp_bucket_cap_mb: OptionalInt = _passed("ddp_bucket_cap_mb", None)
    ddp_broadcast_buffers: OptionalBool = _passed("ddp_broadcast_buffers", None)
    ddp_static_graph: OptionalBool = _passed("ddp_static_graph", None)
    ddp_backend: OptionalText = _passed("ddp_backend", None)
    fsdp: SpacedText = _passed("fsdp", None)
    fsdp_config: Json = _passed("fsdp_config", None)
    deepspeed: Json = _passed("deepspeed", None)
    debug: Names = _passed("debug", ())
    skip_memory_metrics: bool = _passed("skip_memory_metrics", True)
    resume_from_checkpoint: OptionalText = _passed("resume_from_checkpoint", None)
    local_rank: int = _passed("local_rank", -1)


NAMES = (
    "output_dir",
    "per_device_train_batch_size",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "optim",
    "optim_args",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "optim_target_modules",
    "gradient_accumulation_steps",
    "average_tokens_across_devices",
    "max_grad_norm",
    "label_smoothing_factor",
    "bf16",
    "fp16",
    "bf16_full_eval",
    "fp16_full_eval",
    "tf32",
    "activation_checkpointing",
    "activation_checkpointing_kwargs",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "torch_compile",
    "torch_compile_backend",
    "torch_compile_mode",
    "use_liger_kernel",
    "liger_kernel_config",
    "use_cache",
    "neftune_noise_alpha",
    "torch_empty_cache_steps",
    "auto_find_batch_size",
    "logging_strategy",
    "logging_steps",
    "logging_first_step",
    "log_on_each_node",
    "logging_nan_inf_filter",
    "include_num_input_tokens_seen",
    "log_level",
    "log_level_replica",
    "disable_tqdm",
    "report_to",
    "run_name",
    "project",
    "trackio_space_id",
    "trackio_bucket_id",
    "trackio_static_space_id",
    "eval_strategy",
    "eval_steps",
    "eval_delay",
    "per_device_eval_batch_size",
    "prediction_loss_only",
    "eval_on_start",
    "eval_do_concat_batches",
    "eval_use_gather_object",
    "eval_accumulation_steps",
    "include_for_metrics",
    "batch_eval_metrics",
    "save_only_model",
    "save_strategy",
    "save_steps",
    "save_on_each_node",
    "save_total_limit",
    "enable_jit_checkpoint",
    "push_to_hub",
    "hub_token",
    "hub_private_repo",
    "hub_model_id",
    "hub_strategy",
    "hub_always_push",
    "hub_revision",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
    "ignore_data_skip",
    "restore_callback_states_from_checkpoint",
    "full_determinism",
    "seed",
    "data_seed",
    "use_cpu",
    "accelerator_config",
    "parallelism_config",
    "dataloader_drop_last",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context",
    "dataloader_in_order",
    "remove_unused_columns",
    "label_names",
    "train_sampling_strategy",
    "length_column_name",
    "ddp_find_unused_parameters",
    "ddp_bucket_cap_mb",
    "ddp_broadcast_buffers",
    "ddp_static_graph",
    "ddp_backend",
    "ddp_timeout",
    "fsdp",
    "fsdp_config",
    "deepspeed",
    "debug",
    "skip_memory_metrics",
    "do_train",
    "do_eval",
    "do_predict",
    "resume_from_checkpoint",
    "local_rank",
)

OPTIMIZERS = (
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_torch_xla",
    "adamw_torch_npu_fused",
    "adafactor",
    "adamw_anyprecision",
    "adamw_torch_4bit",
    "adamw_torch_8bit",
    "ademamix",
    "sgd",
    "adagrad",
    "adamw_bnb_8bit",
    "adamw_8bit",
    "ademamix_8bit",
    "lion_8bit",
    "lion_32bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "rmsprop",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
    "galore_adamw",
    "galore_adamw_8bit",
    "galore_adafactor",
    "galore_adamw_layerwise",
    "galore_adamw_8bit_layerwise",
    "galore_adafactor_layerwise",
    "lomo",
    "adalomo",
    "grokadamw",
    "schedule_free_radam",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "apollo_adamw",
    "apollo_adamw_layerwise",
    "stable_adamw",
)
