"""Names that other versions and other tools use: carried over where there is a new name, refused with a word where not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tuner.text.lookup import mark


@dataclass(frozen=True)
class Alias:
    """Another name of a knob; `knob` is None for one that says nothing here.

    `read` is the knob's value for the alias's, None where that asks for nothing. `both` decides where the two names
    are given together, whatever their order: (the alias's value as read, the knob's own) -> the knob's value. Without it
    they have to agree.
    """

    knob: str | None
    read: Callable[[Any], Any] = lambda value: value
    both: Callable[[Any, Any], Any] | None = None


def _yes(value: Any) -> bool:
    return str(value).strip().lower() in ("true", "1", "yes", "on")


def _above_zero(value: Any) -> bool:
    """Whether this is more than nothing; what is no number is, too, and then the knob tells."""
    try:
        return float(value or 0) > 0
    except (TypeError, ValueError):
        return True


RENAMED: dict[str, Alias] = {
    # transformers 5 reads a warm-up below 1 as a share of the run; steps above 0 beat a ratio there.
    "warmup_ratio": Alias(
        "warmup_steps",
        lambda share: share if _above_zero(share) else None,
        lambda share, steps: steps if _above_zero(steps) else share,
    ),
    "evaluation_strategy": Alias("eval_strategy"),
    "no_cuda": Alias("use_cpu", both=lambda off, cpu: _yes(off) or cpu),
    "group_by_length": Alias(
        "train_sampling_strategy", lambda value: "group_by_length" if _yes(value) else None
    ),
    "max_completion_length": Alias("max_new_tokens"),
    "save_safetensors": Alias(None),
    "logging_dir": Alias(None),
    # Files for pictures alone name them too, and data with videos is refused.
    "video_max_pixels": Alias(None),
    "video_min_pixels": Alias(None),
}


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values under the knobs' names: what other versions and tools call otherwise is carried over, the rest stays.

    The order of the names does not matter.
    """
    known = {name: value for name, value in values.items() if name not in RENAMED}
    for name, knob, value in _carried(values):
        both = RENAMED[name].both
        if knob not in values:
            known[knob] = value
        elif both is not None:
            known[knob] = both(value, values[knob])
    return known


