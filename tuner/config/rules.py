"""Contradictions between knobs, as data: one row each, with the sentence a person reads and, where there is one, the mend.

Those that only the training loop knows are in loop_rules.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tuner.config import loop_rules, reward_rules
from tuner.config.kinds import ONLY_TRL
from tuner.config.knobs import Problem
from tuner.config.spelling import asks_for_fsdp
from tuner.text.lookup import tr

if TYPE_CHECKING:
    from tuner.config.config import Config


@dataclass(frozen=True)
class Rule:
    """`broken` is asked of a whole config; `sentence` is a format string over its knobs."""

    knob: str
    broken: Callable[[Config], bool]
    sentence: str
    mend: Mapping[str, Any] | Callable[[Config], Mapping[str, Any]] = field(default_factory=dict)


WHOLE = ("full", "freeze")

RULES: tuple[Rule, ...] = (
    Rule(
        "model_name_or_path",
        lambda c: not c.model_name_or_path,
        "--model_name_or_path is missing; give a local folder or a hub name, for example data/starter.",
    ),
    Rule(
        "dataset",
        lambda c: c.do_train and not c.dataset,
        "--dataset is missing; name at least one data set of {dataset_dir}/dataset_info.json.",
    ),
    Rule(
        "fp16",
        lambda c: c.fp16 and c.bf16,
        "--bf16 and --fp16 are both on; keep one of them.",
        {"fp16": False},
    ),
    Rule(
        "pure_bf16",
        lambda c: c.pure_bf16 and c.fp16,
        "--pure_bf16 and --fp16 are both on; keep one of them.",
        {"fp16": False},
    ),
    Rule(
        "dpo_label_smoothing",
        lambda c: (
            c.dpo_label_smoothing > 0
            and not _losses(c) & {"sigmoid", "robust", "exo_pair", "aot", "aot_unpaired"}
        ),
        "--dpo_label_smoothing {dpo_label_smoothing} has no effect with --pref_loss {pref_loss}; set it to 0.",
        {"dpo_label_smoothing": 0.0},
    ),
    Rule(
        "dpo_label_smoothing",
        lambda c: "exo_pair" in _losses(c) and c.dpo_label_smoothing == 0,
        "--pref_loss exo_pair needs --dpo_label_smoothing above 0; 0.001 is usual.",
        {"dpo_label_smoothing": 0.001},
    ),
    Rule(
        "pref_loss_weights",
        lambda c: bool(c.pref_loss_weights) and not _as_many(str(c.pref_loss_weights), c.pref_loss),
        "--pref_loss_weights {pref_loss_weights} needs one number for each loss of --pref_loss {pref_loss}.",
        {"pref_loss_weights": None},
    ),
    Rule(
        "pref_loss",
        lambda c: (
            bool(_losses(c) & ONLY_TRL)
            and bool(_losses(c) & {"orpo", "simpo"} or c.pref_ftx > 0 or c.pref_bco_weight > 0)
        ),
        "--pref_loss {pref_loss} cannot be mixed with orpo, simpo, --pref_ftx or --pref_bco_weight; "
        "add sft or bco_pair to --pref_loss instead.",
        {"pref_ftx": 0.0, "pref_bco_weight": 0.0},
    ),
    Rule(
        "pref_bco_weight",
        lambda c: c.pref_bco_weight > 0 and bool(_losses(c) & {"orpo", "simpo"}),
        "--pref_bco_weight compares with a reference and --pref_loss {pref_loss} has none; set it to 0.",
        {"pref_bco_weight": 0.0},
    ),
    Rule(
        "finetuning_type",
        lambda c: bool(c.quantization_bit) and c.finetuning_type in WHOLE,
        "--quantization_bit {quantization_bit} freezes the weights, and --finetuning_type {finetuning_type} trains them; "
        "use lora.",
        {"finetuning_type": "lora"},
    ),
    Rule(
        "quantization_bit",
        lambda c: (
            bool(c.quantization_bit)
            and c.quantization_bit
            not in {"bnb": (4, 8), "eetq": (8,), "hqq": range(1, 9)}[c.quantization_method]
        ),
        "--quantization_method {quantization_method} does not know {quantization_bit} bits; bnb takes 4 or 8, eetq 8.",
        {"quantization_bit": 4, "quantization_method": "bnb"},
    ),
    Rule(
        "quantization_bit",
        lambda c: (
            bool(c.quantization_bit)
            and bool(c.resize_vocab or c.add_tokens or c.add_special_tokens or c.new_special_tokens_config)
        ),
        "New tokens need whole embeddings, and --quantization_bit {quantization_bit} has none; drop one of the two.",
        {"quantization_bit": None},
    ),
    Rule(
        "pissa_init",
        lambda c: c.pissa_init and bool(c.quantization_bit),
        "--pissa_init takes whole weights apart and --quantization_bit {quantization_bit} has none; drop one of the two.",
        {"pissa_init": False},
    ),
    Rule(
        "pissa_init",
        lambda c: c.pissa_init and bool(c.adapter_name_or_path) and not c.create_new_adapter,
        "--pissa_init starts a new adapter and --adapter_name_or_path names one to go on from; drop one of the two, "
        "or set --create_new_adapter True.",
        {"pissa_init": False},
    ),
    Rule(
        "use_dora",
        lambda c: (
            c.finetuning_type != "lora"
            and bool(c.use_dora or c.use_rslora or c.pissa_init or c.loraplus_lr_ratio)
        ),
        "use_dora, use_rslora, pissa_init and loraplus_lr_ratio shape LoRA; --finetuning_type {finetuning_type} has none.",
        {"use_dora": False, "use_rslora": False, "pissa_init": False, "loraplus_lr_ratio": None},
    ),
    Rule(
        "use_llama_pro",
        lambda c: c.use_llama_pro and c.finetuning_type not in ("lora", "freeze"),
        "--use_llama_pro trains some layers only; use it with --finetuning_type freeze or lora.",
        {"use_llama_pro": False},
    ),
    Rule(
        "finetuning_type",
        lambda c: c.finetuning_type == "oft" and c.oft_rank > 0 and c.oft_block_size not in (0, 32),
        "--oft_rank and --oft_block_size say the same thing twice; set one of them to 0.",
        {"oft_rank": 0},
    ),
    Rule(
        "finetuning_type",
        lambda c: c.finetuning_type == "lora" and bool(c.use_galore or c.use_apollo or c.use_badam),
        "GaLore, APOLLO and BAdam train whole weights; use --finetuning_type full, or switch them off for LoRA.",
        {"use_galore": False, "use_apollo": False, "use_badam": False},
    ),
    Rule(
        "optim",
        lambda c: (
            sum(
                (
                    c.use_galore,
                    c.use_apollo,
                    c.use_badam,
                    c.use_adam_mini,
                    c.use_muon,
                    bool(c.loraplus_lr_ratio),
                )
            )
            > 1
        ),
        "Only one of use_galore, use_apollo, use_badam, use_adam_mini, use_muon and loraplus_lr_ratio can move the weights; "
        "keep one.",
    ),
    Rule(
        "gradient_accumulation_steps",
        lambda c: (
            c.gradient_accumulation_steps > 1
            and bool(c.use_galore and c.galore_layerwise or c.use_apollo and c.apollo_layerwise)
        ),
        "A layerwise optimizer moves the weights as gradients come and cannot add them up; "
        "set --gradient_accumulation_steps 1.",
        {"gradient_accumulation_steps": 1},
    ),
    Rule(
        "deepspeed",
        lambda c: bool(c.deepspeed) and (c.use_galore or c.use_apollo),
        "DeepSpeed has its own optimizers and does not work with GaLore or APOLLO; drop one of the two.",
    ),
    Rule(
        "gradient_checkpointing",
        lambda c: c.gradient_checkpointing is True and c.disable_gradient_checkpointing,
        "--gradient_checkpointing True and --disable_gradient_checkpointing True ask for opposite things; keep one of them.",
        {"disable_gradient_checkpointing": False},
    ),
    Rule(
        "nproc_per_node",
        lambda c: c.num_gpus > 1 and c.nproc_per_node not in (None, c.num_gpus),
        "--num_gpus {num_gpus} is one process each, and --nproc_per_node {nproc_per_node} asks for another number; "
        "leave one of them out.",
        {"nproc_per_node": None},
    ),
    Rule(
        "num_gpus",
        lambda c: c.num_gpus > 1 and c.use_cpu,
        "--num_gpus {num_gpus} and --use_cpu True ask for opposite things; processes that share the CPU are asked for "
        "with --nproc_per_node {num_gpus}.",
        lambda c: {"num_gpus": 1, "nproc_per_node": c.num_gpus},
    ),
    Rule(
        "fsdp",
        lambda c: asks_for_fsdp(c.fsdp) and c.processes == 1,
        "--fsdp {fsdp} spreads a model over several processes, and this run has one; set --num_gpus 2 or more, or leave "
        "it out.",
        {"fsdp": None},
    ),
    Rule(
        "fsdp",
        lambda c: asks_for_fsdp(c.fsdp) and bool(c.deepspeed),
        "--fsdp and --deepspeed both spread the model; keep one of them.",
        {"fsdp": None},
    ),
    Rule(
        "fsdp",
        lambda c: asks_for_fsdp(c.fsdp) and bool(c.quantization_bit),
        "--fsdp {fsdp} does not spread a quantized model; leave it out, and every GPU holds the whole quantized model.",
        {"fsdp": None},
    ),
    Rule(
        "do_predict",
        lambda c: asks_for_fsdp(c.fsdp) and c.do_predict,
        "--do_predict needs the model whole, and --fsdp spreads it; leave it out and run `tuner evaluate` afterwards.",
        {"do_predict": False},
    ),
    Rule(
        "probe",
        lambda c: asks_for_fsdp(c.fsdp) and bool(c.probe),
        "--probe needs the model whole, and --fsdp spreads it; leave it out and run `tuner evaluate` afterwards.",
        {"probe": None},
    ),
    Rule(
        "probe",
        lambda c: c.kind.predicts == "scores" and bool(c.probe),
        "--probe asks questions, and a reward model scores answers and writes none; leave it out.",
        {"probe": None},
    ),
    Rule(
        "probe",
        lambda c: c.kind.predicts == "decisions" and bool(c.probe),
        "--probe asks for words, and stage {stage} learns which option is likely; leave it out: the held-out rows are "
        "answered at the end.",
        {"probe": None},
    ),
    Rule(
        "enable_thinking",
        lambda c: c.kind.rows == "decisions" and c.enable_thinking is not False,
        "Stage {stage} reads the answer right behind the prompt, where a thought has no room; set --enable_thinking False.",
        {"enable_thinking": False},
    ),
    Rule(
        "default_system",
        lambda c: c.kind.rows == "decisions" and c.default_system is not None,
        "Whoever asks a decision model sends no system prompt, so that one learnt with --default_system would be missing; "
        "leave it out.",
        {"default_system": None},
    ),
    Rule(
        "use_eaft_loss",
        lambda c: sum((c.use_dft_loss, c.use_asft_loss, c.use_eaft_loss)) > 1,
        "use_dft_loss, use_asft_loss and use_eaft_loss each replace the loss; keep one of them.",
    ),
    Rule(
        "use_dft_loss",
        lambda c: not c.kind.learns_tokens and bool(c.use_dft_loss or c.use_asft_loss or c.use_eaft_loss),
        "use_dft_loss, use_asft_loss and use_eaft_loss are losses of --stage sft; {stage} has its own.",
        {"use_dft_loss": False, "use_asft_loss": False, "use_eaft_loss": False},
    ),
    Rule(
        "train_on_prompt",
        lambda c: c.kind.rows != "chat" and bool(c.train_on_prompt or c.mask_history or c.neat_packing),
        "train_on_prompt, mask_history and neat_packing are for --stage sft; {stage} has its own rows.",
        {"train_on_prompt": False, "mask_history": False, "neat_packing": False},
    ),
    Rule(
        "predict_with_generate",
        lambda c: c.predict_with_generate and c.kind.predicts != "answers",
        "--predict_with_generate writes answers, which is for --stage sft; {stage} measures without.",
        {"predict_with_generate": False},
    ),
    Rule(
        "predict_with_generate",
        lambda c: c.predict_with_generate and c.compute_accuracy,
        "--predict_with_generate and --compute_accuracy measure in different ways; keep one of them.",
        {"compute_accuracy": False},
    ),
    Rule(
        "do_predict",
        lambda c: c.do_predict and not c.kind.predicts,
        "--do_predict compares answers with expected ones, which is for --stage sft and rm; use --do_eval.",
        {"do_predict": False, "do_eval": True},
    ),
    Rule(
        "eval_dataset",
        lambda c: (
            (c.do_eval or c.do_predict or c.eval_strategy != "no") and not c.eval_dataset and c.val_size == 0
        ),
        "There is nothing to measure on; set --val_size 0.1 or name an --eval_dataset.",
        {"val_size": 0.1},
    ),
    Rule(
        "early_stopping_steps",
        lambda c: bool(c.early_stopping_steps) and c.eval_strategy == "no",
        "--early_stopping_steps counts measurements; set --eval_strategy steps.",
        {"eval_strategy": "steps"},
    ),
    Rule(
        "ref_model_adapters",
        lambda c: bool(c.ref_model_adapters) and not c.ref_model,
        "--ref_model_adapters belong to a --ref_model; name it, or leave both out.",
        {"ref_model_adapters": ()},
    ),
    Rule(
        "adapter_name_or_path",
        lambda c: (
            len(c.adapter_name_or_path) > 1
            and bool(c.quantization_bit)
            or c.create_new_adapter
            and bool(c.quantization_bit)
        ),
        "Adapters are merged into whole weights, and --quantization_bit {quantization_bit} has none; "
        "go on from one adapter, or drop the quantization.",
        {"quantization_bit": None},
    ),
    Rule(
        "lora_target",
        lambda c: (
            c.finetuning_type in ("lora", "oft")
            and not c.kind.scores
            and "lm_head"
            in (c.lora_target if c.finetuning_type == "lora" else (*c.oft_target, *c.lora_target))
        ),
        "An adapter on lm_head would not be trained, for answers are scored with the head's own weights; take it out of "
        "--lora_target and train the head whole with --additional_target lm_head.",
        lambda c: {
            "lora_target": [name for name in c.lora_target if name != "lm_head"] or ["all"],
            "oft_target": [name for name in c.oft_target if name != "lm_head"] or ["all"],
            "additional_target": [*c.additional_target, "lm_head"],
        },
    ),
    Rule(
        "create_new_adapter",
        lambda c: c.create_new_adapter and not c.adapter_name_or_path,
        "--create_new_adapter merges the adapters you start from; name them in --adapter_name_or_path.",
        {"create_new_adapter": False},
    ),
    Rule(
        "train_from_scratch",
        lambda c: c.train_from_scratch and c.finetuning_type != "full",
        "--train_from_scratch has nothing that could stay frozen; use --finetuning_type full.",
        {"finetuning_type": "full"},
    ),
    Rule(
        "streaming",
        lambda c: c.streaming and not c.kind.streams,
        "--streaming does not work with stage {stage}, which looks at all rows before it begins; set --streaming False.",
        {"streaming": False},
    ),
    Rule(
        "streaming",
        lambda c: c.streaming and c.max_steps < 1,
        "--streaming has no end of its own; set --max_steps to the number of steps to train.",
    ),
    Rule(
        "tokenized_path",
        lambda c: c.streaming and bool(c.tokenized_path),
        "--tokenized_path keeps whole sets and --streaming never has one; drop one of the two.",
        {"tokenized_path": None},
    ),
    Rule(
        "val_size",
        lambda c: c.val_size > 0 and bool(c.eval_dataset),
        "--val_size and --eval_dataset both say what to measure on; keep one of them.",
        {"val_size": 0.0},
    ),
    Rule(
        "val_size",
        lambda c: c.streaming and 0 < c.val_size < 1,
        "--val_size {val_size} is a share, and a streamed set has no known size; give a count of rows.",
    ),
    Rule(
        "interleave_probs",
        lambda c: bool(c.interleave_probs) and c.mix_strategy == "concat",
        "--interleave_probs works with the interleave ways of --mix_strategy only; choose one of them.",
        {"mix_strategy": "interleave_under"},
    ),
    Rule(
        "interleave_probs",
        lambda c: not _shares(c.interleave_probs, len(c.dataset)),
        "--interleave_probs {interleave_probs} needs one share above 0 for each data set, adding up to 1.",
    ),
    Rule(
        "mask_history",
        lambda c: c.mask_history and c.train_on_prompt,
        "--mask_history and --train_on_prompt ask for opposite things; keep one of them.",
        {"train_on_prompt": False},
    ),
    Rule(
        "packing",
        lambda c: c.neat_packing and c.packing is False,
        "--neat_packing is a way of packing and --packing is off; keep one of them.",
        {"packing": None},
    ),
    Rule(
        "packing",
        lambda c: bool(c.packing or c.neat_packing) and not c.kind.learns_tokens,
        "--packing fills rows of text for --stage pt and sft; {stage} arranges its own rows, so leave it off.",
        {"packing": None, "neat_packing": False},
    ),
    Rule(
        "load_best_model_at_end",
        lambda c: c.load_best_model_at_end and c.eval_strategy == "no",
        "--load_best_model_at_end needs evaluation; set --eval_strategy steps and give --val_size or --eval_dataset.",
        {"eval_strategy": "steps"},
    ),
)


def _losses(config: Config) -> set[str]:
    return set(config.pref_loss.split(",")) if config.kind.losses else {"sigmoid"}


def _as_many(weights: str, losses: str) -> bool:
    try:
        return len([float(w) for w in weights.split(",")]) == len(losses.split(","))
    except ValueError:
        return False


def _shares(text: str | None, sets: int) -> bool:
    """Whether this is one share a set; nothing given is fine."""
    if not text:
        return True
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        return False
    return len(shares) == sets and min(shares) > 0 and abs(sum(shares) - 1) < 1e-6


def broken_rules(config: Config) -> list[Problem]:
    """Every contradiction in a config."""
    return [
        Problem(
            rule.knob,
            tr(rule.sentence).format_map(config.model_dump()),
            rule.mend(config) if callable(rule.mend) else rule.mend,
        )
        for rule in RULES
        if rule.broken(config)
    ] + [*loop_rules.problems(config), *reward_rules.problems(config)]
