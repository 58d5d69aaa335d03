"""The table, third part: measuring, generating, memory and speed of the machine, what is written."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from tuner.config.kinds import PACKED, REWARDED
from tuner.config.knobs import (
    Names,
    OptionalBool,
    OptionalFloat,
    OptionalInt,
    OptionalText,
    Section,
    knob,
    none_word,
)

PREDICTS = {"do_predict": (True,)}
WRITES = {"stage": REWARDED}
"""Answers are written to learn from."""


class Evaluation(Section):
    title = "Evaluation"
    icon = ":material/rule:"

    do_eval: bool = knob(
        False, "Measure on the rows kept aside; without do_train that is all the run does.", advanced=True
    )
    do_predict: bool = knob(
        False, "Write an answer to every row kept aside and compare it with the expected one.", advanced=True
    )
    predict_with_generate: bool = knob(
        False, "Let the model generate its answers, as do_predict needs it.", advanced=True
    )
    eval_strategy: Literal["no", "steps", "epoch"] = knob(
        "no",
        "When to measure while training: never, every eval_steps, or after each epoch.",
        usual="steps; epoch where an epoch is short",
    )
    eval_steps: OptionalFloat = knob(
        None,
        "Steps between two measurements; below 1 it is a share of the run; empty takes logging_steps.",
        gt=0,
        raised="a faster run with a coarser curve.",
        lowered="a finer curve that costs time.",
        usual="50 to 500",
        unit="steps",
        needs={"eval_strategy": ("steps",)},
    )
    per_device_eval_batch_size: int = knob(
        8,
        "Examples measured at once.",
        ge=1,
        raised="faster, takes more memory.",
        usual="the training batch or twice it",
        unit="examples",
        advanced=True,
    )
    compute_accuracy: bool = knob(
        False,
        "Also measure the share of answer tokens that the model would have chosen itself.",
        advanced=True,
    )
    early_stopping_steps: OptionalInt = knob(
        None,
        "End the run after this many evaluations without improvement; empty: never.",
        ge=1,
        raised="waits longer for an improvement.",
        usual="3 to 5",
        unit="measurements",
        advanced=True,
    )
    load_best_model_at_end: bool = knob(
        False, "Keep the checkpoint that measured best instead of the last one.", advanced=True
    )
    metric_for_best_model: OptionalText = knob(
        None,
        "What best means, for example eval_loss or eval_rewards/accuracies.",
        advanced=True,
        usual="eval_loss",
    )
    greater_is_better: OptionalBool = knob(
        None,
        "Whether more of that metric is better; empty: less is better for a loss, more for the rest.",
        advanced=True,
    )


class Generation(Section):
    title = "Generation"
    icon = ":material/chat:"

    do_sample: bool = knob(
        True, "Sample tokens instead of always taking the most likely one.", needs=PREDICTS, advanced=True
    )
    temperature: float = knob(
        0.95, "The randomness of sampling.", ge=0, raised="more varied, less exact.", lowered="more deterministic.",
        usual="0.2 to 1", needs=PREDICTS, or_needs=WRITES,
    )  # fmt: skip
    top_p: float = knob(
        0.7, "Sample only from the most likely tokens that add up to this probability.", gt=0, le=1, raised="more varied.",
        usual="0.7 to 0.95", needs=PREDICTS, or_needs=WRITES, advanced=True,
    )  # fmt: skip
    top_k: int = knob(
        50, "Sample only from this many most likely tokens; 0 for all.", ge=0, raised="more varied.", usual="20 to 50",
        needs=PREDICTS, or_needs=WRITES, advanced=True,
    )  # fmt: skip
    num_beams: int = knob(
        1, "The beams of a beam search.", ge=1, raised="likelier answers, slower.", usual="1",
        needs=PREDICTS, advanced=True,
    )  # fmt: skip
    max_length: int = knob(
        1024, "The longest prompt and answer together; not looked at when max_new_tokens is set.", ge=1, unit="tokens",
        needs=PREDICTS, advanced=True,
    )  # fmt: skip
    max_new_tokens: int = knob(
        1024, "The longest answer.", ge=0, raised="long answers survive, loops cost time.", usual="128 to 1024",
        unit="tokens", needs=PREDICTS, or_needs=WRITES,
    )  # fmt: skip
    repetition_penalty: float = knob(
        1.0, "How strongly tokens that were used already are avoided.", gt=0, raised="fewer loops, stranger wording.",
        usual="1 to 1.1", needs=PREDICTS, or_needs=WRITES, advanced=True,
    )  # fmt: skip
    length_penalty: float = knob(
        1.0, "With several beams: above 1 prefers longer answers.", needs=PREDICTS, advanced=True
    )
    skip_special_tokens: bool = knob(
        True, "Leave markers such as the end of a turn out of what is shown.", needs=PREDICTS, advanced=True
    )
    generation_max_length: OptionalInt = knob(
        None, "The longest prompt and answer together when measuring; empty takes cutoff_len.", ge=1, unit="tokens",
        needs=PREDICTS, advanced=True,
    )  # fmt: skip
    generation_num_beams: OptionalInt = knob(
        None,
        "How many continuations are followed when measuring; empty takes num_beams.",
        ge=1,
        needs=PREDICTS,
        advanced=True,
    )


class Machine(Section):
    title = "Memory and speed"
    icon = ":material/speed:"

    engine: Literal["auto", "packed", "trl"] = knob(
        "auto",
        "The training engine: packed rows (many times faster) or TRL's trainer. auto uses packed rows where possible and logs the choice and the reason.",
        usual="auto",
        needs={"stage": PACKED},
    )
    engine_preset: Literal["speed", "memory"] = knob(
        "speed",
        "What packed rows are sized for: speed keeps what the backward pass needs, memory computes it again.",
        advanced=True,
        usual="speed; memory where little memory is free",
        needs={"stage": PACKED},
    )
    fp8: bool = knob(
        False,
        "Multiplies the frozen weights of LoRA in 8-bit floats, on GPUs that have them (Ada, Hopper and later): about a seventh faster in large steps. Losses and gradients are near those of bfloat16, not the same.",
        advanced=True,
        needs={"stage": PACKED},
    )
    engine_token_budget: OptionalInt = knob(
        None,
        "The most tokens in one packed row; empty chooses from free memory.",
        ge=16,
        raised="fewer and larger rows, more memory.",
        lowered="less memory.",
        usual="empty",
        unit="tokens",
        advanced=True,
        needs={"stage": PACKED},
    )

    num_gpus: int = knob(
        1,
        "How many GPUs the run computes on, one process each; the batch of a step grows with them.",
        ge=1,
        raised="more examples a second, and fewer steps for the same data.",
        lowered="GPUs are left to other runs.",
        usual="1",
    )
    nproc_per_node: OptionalInt = knob(
        None,
        "How many processes the run has; empty takes one a GPU. Without a GPU they share the CPU.",
        ge=1,
        usual="empty",
        advanced=True,
    )
    disable_gradient_checkpointing: bool = knob(
        False,
        "Keep everything the backward pass needs in memory: faster, takes more of it. "
        "Left off, a GPU run keeps it where it fits well, and a CPU run always.",
    )
    gradient_checkpointing: OptionalBool = knob(
        None, "On or off, whatever the machine; empty decides by the machine.", advanced=True
    )
    use_reentrant_gc: bool = knob(
        True, "The older way of computing it again, as transformers does it.", advanced=True
    )
    enable_liger_kernel: bool = knob(
        False, "Use Liger's fused GPU kernels for norms, rotary positions and activations.", advanced=True
    )
    upcast_layernorm: bool = knob(
        False, "Keep the norms' weights in float32, steadier for quantized models.", advanced=True
    )
    upcast_lmhead_output: bool = knob(
        False, "Turn the model's output to float32 before the loss.", advanced=True
    )
    low_cpu_mem_usage: bool = knob(True, "Load a model without holding it in memory twice.", advanced=True)
    rope_scaling: Annotated[
        Literal["linear", "dynamic", "yarn", "llama3"] | None, BeforeValidator(none_word)
    ] = knob(
        None,
        "Stretch a model's positions so that it reads texts longer than it was made for; "
        "the factor follows from cutoff_len.",
        advanced=True,
    )
    moe_aux_loss_coef: OptionalFloat = knob(
        None,
        "The weight of the loss that keeps a mixture of experts balanced; empty leaves it to the model.",
        ge=0,
        advanced=True,
    )
    disable_shuffling: bool = knob(False, "Go through the data in its own order.", advanced=True)
    train_from_scratch: bool = knob(
        False, "Start from random weights: only the model's architecture is used.", advanced=True
    )
    print_param_status: bool = knob(
        False, "Write every weight's name, type and whether it is trained into the log.", advanced=True
    )
    infer_dtype: Literal["auto", "float16", "bfloat16", "float32"] = knob(
        "auto",
        "The number type of a run that only evaluates or predicts; training has bf16 and fp16.",
        advanced=True,
        shown=False,
    )
    use_kv_cache: bool = knob(
        True, "Keep what was computed for earlier words while answering.", advanced=True, shown=False
    )


class Vocabulary(Section):
    title = "Vocabulary"
    icon = ":material/abc:"

    resize_vocab: bool = knob(
        False, "Give the model room for tokens that its tokenizer has and it has not.", advanced=True
    )
    add_tokens: Names = knob((), "New words of the vocabulary, with commas.", advanced=True)
    add_special_tokens: Names = knob(
        (), "New markers that are never split nor shown, with commas.", advanced=True
    )
    new_special_tokens_config: OptionalText = knob(
        None,
        "A YAML file of new markers and what each means; it wins over add_special_tokens.",
        advanced=True,
    )
    init_special_tokens: Literal["noise_init", "desc_init", "desc_init_w_noise"] = knob(
        "noise_init",
        "What a new token starts from: the mean of all others with noise, or of the words that describe it.",
        advanced=True,
    )
    split_special_tokens: bool = knob(
        False, "Read markers that stand in the data as plain text.", advanced=True
    )
    use_fast_tokenizer: bool = knob(
        True,
        "Use the fast tokenizer; there is no other one here, so it has no effect.",
        advanced=True,
        shown=False,
    )


class Profiling(Section):
    title = "Profiling"
    icon = ":material/timeline:"

    enable_torch_profiler: bool = knob(
        False, "Record where the time of some steps goes, as traces for Chrome.", advanced=True
    )
    profiler_output_dir: OptionalText = knob(
        None, "Where the traces go; empty: profiler/ in the output.", advanced=True
    )
    profiler_wait_steps: int = knob(
        1, "Steps left alone before each recording.", ge=0, unit="steps", advanced=True
    )
    profiler_warmup_steps: int = knob(1, "Steps recorded and thrown away.", ge=0, unit="steps", advanced=True)
    profiler_active_steps: int = knob(1, "Steps recorded and kept.", ge=1, unit="steps", advanced=True)
    profiler_repeat: int = knob(1, "How many recordings; 0 continues to the end.", ge=0, advanced=True)
    profiler_record_shapes: bool = knob(True, "Record the shapes of tensors.", advanced=True)
    profiler_profile_memory: bool = knob(True, "Record memory.", advanced=True)
    profiler_with_stack: bool = knob(True, "Record where in the source each call stands.", advanced=True)
    include_effective_tokens_per_second: bool = knob(
        False, "Also write the tokens a second without padding into the results.", advanced=True
    )


class Export(Section):
    title = "Export"
    icon = ":material/ios_share:"

    export_dir: OptionalText = knob(
        None, "The folder that `tuner export` writes to; it is not there until all of it is.", shown=False
    )
    export_size: int = knob(5, "The largest file of an exported model.", ge=1, unit="GB", shown=False)
    export_device: Literal["cpu", "auto"] = knob(
        "cpu", "Where adapters are merged: on the CPU, or with auto on a GPU where there is one.", shown=False
    )
    export_quantization_bit: OptionalInt = knob(
        None,
        "Quantize the exported model by GPTQ to so many bits: 8, 4, 3 or 2.",
        ge=2,
        le=8,
        unit="bits",
        shown=False,
    )
    export_quantization_dataset: OptionalText = knob(
        None,
        "Text that GPTQ measures its losses on: a file of JSON rows with a field text, or a name of the catalog.",
        shown=False,
    )
    export_quantization_nsamples: int = knob(128, "Rows of that text.", ge=1, unit="rows", shown=False)
    export_quantization_maxlen: int = knob(
        1024, "The length of those rows.", ge=1, unit="tokens", shown=False
    )
    export_legacy_format: bool = knob(
        False, "Known for files of other tools; weights are always safetensors.", shown=False
    )
    export_hub_model_id: OptionalText = knob(
        None,
        "The hub name to upload the exported model to; HF_TOKEN in the environment allows it.",
        shown=False,
    )
