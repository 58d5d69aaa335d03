"""The table: every knob, its type, bounds, default and what it does, once.

Names, types and defaults are LLaMA-Factory's and transformers'. The order is the order of the form.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

from tuner.config.kinds import CHATS, DEFAULT, TOKENS, Stage
from tuner.config.knobs import (
    EmptiableText,
    Names,
    OptionalBool,
    OptionalInt,
    OptionalText,
    Section,
    knob,
    nearest,
)
from tuner.config.training_arguments import OPTIMIZERS
from tuner.text.lookup import tr


class Model(Section):
    title = "Model"
    icon = ":material/neurology:"

    model_name_or_path: OptionalText = knob(
        None,
        "The model to start from: a local folder or a name on the Hugging Face hub.",
        usual="a small instruct model",
    )
    adapter_name_or_path: Names = knob(
        (), "Adapters to start from; training continues from the last one given.", advanced=True
    )
    adapter_folder: OptionalText = knob(
        None, "The folder inside those in which the adapter lies.", advanced=True, shown=False
    )
    template: OptionalText = knob(
        None,
        "How turns are written as text; leave empty for the tokenizer's own chat template.",
        usual="empty for chat models, default for base models",
    )
    flash_attn: Literal["auto", "disabled", "sdpa", "fa2", "fa3"] = knob(
        "auto", "The attention kernel; auto takes the fastest one this machine has.", advanced=True
    )
    trust_remote_code: bool = knob(
        False,
        "Run Python files that come with the model, with your rights on this machine. Enable it only for authors you trust.",
        advanced=True,
    )
    model_revision: str = knob("main", "The branch, tag or commit of the model on the hub.", advanced=True)
    cache_dir: OptionalText = knob(None, "Where models from the hub are kept.", advanced=True)
    hf_hub_token: OptionalText = knob(
        None,
        "Your hub token, for gated models; never stored, better given as HF_TOKEN.",
        advanced=True,
        secret=True,
    )
    ms_hub_token: OptionalText = knob(
        None,
        "Your ModelScope token, with USE_MODELSCOPE_HUB=1; never stored.",
        advanced=True,
        secret=True,
        shown=False,
    )


class Task(Section):
    title = "Method"
    icon = ":material/school:"

    stage: Stage = knob(
        DEFAULT,
        "The training stage: sft learns from answers, dpo from pairs of a chosen and a rejected answer, kto from good and bad ratings, decide from typed questions with their answers, rm trains a reward model, pt trains on plain text; grpo, rloo and ppo generate answers and learn from their rewards.",
    )
    finetuning_type: Literal["lora", "oft", "freeze", "full"] = knob(
        "lora",
        "What is trained: lora a small adapter beside the frozen model, oft a rotation of its weights, freeze some of its layers, full all weights.",
    )
    do_train: bool = knob(False, "Train; a run without it only evaluates or predicts.", shown=False)


class Data(Section):
    title = "Data"
    icon = ":material/database:"

    dataset: Names = knob((), "The data sets to train on, by their names in the catalog.")
    dataset_dir: str = knob(
        "data",
        "The folder that holds dataset_info.json; ONLINE reads names as hub ids, "
        "REMOTE:owner/repo takes the catalog from the hub.",
        advanced=True,
    )
    cutoff_len: int = knob(
        2048,
        "The longest example, in tokens; longer ones are truncated.",
        ge=4,
        raised="longer examples are kept whole; memory grows.",
        lowered="faster, less memory, but more answers are truncated.",
        usual="512 to 4096",
        unit="tokens",
    )
    max_samples: OptionalInt = knob(
        None,
        "At most this many rows of each data set, from the beginning; empty for all.",
        ge=1,
        raised="more to learn from, a longer run.",
        lowered="a quick test.",
        usual="1000 for a trial, empty for the real run",
        unit="rows",
    )
    val_size: float = knob(
        0.0,
        "Rows kept aside to measure on: a share below 1, or a count.",
        ge=0,
        raised="a steadier measure, less to learn from.",
        usual="0.05 to 0.1",
    )
    eval_dataset: Names = knob(
        (),
        "Data sets to measure on instead of rows kept aside, by their names in the catalog.",
        advanced=True,
    )
    eval_on_each_dataset: bool = knob(
        False, "Measure on each evaluation set by itself, one curve a set.", advanced=True
    )
    mix_strategy: Literal["concat", "interleave_under", "interleave_over", "interleave_once"] = knob(
        "concat",
        "How several data sets become one: concat puts them one after the other; the interleave ones draw from "
        "them in turn until the first is used up (under), until the last is, repeating the short ones (over), "
        "or until all are, without repeating (once).",
        advanced=True,
    )
    interleave_probs: OptionalText = knob(
        None,
        "How often each data set is drawn from, as comma-separated shares that add up to 1; empty draws in turn.",
        advanced=True,
        usual="0.7,0.3",
        needs={"mix_strategy": ("interleave_under", "interleave_over", "interleave_once")},
    )
    train_on_prompt: bool = knob(
        False,
        "Train on the prompt's tokens as well as the answer's.",
        advanced=True,
        needs={"stage": CHATS},
    )
    mask_history: bool = knob(
        False,
        "Train only on the last answer of a chat; earlier answers are context.",
        advanced=True,
        needs={"stage": CHATS},
    )
    enable_thinking: OptionalBool = knob(
        True,
        "How thoughts before an answer are treated by reasoning templates: on learns an empty thought where a row "
        "has none, off strips every thought, empty keeps rows as they are.",
        advanced=True,
    )
    preserve_thinking: bool = knob(
        False, "Keep the thoughts of earlier turns, which reasoning templates leave out.", advanced=True
    )
    default_system: EmptiableText = knob(
        None,
        "The system prompt for rows that bring none; left out, the template's own; '' in a file or a shell, none at all.",
        advanced=True,
    )
    tool_format: Annotated[OptionalText, AfterValidator(lambda v: _known_tool_format(v))] = knob(
        None,
        "How tools and tool calls are written as text; empty takes the template's own way.",
        advanced=True,
        usual="empty",
    )
    packing: OptionalBool = knob(
        None,
        "Pack several examples into each row; off means one example per row. On by default for pt only.",
        advanced=True,
        raised="no time lost on padding where examples are short.",
    )
    neat_packing: bool = knob(
        False,
        "Pack so that examples never see each other; here packing always does, so this only turns it on.",
        advanced=True,
        needs={"stage": TOKENS},
    )
    streaming: bool = knob(
        False,
        "Read and tokenise while training instead of before it, for sets larger than memory; needs --max_steps.",
        advanced=True,
    )
    buffer_size: int = knob(
        16384,
        "Rows held in memory to shuffle from while streaming.",
        ge=1,
        unit="rows",
        advanced=True,
        raised="a better shuffle, more memory.",
        needs={"streaming": (True,)},
    )
    tokenized_path: OptionalText = knob(
        None,
        "A folder for the tokenised rows: read if it holds some, written if it does not.",
        advanced=True,
    )
    preprocessing_batch_size: int = knob(
        1000, "Rows tokenised in one go.", ge=1, unit="rows", advanced=True, usual="1000"
    )
    preprocessing_num_workers: OptionalInt = knob(
        None,
        "Threads that tokenise; empty takes every core.",
        ge=1,
        advanced=True,
        lowered="leaves cores to other work; the rows stay the same.",
        usual="empty, or 1 to 16",
    )
    overwrite_cache: bool = knob(
        False,
        "Tokenise anew even if --tokenized_path holds rows of this studio, and replace them.",
        advanced=True,
    )
    data_shared_file_system: bool = knob(
        False,
        "All machines of a run see the same disk; no effect here, where a run is on one machine.",
        shown=False,
    )
    eval_num_beams: OptionalInt = knob(
        None, "Beams to search with when predicting; empty for the generation settings.", ge=1, advanced=True
    )
    ignore_pad_token_for_loss: bool = knob(
        True, "Leave padding out of the loss, which it always is here.", shown=False
    )


class Training(Section):
    title = "Training"
    icon = ":material/tune:"

    learning_rate: float = knob(
        5e-5,
        "The step size of the optimizer.",
        gt=0,
        raised="learns faster; too high and the loss jumps or diverges.",
        lowered="slower and more stable; too low learns nothing.",
        usual="5e-05 to 2e-04 for LoRA, 1e-06 to 1e-05 for all weights",
    )
    num_train_epochs: float = knob(
        3.0,
        "How many passes over the data.",
        gt=0,
        raised="fits the data more closely, and eventually overfits.",
        lowered="a shorter run, enough for a large set.",
        usual="1 to 3",
        unit="epochs",
    )
    max_steps: int = knob(
        -1,
        "Stop after this many optimizer steps; -1 leaves it to the epochs.",
        ge=-1,
        advanced=True,
        unit="steps",
    )
    per_device_train_batch_size: int = knob(
        8,
        "Examples on the device at once.",
        ge=1,
        raised="faster on a GPU, takes more memory.",
        lowered="the first thing to try when memory runs out.",
        usual="1 to 16",
        unit="examples",
    )
    gradient_accumulation_steps: int = knob(
        1,
        "Batches accumulated before an optimizer step.",
        ge=1,
        raised="smoother and fewer steps at the same memory.",
        lowered="more and noisier steps.",
        usual="1 to 16; batch size times accumulation of 8 to 64",
        unit="batches",
    )
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "reduce_lr_on_plateau",
        "cosine_with_min_lr",
        "cosine_warmup_with_min_lr",
        "warmup_stable_decay",
        "greedy",
    ] = knob(
        "linear",
        "How the learning rate changes over the run; cosine decays smoothly.",
        usual="cosine",
    )
    warmup_steps: float = knob(
        0,
        "Steps over which the learning rate rises from zero; below 1 it is a share of the run.",
        ge=0,
        raised="a gentler start, useful with a high learning rate.",
        usual="0 to 10% of the steps",
        unit="steps",
    )
    max_grad_norm: float = knob(
        1.0,
        "Gradients with a larger norm are clipped to it.",
        ge=0,
        raised="allows larger steps.",
        lowered="steadier when the loss spikes.",
        usual="0.3 to 1",
        advanced=True,
    )
    optim: Annotated[str, AfterValidator(lambda v: _known_optimizer(v))] = knob(
        "adamw_torch", "The optimizer, by transformers' name.", advanced=True, usual="adamw_torch"
    )
    weight_decay: float = knob(
        0.0, "The strength of weight decay towards zero.", ge=0, advanced=True, usual="0 to 0.1"
    )
    bf16: bool = knob(False, "Compute in bfloat16: half the memory and faster on recent hardware.")
    fp16: bool = knob(False, "Compute in float16, for GPUs without bfloat16.", advanced=True)
    seed: int = knob(
        42,
        "Makes a run reproducible: the same seed gives the same order and initialisation.",
        ge=0,
        usual="42; two or three seeds show the variance",
    )


class Output(Section):
    title = "Output"
    icon = ":material/save:"

    run_name: OptionalText = knob(None, "The name of this run in lists and charts.")
    output_dir: OptionalText = knob(
        None, "Where the adapter and its files are written; empty for the run's own folder.", advanced=True
    )
    overwrite_output_dir: bool = knob(
        False, "Start afresh in an output folder that already holds a model.", advanced=True
    )
    logging_steps: float = knob(
        500,
        "Steps between two points of the charts; below 1 it is a share of the run.",
        gt=0,
        raised="fewer points.",
        lowered="a finer curve at no cost worth naming.",
        usual="1 to 10",
        unit="steps",
    )
    save_steps: float = knob(
        500,
        "Steps between two checkpoints; below 1 it is a share of the run.",
        gt=0,
        raised="less disk, more lost if the machine goes down.",
        lowered="less lost, more disk.",
        usual="50 to 500",
        unit="steps",
    )
    save_total_limit: OptionalInt = knob(
        None,
        "Keep only this many checkpoints, the newest.",
        ge=1,
        usual="2 to 5",
        unit="checkpoints",
        advanced=True,
    )
    auto_resume: bool = knob(
        False,
        "Go on by itself from the newest checkpoint once the studio is started again after a restart of the machine.",
        advanced=True,
    )
    plot_loss: bool = knob(False, "Write the loss curve as a picture beside the adapter.", advanced=True)
    report_to: Names = knob(
        ("none",), "Other trackers to report to beside MLflow, which always holds the run.", advanced=True
    )
    include_num_input_tokens_seen: Annotated[
        Literal["all", "non_padding", "no"], BeforeValidator(lambda v: _tokens_seen(v))
    ] = knob("no", "Count the tokens the model has read: all, or without padding.", advanced=True)
    ddp_timeout: int = knob(
        1800, "How long processes wait for each other before giving up.", ge=1, unit="seconds", advanced=True
    )


class Samples(Section):
    title = "Samples"
    icon = ":material/forum:"

    probe: OptionalText = knob(
        None,
        "A data set of held-out questions: the model answers them before, at every save and after, and the run's page "
        "shows how the answers change.",
        usual="a set the run does not train on",
    )
    probe_samples: int = knob(
        100,
        "How many of those questions are asked.",
        ge=1,
        raised="a more reliable score, more seconds at every save.",
        lowered="quicker saves.",
        usual="20 to 200",
        unit="questions",
        advanced=True,
    )
    probe_new_tokens: int = knob(
        64, "The longest answer to such a question.", ge=1, usual="64 to 256", unit="tokens", advanced=True
    )


def _tokens_seen(value: Any) -> Any:
    # transformers takes a bool here too; YAML and the shell both write one.
    words = {"true": "all", "false": "no", "1": "all", "0": "no"}
    return words.get(str(value).lower(), value)


TOOL_FORMATS = (
    "default", "gemma4", "glm4", "glm4_moe", "lfm2", "ling", "llama3", "minimax1", "minimax2", "mistral", "qwen",
    "qwen3_5", "seed_oss",
)  # fmt: skip


def _known_tool_format(value: str | None) -> str | None:
    if value is not None and value not in TOOL_FORMATS:
        raise ValueError(tr("should be one of {tool_formats}", tool_formats=", ".join(TOOL_FORMATS)))
    return value


def _known_optimizer(value: str) -> str:
    if value not in OPTIMIZERS:
        like = nearest(value, OPTIMIZERS) or OPTIMIZERS[0]
        raise ValueError(tr("should be one of transformers' optimizers; the nearest is {like}", like=like))
    return value