def disagreeing(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of an alias and its knob that are both given and say different things."""
    return [
        (name, knob)
        for name, knob, value in _carried(values)
        if knob in values and RENAMED[name].both is None and str(values[knob]).lower() != str(value).lower()
    ]


def said_again(values: Mapping[str, Any], word: str) -> dict[str, Any]:
    """The values without other names of the knob that `word` names, for a word that comes later and wins."""
    alias = RENAMED.get(word)
    knob = alias.knob if alias else word
    agreeing = {n for n, a in RENAMED.items() if a.knob == knob and a.both is None}
    others = ({knob} if word in agreeing else set()) | agreeing
    return {name: value for name, value in values.items() if name == word or name not in others}


def _carried(values: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """The aliases among the names that ask for something, with their knob and its value."""
    for name, alias in RENAMED.items():
        if name in values and alias.knob is not None and (value := alias.read(values[name])) is not None:
            yield name, alias.knob, value


@dataclass(frozen=True)
class Refusal:
    """What another tool's argument is here: `sentence` names the nearest thing; `default` is what it may say anyway,
    because files of that tool spell out defaults."""

    sentence: str
    default: Any = None

    def fits(self, value: Any) -> bool:
        """Whether the value asks for nothing."""
        said = str(value).strip().lower()
        return said in {"", "none", "null", "false"} or said == str(self.default).lower()


def _each(sentence: str, **defaults: Any) -> dict[str, Refusal]:
    return {name: Refusal(sentence, default) for name, default in defaults.items()}


_UNSLOTH = mark("unsloth's kernels are not used; --flash_attn auto and --bf16 True are the fast way here.")
_KT = mark("KTransformers is not used; for a model that does not fit, set --quantization_bit 4.")
_MEGATRON = mark(
    "Megatron is not used; a model that does not fit is spread with --fsdp full_shard, or loaded with --quantization_bit 4."
)
_RAY = mark("Ray is not used; runs wait in the studio's own queue (`tuner submit`).")
_SWANLAB = mark(
    "every run is in MLflow; to report to SwanLab as well, set --report_to swanlab and log in with its own command."
)
_SERVING = mark(
    "no server is started by training; load the adapter from the output folder into vLLM or SGLang."
)
_MEDIA = mark("video and audio are not trained on; use pictures and text.")
_PATCHES = mark(
    "models that see a picture in patches of a grid (InternVL) are not trained here; leave it out."
)
_FP8 = mark(
    "--fp8 True multiplies by torch's own 8-bit products, and nothing of it is sent between GPUs; leave it out."
)
_BENCHMARK = mark(
    "benchmarks are not run by training; measure with --do_eval, or compare answers with --do_predict."
)

REFUSED: dict[str, Refusal] = {
    **_each(_UNSLOTH, use_unsloth=False, use_unsloth_gc=False),
    "shift_attn": Refusal(mark("LongLoRA's shifted attention is not here; read long texts with --rope_scaling linear."), False),
    "mixture_of_depths": Refusal(mark("mixture of depths is not here; train some layers with --finetuning_type freeze.")),
    "use_v1_kernels": Refusal(mark("that tool's experimental kernels are not here; --enable_liger_kernel has fused ones."), False),
    "infer_backend": Refusal(mark("answers are written by tuner itself, with transformers' models; leave it out."), "huggingface"),
    "offload_folder": Refusal(mark("weights are not moved to disk; load a smaller copy with --quantization_bit 4."), "offload"),
    "om_hub_token": Refusal(mark("the openMind hub is not here; name a Hugging Face model or a local folder.")),
    "quantization_device_map": Refusal(mark("a quantized model is not spread over devices; leave it out.")),
    **_each(
        _MEDIA, video_fps=2.0, video_maxlen=128, use_audio_in_video=False, audio_sampling_rate=16000,
    ),
    "crop_to_patches": Refusal(_PATCHES, False),
    **_each(
        _SERVING, vllm_maxlen=4096, vllm_gpu_util=0.7, vllm_enforce_eager=False, vllm_max_lora_rank=32, vllm_config=None,
        sglang_maxlen=4096, sglang_mem_fraction=0.7, sglang_tp_size=-1, sglang_config=None, sglang_lora_backend="triton",
    ),
    **_each(
        _KT, use_kt=False, kt_cpu_activation=None, kt_weight_path=None, kt_non_expert_weight_path=None,
        kt_expert_checkpoint_path=None, kt_use_lora_experts=None, kt_lora_expert_num=None,
        kt_lora_expert_intermediate_size=None,
    ),
    **_each(
        _SWANLAB, use_swanlab=False, swanlab_project="llamafactory", swanlab_workspace=None, swanlab_run_name=None,
        swanlab_mode="cloud", swanlab_api_key=None, swanlab_logdir=None, swanlab_lark_webhook_url=None,
        swanlab_lark_secret=None,
    ),
    **_each(
        _MEGATRON, use_mca=False, use_megatron_bridge=False, use_hyper_parallel=False, hyper_parallel_args=None,
        hyper_parallel_cp_size=1,
    ),
    **_each(_RAY, ray_num_workers=1, ray_init_kwargs=None, master_addr=None, master_port=None),
    **_each(_FP8, fp8_backend="auto", fp8_enable_fsdp_float8_all_gather=False),
    "profile_modules": Refusal(mark("single modules are not timed; record whole steps with --enable_torch_profiler True.")),
    "batch_size": Refusal(mark("say how many rows a device takes at once with --per_device_train_batch_size."), 4),
    **_each(
        _BENCHMARK, task=None, task_dir="evaluation", lang="en", n_shot=5, save_dir=None,
        download_mode="reuse_dataset_if_exists",
    ),
}  # fmt: skip
NO_STAGE = {
    "simpo": mark("SimPO is a loss; say --stage dpo --pref_loss simpo."),
    "orpo": mark("ORPO is a loss; say --stage dpo --pref_loss orpo."),
}
"""Stages of other tools, and what to say instead."""
MEANT: dict[str, str] = {
    "model": "model_name_or_path", "model_name": "model_name_or_path", "base_model": "model_name_or_path",
    "tokenizer": "model_name_or_path", "adapter": "adapter_name_or_path", "lora_path": "adapter_name_or_path",
    "chat_template": "template", "system": "default_system", "system_prompt": "default_system",
    "data": "dataset", "dataset_name": "dataset", "datasets": "dataset", "train_file": "dataset", "data_path": "dataset",
    "eval_file": "eval_dataset", "data_dir": "dataset_dir", "val_split": "val_size", "eval_split": "val_size",
    "max_len": "cutoff_len", "max_seq_len": "cutoff_len", "max_seq_length": "cutoff_len",
    "block_size": "cutoff_len", "sequence_len": "cutoff_len", "model_max_length": "cutoff_len",
    "lr": "learning_rate", "epochs": "num_train_epochs", "num_epochs": "num_train_epochs", "scheduler": "lr_scheduler_type",
    "micro_batch_size": "per_device_train_batch_size", "train_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size", "grad_accum": "gradient_accumulation_steps",
    "warmup": "warmup_steps", "optimizer": "optim", "load_in_4bit": "quantization_bit", "load_in_8bit": "quantization_bit",
    "dpo_loss": "pref_loss", "dpo_beta": "pref_beta", "dpo_ftx": "pref_ftx", "kto_beta": "pref_beta", "orpo_beta": "pref_beta", "r": "lora_rank", "lora_r": "lora_rank", "peft_type": "finetuning_type",
    "target_modules": "lora_target", "lora_target_modules": "lora_target", "modules_to_save": "additional_target",
    "rewards": "reward_funcs", "reward_functions": "reward_funcs", "group_size": "num_generations",
    "max_prompt_length": "cutoff_len", "kl_coef": "beta", "cliprange": "epsilon", "clip_range": "epsilon",
    "num_processes": "nproc_per_node", "world_size": "nproc_per_node", "n_gpu": "num_gpus", "n_gpus": "num_gpus",
    "output": "output_dir", "name": "run_name", "early_stopping_patience": "early_stopping_steps", "resume": "resume_from_checkpoint",
}  # fmt: skip
"""What a knob is called elsewhere, where the letters alone would not lead to it."""
